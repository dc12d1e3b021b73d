"""Benchmarks: the record, the tables made of it. What they measure is not tested."""

import json
from types import SimpleNamespace

import pytest
import torch
from benchmarks import __main__ as main
from benchmarks import gpu, scaling, sweep, table
from benchmarks.common import row

pytestmark = pytest.mark.slow

MACHINE = {"processor": "A processor", "gpu": None, "torch": "2"}


@pytest.fixture(scope="module")
def measured() -> dict:
    """Steps of the small model with few tokens."""
    step = scaling.measure_step(32, 2, 5, repeats=1)
    processes = [{"processes": n, "stars_per_s": 10.0 * n, "parameters": 1000} for n in (1, 2)]
    return {"reference": step, "processes": processes} | {
        name: [step] for name in ("context", "batch", "labels")
    }


def suite(**results) -> dict:
    limits = {"flop_per_s": 1e11, "bytes_per_s": 1e10}
    rows = {
        "training step, paper's model": row(0.1, 0.05, "FLOP", published=0.3, ceilings=limits),
        "inference, 3,757 pixels, 5 labels": row(0.2, 0.1, "FLOP", ceilings=limits),
    }
    return {
        "benchmark": "suite-cpu",
        "date": "2026-01-01",
        "command": "python -m benchmarks",
        "hardware": MACHINE,
        "results": {"small": False, "failed": {}, "rows": rows, **results},
    }


def test_rows_compare_with_the_published_manner_and_the_floor():
    line = row(0.1, 0.05, "FLOP", published=0.3)
    assert line["ratio"] == pytest.approx(3.0)
    assert line["share_of_floor"] == pytest.approx(0.5)
    assert row(0.1, 0.05, "FLOP")["ratio"] is None


def test_tables_of_a_suite():
    text = table.suite_table(suite())
    assert "| training step, paper's model | 10 | 3.33 | 3 | 20 | 50 % |" in text
    assert "| inference, 3,757 pixels, 5 labels | 5 | – | – | 10 | 50 % |" in text


def test_reference_is_what_is_expected_of_it(measured):
    line = table.scaling_tables(measured)["context"].splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["32", "2", "5"]
    assert cells[4] == cells[5]  # time, and what is expected
    assert cells[7] == cells[8]  # memory


def test_plain_attention_is_the_same_attention():
    model = scaling.paper_model(context_length=32, **scaling.MODEL)
    block = model.torch_model.torch_encoder.encoder_transformer_block_1
    x = torch.randn(2, 32, 64)
    expected, _ = block._self_attention(x, None, False)
    plain, _ = scaling.plain_self_attention(block, x, None, False)
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-5)


def test_surveys_follow_the_arithmetic():
    """A tenth of a star's time is a tenth of a survey's."""
    slow, fast = suite(), suite()
    fast["results"]["rows"]["training step, paper's model"]["ours_s_per_star"] /= 10
    assert "one H100, estimate" in table.surveys_table(slow, None)
    days = [
        float(table.surveys_table(record, None).splitlines()[4].split("|")[7].split()[0])
        for record in (slow, fast)
    ]
    assert days[0] == pytest.approx(10 * days[1], rel=0.1)


def test_a_benchmark_that_fails_does_not_lose_the_others(tmp_path, monkeypatch, capsys):
    def fails():
        raise RuntimeError("no disk")

    output = tmp_path / "results.json"
    options = {"options": [{"work": "training step"}]}
    functions = {"bad": fails, "good": lambda: suite()["results"]["rows"]}
    functions["options"] = lambda: options
    monkeypatch.setitem(main.SUITES, "cpu", lambda small: functions.items())
    monkeypatch.setattr("sys.argv", ["benchmarks", "--suite", "cpu", "--output", str(output)])
    with pytest.raises(SystemExit, match="failed: bad"):
        main.main()
    results = json.loads(output.read_text())["results"]
    assert results["failed"] == {"bad": "RuntimeError: no disk"}
    assert set(results["rows"]) == set(suite()["results"]["rows"])
    assert results["options"] == options["options"]
    assert "3.0 times faster" in capsys.readouterr().out


def test_benchmarks_are_added_to_a_record(tmp_path, monkeypatch):
    output = tmp_path / "results.json"
    for name in ("one", "two"):
        found = {name: row(0.1, 0.05, "FLOP")}
        monkeypatch.setitem(main.SUITES, "cpu", lambda small, n=name, f=found: [(n, lambda: f)])
        arguments = ["benchmarks", "--suite", "cpu", "--add", "--output", str(output)]
        monkeypatch.setattr("sys.argv", arguments)
        main.main()
    assert list(json.loads(output.read_text())["results"]["rows"]) == ["one", "two"]


def test_the_epoch_is_trained_as_the_fastest_step_was(tmp_path):
    path = tmp_path / "steps.json"
    sizes = gpu.Sizes()
    assert (
        gpu.fastest_step(path, sizes) == gpu.fastest_step(None, sizes) == (1024, "compiled graphs")
    )
    steps = [(256, "graphs", 0.1), (1024, "compiled", 0.05), (1024, "eager", 0.2)]
    rows = {f"{b} {w}": row(s, 0.01, "FLOP", batch=b, way=w) for b, w, s in steps}
    path.write_text(json.dumps({"results": {"rows": {"other": row(0.001, 0.001, ""), **rows}}}))
    assert gpu.fastest_step(path, sizes) == (1024, "compiled")


def test_options_are_compared_with_the_first():
    cases = [(1, "float32", "training step", 0.2), (1, "float32", "inference", 0.1)]
    cases += [(2, "float32", "training step", 0.1), (2, "float32", "inference", 0.08)]
    names = ("threads", "precision", "work", "s_per_star")
    options = [dict(zip(names, case, strict=True)) for case in cases]
    text = table.options_table(suite(options=options))
    assert "| training step | 2 | float32 | 10 | 2 |" in text
    assert "| inference | 2 | float32 | 12.5 | 1.25 |" in text


def test_each_kind_of_processor_has_its_newest_record():
    new, other, old = (suite() | {"date": f"2026-01-0{day}"} for day in (3, 2, 1))
    other["hardware"] = {**MACHINE, "instructions": "AVX2"}
    assert table.newest_of_each([new, other, old]) == [new, other]
    assert "A processor (AVX2), PyTorch 2" in table.suite_table(other)


def test_losses_by_width():
    def record(dim, rates):
        recipes = [{"rate": rate, "loss": [0.5, loss]} for rate, loss in rates.items()]
        return {"results": {"dim": dim, "recipes": recipes}}

    text = table.width_table([record(128, {1e-3: -0.25}), record(64, {1e-3: 0.1, 2e-3: 0.2})])
    assert text.splitlines()[2:] == ["| 64 | 0.100 | 0.200 |", "| 128 | −0.250 | – |"]


def test_markers_are_filled_again_and_again():
    page = "before <!-- cpu -->\nold\n<!-- end of cpu --> after"
    once = table.fill(page, "cpu", "new")
    assert once == table.fill(once, "cpu", "new")
    assert once.startswith("before") and once.endswith("after")
    assert "new" in once and "old" not in once
    with pytest.raises(ValueError, match="no markers <!-- gpu -->"):
        table.fill(page, "gpu", "new")


def test_pages_have_the_markers(measured):
    pages = table.HERE
    page = (pages / "README.md").read_text()
    for name in ("cpu", "options", "gpu", "sweep", "width", "width-bins"):
        table.fill(page, name, "")
    scaling_page = (pages / "SCALING.md").read_text()
    for name in [*table.scaling_tables(measured), "surveys"]:
        table.fill(scaling_page, name, "")


def test_the_newest_whole_record_counts(tmp_path):
    for date, small in (("2026-01-01", False), ("2026-01-02", False), ("2026-01-03", True)):
        content = suite(small=small) | {"date": date}
        (tmp_path / f"{date}.json").write_text(json.dumps(content))
    assert table.stored("suite-cpu", "rows", tmp_path)[0]["date"] == "2026-01-02"
    assert table.stored("suite-gpu", "rows", tmp_path) == []
    only_options = suite(rows={}, options=[1]) | {"date": "2026-01-04"}
    (tmp_path / "options.json").write_text(json.dumps(only_options))
    assert table.stored("suite-cpu", "rows", tmp_path)[0]["date"] == "2026-01-02"
    assert table.stored("suite-cpu", "options", tmp_path) == [only_options]


@pytest.mark.parametrize(
    ("seconds", "text"), [(30, "30 s"), (600, "10 min"), (7200, "2 h"), (1e6, "11.6 days")]
)
def test_durations(seconds, text):
    assert table.duration(seconds) == text


CURVE = {"cpu_s": [1.0, 2.0, 3.0], "visits": [100, 200, 300], "loss": [0.9, 0.5, 0.6]}


def test_sweep_tells_when_a_loss_is_reached():
    assert sweep.reached(CURVE, 0.6) == 2.0
    assert sweep.reached(CURVE, 0.6, "visits") == 200
    assert sweep.reached(CURVE, 0.1) is None


def test_sweep_has_a_table_in_the_order_of_success():
    published = {**sweep.PUBLISHED, "epochs": 3, **CURVE}
    slow = {**published, "name": "slow", "batch": 128, "loss": [0.9, 0.8, 0.7]}
    fast = {**published, "name": "fast", "batch": 256, "loss": [0.4, 0.3, 0.2]}
    results = {"stars": 100, "dim": 64, "recipes": [published, slow, fast]}
    record = {"command": "sweep", "date": "2026-01-01", "hardware": MACHINE, "results": results}
    rows = table.sweep_table(record).splitlines()[-3:]
    assert [row.split("|")[1].strip() for row in rows] == ["256", "published, 64", "128"]
    assert [row.split("|")[7].strip() for row in rows] == ["100", "200", "–"]


def test_sweep_goes_on_where_it_was(tmp_path):
    """A recipe that is known is not trained again; those of other stars are refused."""
    more = [{"name": "published", "epochs": 1}, {"name": "published", "epochs": 2}]
    assert sweep.left(more, more[:1]) == more[1:]
    path = tmp_path / "sweep.json"
    recipe = {"name": "published", "epochs": 1}
    path.write_text(json.dumps({"results": {"stars": 10, "dim": 64, "recipes": [recipe]}}))
    same, other = (SimpleNamespace(stars=n, dim=64, pixels_per_token=1) for n in (10, 20))
    assert sweep.known_results(path, same) == [recipe]
    bins = SimpleNamespace(stars=10, dim=64, pixels_per_token=128)
    with pytest.raises(ValueError, match="--pixels-per-token 1, not 128"):
        sweep.known_results(path, bins)
    assert sweep.known_results(tmp_path / "nothing.json", same) == []
    with pytest.raises(ValueError, match="--stars 10, not 20"):
        sweep.known_results(path, other)


def test_the_longest_published_training_is_the_goal():
    published = {**sweep.PUBLISHED, **CURVE}
    results = [{**published, "epochs": 3}, {**published, "epochs": 9, "loss": [0.3, 0.4]}]
    assert sweep.goal(results) == 0.3
    assert sweep.goal([{"name": "other", "epochs": 3}]) is None


def test_published_schedule_is_as_long_as_the_training():
    assert sweep.schedule_of({**sweep.PUBLISHED, "epochs": 325}, 1000).restart_epochs == 50
    other = {"name": "other", "epochs": 5, "warmup": 0.1}
    assert sweep.schedule_of(other, 1000).warmup_steps == 100
