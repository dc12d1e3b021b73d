"""Files of the grids of synthetic spectra: resuming, merging, failures, damage."""

import argparse
import json
import sys

import numpy as np
import pytest
from chain import ROOT

FOLDER = ROOT / "dataset" / "mock_survey"
sys.path.insert(0, str(FOLDER))

import grid_files  # noqa: E402
import grid_labels  # noqa: E402
import synthesis  # noqa: E402
import synthesize_grid as grids  # noqa: E402
from spectral_ranges import APOGEE, LOG10_STEP, RANGES, RESOLUTION  # noqa: E402

pytestmark = pytest.mark.slow


def fake_spectrum(labels):
    """A spectrum that is cheap and depends on its labels."""
    if labels["LOGG"] > 4.4:
        raise synthesis.SynthesisError("too dense for this test")
    depth = 0.1 + 0.01 * labels["FE_H"]
    return (1 - depth * np.sin(APOGEE.wavelength) ** 2).astype(np.float32)


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "prepare", lambda *a: fake_spectrum)
    return argparse.Namespace(
        range="apogee", physics="nominal", spectra=12, seed=3, output=tmp_path / "g.h5",
        points=None, line_list=None, merge=False, processes=1, nice=0, packages=None,
        cache=tmp_path,
    )  # fmt: skip


def split_by_failure(n, seed=3):
    """Labels that `arguments` draws, and which of them make a spectrum."""
    anchors = grid_labels.read_anchors()
    drawn = [grid_labels.draw_labels(seed, i, anchors) for i in range(n)]
    return drawn, [i for i, d in enumerate(drawn) if d["LOGG"] <= 4.4]


def test_grid_lists_failures_and_resumes(arguments, monkeypatch):
    path, done = grids.make_grid(arguments)
    assert done
    labels, flux, attributes = grids.read_grid(path)
    drawn, good = split_by_failure(12)
    assert 0 < len(good) < 12 and len(labels) == len(good)
    np.testing.assert_allclose(labels[:, 0], [drawn[i]["TEFF"] for i in good])
    np.testing.assert_allclose(flux[0], fake_spectrum(drawn[good[0]]), atol=8e-6)
    failed = grid_files.read_failed(path)
    assert sorted(failed) == sorted(set(range(12)) - set(good))
    assert "too dense" in next(iter(failed.values())) and attributes["seed"] == 3
    assert json.loads(attributes["arguments"])["spectra"] == 12

    # Lose one spectrum and damage another: only these two and the failed are run again.
    parts = path.with_suffix(".parts")
    grids.part_path(parts, good[0]).unlink()
    grids.part_path(parts, good[1]).write_bytes(b"half")
    ran = []
    original = grids.run_tasks
    monkeypatch.setattr(
        grids, "run_tasks", lambda tasks, *a: ran.extend(t[0] for t in tasks) or original(tasks, *a)
    )
    assert grids.make_grid(arguments)[1]
    assert sorted(ran) == sorted({*good[:2], *(set(range(12)) - set(good))})
    np.testing.assert_array_equal(grids.read_grid(path)[1], flux)


def test_merging_keeps_what_is_known_of_failures(arguments):
    path, _ = grids.make_grid(arguments)
    failed = grid_files.read_failed(path)
    path.unlink()
    arguments.merge, arguments.spectra = True, None
    assert grids.make_grid(arguments) == (path, True)
    assert grid_files.read_failed(path) == failed and failed
    grids.read_grid(path)  # finished


def test_merging_never_loses_spectra_of_a_grid(arguments):
    path, _ = grids.make_grid(arguments)
    whole = path.read_bytes()
    _, good = split_by_failure(12)
    grids.part_path(path.with_suffix(".parts"), good[0]).write_bytes(b"half")
    arguments.merge = True
    with pytest.raises(grids.GridError, match=f"holds {len(good)} spectra.*only {len(good) - 1}"):
        grids.make_grid(arguments)
    assert path.read_bytes() == whole
    arguments.merge = False
    assert grids.make_grid(arguments)[1]


def test_failure_is_forgotten_when_the_spectrum_is_made(arguments, monkeypatch):
    grids.make_grid(arguments)
    drawn, _ = split_by_failure(12)
    monkeypatch.setattr(grids, "prepare", lambda *a: lambda labels: fake_spectrum({"LOGG": 0, **{
        "FE_H": labels["FE_H"]}}))  # fmt: skip
    path, done = grids.make_grid(arguments)
    assert done and grid_files.read_failed(path) == {}
    assert len(grids.read_grid(path)[0]) == len(drawn)
    assert not list(path.with_suffix(".parts").glob("*.failed"))


def test_grid_that_is_not_complete_ends_with_an_error(arguments, monkeypatch, capsys):
    monkeypatch.setattr(grids, "run_tasks", lambda *a: None)  # as if spectra were lost
    options = ["--spectra", "4", "--seed", "3", "--nice", "0"]
    options += ["--output", str(arguments.output)]
    with pytest.raises(SystemExit) as stop:
        grids.main(options)
    assert "not complete" in stop.value.code
    assert "0 of 4 spectra, 0 failed, 4 missing" in capsys.readouterr().out
    grids.main([*options, "--merge"])  # writes what there is
    assert not grids.read_grid(arguments.output, allow_incomplete=True)[2]["complete"]


def test_longer_grid_has_the_shorter_as_prefix(arguments):
    short = grids.read_grid(grids.make_grid(arguments)[0])[0]
    arguments.spectra = 18
    longer = grids.read_grid(grids.make_grid(arguments)[0])[0]
    np.testing.assert_array_equal(longer[: len(short)], short)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("noted", [True, False])
def test_grids_do_not_shrink(arguments, merge, noted):
    path, _ = grids.make_grid(arguments)
    whole = path.read_bytes()
    if not noted:  # as in folders of older versions: the grid itself says it
        (path.with_suffix(".parts") / "size.json").unlink()
    arguments.spectra, arguments.merge = 4, merge
    with pytest.raises(grids.GridError, match="12 spectra and would shrink to 4"):
        grids.make_grid(arguments)
    assert path.read_bytes() == whole


def test_parts_of_other_settings_are_not_mixed(arguments):
    grids.make_grid(arguments)
    arguments.seed = 4
    with pytest.raises(grids.GridError, match="other settings"):
        grids.make_grid(arguments)


def test_files_of_another_run_are_left_alone(arguments):
    parts = arguments.output.with_suffix(".parts")
    parts.mkdir()
    theirs = parts / "000001.npz.another-machine.7.partial"
    theirs.write_bytes(b"being written")
    grids.make_grid(arguments)
    assert theirs.read_bytes() == b"being written"


def test_unfinished_grid_is_named(arguments):
    arguments.spectra = 6
    grids.make_grid(arguments)
    arguments.spectra, arguments.merge = 12, True
    path, done = grids.make_grid(arguments)
    assert not done
    with pytest.raises(grids.GridError, match="not finished"):
        grids.read_grid(path)
    assert len(grids.read_grid(path, allow_incomplete=True)[0]) > 0


def test_damaged_grids_are_recognised(arguments, tmp_path):
    path, _ = grids.make_grid(arguments)
    whole = path.read_bytes()
    cut = tmp_path / "cut.h5"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(grids.GridError, match=r"cut\.h5"):
        grids.read_grid(cut)
    with grid_files.h5py.File(path) as file:
        offset = file["flux"].id.get_chunk_info(0).byte_offset
    flipped = bytearray(whole)
    flipped[offset + 100] ^= 255
    bad = tmp_path / "bad.h5"
    bad.write_bytes(bytes(flipped))
    with pytest.raises(grids.GridError, match=r"bad\.h5"):
        grids.read_grid(bad)
    half = tmp_path / "half.h5"
    half.write_bytes(whole)
    with grid_files.h5py.File(half, "a") as file:
        del file.attrs["complete"]
    with pytest.raises(grids.GridError, match="half-written"):
        grids.read_grid(half)
    with pytest.raises(FileNotFoundError):
        grids.read_grid(tmp_path / "absent.h5")


def test_no_damage_changes_what_is_read(arguments, tmp_path):
    # Bytes that mean nothing may change; whatever is read is as it was written.
    arguments.spectra = 3
    path, _ = grids.make_grid(arguments)
    whole = path.read_bytes()
    labels, flux, attributes = grids.read_grid(path)
    text = "sha256", "TEFF", "Mg_FE", "step_angstrom", "anchors"
    places = {whole.find(t.encode()) + k for t in text for k in (0, 3)}
    for number in (APOGEE.windows[0].start, LOG10_STEP, RESOLUTION):
        places.add(whole.find(np.float64(number).tobytes()) + 4)
    places |= set(np.random.default_rng(0).integers(0, len(whole), 300).tolist())
    bad, recognised = tmp_path / "bad.h5", 0
    for place in sorted(places - {-1}):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        bad.write_bytes(flipped)
        try:
            read = grids.read_grid(bad)
        except grids.GridError:
            recognised += 1
            continue
        np.testing.assert_array_equal(read[0], labels)
        np.testing.assert_array_equal(read[1], flux)
        assert repr(read[2]) == repr(attributes)
        assert grid_files.read_failed(bad) == grid_files.read_failed(path)
    assert recognised > 100


def test_grids_of_the_older_layout_are_read(arguments, tmp_path):
    path, _ = grids.make_grid(arguments)
    labels, flux, attributes = grids.read_grid(path)
    old = tmp_path / "old.h5"
    with grid_files.h5py.File(old, "w") as file:
        file["labels"], file["flux"], file["index"] = labels, flux, np.arange(len(labels))
        file["labels"].attrs["label_names"] = list(synthesis.LABEL_NAMES)
        text = json.dumps([3, "too dense"])
        file["failed"] = np.array([text], dtype=grid_files.h5py.string_dtype())
        for name, value in attributes.items():
            file.attrs[name] = list(value) if name == "label_names" else value
    again = grids.read_grid(old)
    np.testing.assert_array_equal(again[1], flux)
    assert repr(sorted(again[2].items())) == repr(sorted(attributes.items()))
    assert grid_files.read_failed(old) == {3: "too dense"}


def test_full_disk_leaves_no_partial_file(arguments, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match=r"disk is full.*000000\.npz needs"):
            grids.write_part(tmp_path / "000000.npz", dict.fromkeys(synthesis.LABEL_NAMES, 0.0), 0)
    labels, flux = np.zeros((2, 21), np.float32), np.ones((2, APOGEE.pixels), np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(grid_files.h5py.Group, "create_dataset", full)
        with pytest.raises(OSError, match=r"disk is full.*g\.h5 needs"):
            grids.write_grid(tmp_path / "g.h5", np.arange(2), labels, flux, {}, {}, True)
    assert not list(tmp_path.glob("*"))


def test_points_from_a_table(arguments, tmp_path):
    arguments.points = tmp_path / "points.csv"
    arguments.points.write_text("TEFF,LOGG,FE_H\n5000,3.0,0.0\n5000,3.0,0.3\n")
    arguments.output = None
    labels, flux, _ = grids.read_grid(grids.make_points(arguments)[0])
    assert labels.shape == (2, 21) and np.any(flux[0] != flux[1])


def test_grid_of_several_windows_leaves_cool_stars_out(arguments, monkeypatch):
    hermes = RANGES["hermes"]

    def spectrum(labels):
        assert labels["TEFF"] >= hermes.least_teff
        return np.cos(hermes.wavelength).astype(np.float32)

    monkeypatch.setattr(grids, "prepare", lambda *a: spectrum)
    arguments.range = "hermes"
    path, done = grids.make_grid(arguments)
    drawn, _ = split_by_failure(12)
    warm = [d["TEFF"] for d in drawn if d["TEFF"] >= hermes.least_teff]
    labels, flux, attributes = grids.read_grid(path)
    assert done and 0 < len(warm) < 12
    np.testing.assert_allclose(labels[:, 0], warm)
    assert flux.shape == (len(warm), hermes.pixels)
    assert attributes["n_left_out"] == 12 - len(warm) and attributes["range"] == "hermes"
    assert len(attributes["log10_wavelength_start"]) == len(attributes["window_pixels"]) == 4
    arguments.range = "rvs"
    with pytest.raises(grids.GridError, match="other settings"):
        grids.make_grid(arguments)


def test_a_grid_says_how_finely_it_is_sampled(arguments, monkeypatch):
    band = RANGES["low_resolution"]
    monkeypatch.setattr(grids, "prepare", lambda *a: lambda labels: np.cos(band.wavelength))
    arguments.range = "low_resolution"
    attributes = grids.read_grid(grids.make_grid(arguments)[0])[2]
    assert (attributes["log10_wavelength_step"], attributes["resolution"]) == (1.8e-5, 10_000.0)
