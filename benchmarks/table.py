"""Write the tables of README.md and SCALING.md here from the newest stored results.

Those of a CPU are written for each kind of processor that there are results of.

A table stands between `<!-- NAME -->` and `<!-- end of NAME -->`; tables whose results are not
there stay as they are.

    python -m benchmarks --suite cpu
    python -m benchmarks.table
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import sweep
from benchmarks.common import RESULTS
from benchmarks.training import EPOCHS, STARS
from stellarperceptron.network.config import ModelConfig
from stellarperceptron.training.loop import PEAK_FLOPS
from stellarperceptron.utils.data_utils import atomic_output

HERE = Path(__file__).resolve().parent
# Spectra, and pixels of each: all of DR17; DESI's three arms on one grid of 0.8 Angstrom, 3600 to
# 9824; Gaia's XP spectra sampled every 2 nm, 336 to 1020.
SURVEYS = {
    "APOGEE": (700_000, 7514),
    "DESI": (10_000_000, 7781),
    "Gaia XP": (200_000_000, 343),
}
ESTIMATED_SHARE = 0.25  # of a GPU's peak, where none was measured


def stored(benchmark: str, part: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Stored records of a benchmark, of full size, whose results have a part; newest first."""
    records = []
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        results = content["results"]
        if content["benchmark"] == benchmark and results.get(part) and not results.get("small"):
            records.append((content["date"], path.stat().st_mtime, path.name, content))
    return [record[-1] for record in sorted(records, key=lambda r: r[:3], reverse=True)]


def newest_of_each(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first record of each kind of processor: its name and its vector instructions."""
    kinds: dict[tuple, dict[str, Any]] = {}
    for record in records:
        machine = record["hardware"]
        kinds.setdefault((machine["processor"], machine.get("instructions")), record)
    return list(kinds.values())


def number(value: float | None) -> str:
    """Three digits, thousands set apart; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours, days or years, whichever reads best."""
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{number(seconds / length)} {unit}"
    return f"{number(seconds)} s"


def markdown(head: list[str], lines: Iterable[list[Any]]) -> str:
    """A table; numbers as `number` writes them."""
    rows = [head, ["---"] * len(head)]
    rows += [[v if isinstance(v, str) else number(v) for v in line] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def percent(share: float) -> str:
    """Share as per cent."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def suite_table(record: dict[str, Any]) -> str:
    """All rows of a suite, and below them what they are compared with."""
    results = record["results"]
    rows = results["rows"]
    table = markdown(
        ["stars/s", "ours", "published manner", "ratio", "floor", "share of the floor"],
        (
            [
                name,
                1 / line["ours_s_per_star"],
                1 / line["published_s_per_star"] if line["published_s_per_star"] else None,
                line["ratio"],
                1 / line["floor_s_per_star"],
                percent(line["share_of_floor"]),
            ]
            for name, line in rows.items()
        ),
    )
    limits = next(iter(rows.values()))["ceilings"]
    about = (
        f"{machine(record)}, PyTorch {record['hardware']['torch']}, {record['date']}; "
        f"ceilings {limits['flop_per_s'] / 1e9:,.0f} GFLOP/s, "
        f"{limits['bytes_per_s'] / 1e9:.3g} GB/s copied (they are measured anew for each line). "
        f"`{record['command']}`"
    )
    notes = "\n".join(
        f"- {name} ({line['clock']}): published manner: {line['published_manner']}; floor: "
        f"{line['floor_of']}."
        for name, line in rows.items()
    )
    extras = [
        f"- {name}: MFU {percent(line['mfu'])}"
        + (
            f", 325 epochs of 92,472 stars in {line['minutes_for_325_epochs_of_92472_stars']:.0f} "
            "minutes (a measured epoch times 325)."
            if "minutes_for_325_epochs_of_92472_stars" in line
            else "."
        )
        for name, line in rows.items()
        if line.get("mfu")
    ]
    failed = [f"- {name} failed: {error}" for name, error in results["failed"].items()]
    return "\n".join([about, "", table, "", notes, *extras, *failed])


def options_table(record: dict[str, Any]) -> str:
    """Stars a second by work, threads and precision, and their ratio to the first."""
    options, first = record["results"]["options"], {}
    for case in options:
        first.setdefault(case["work"], case["s_per_star"])
    table = markdown(
        ["", "threads", "precision", "stars/s", "ratio"],
        (
            [
                case["work"],
                str(case["threads"]),
                case["precision"],
                1 / case["s_per_star"],
                first[case["work"]] / case["s_per_star"],
            ]
            for case in sorted(options, key=lambda case: case["work"], reverse=True)
        ),
    )
    return f"{machine(record)}, {record['date']}\n\n{table}"


def machine(record: dict[str, Any]) -> str:
    """Processor or GPU, and what multiplies on it."""
    hardware = record["hardware"]
    if hardware["gpu"]:
        return hardware["gpu"]
    kind = hardware.get("instructions")
    return hardware["processor"] + (f" ({kind})" if kind else "")


def scaling_tables(scaling: dict[str, Any]) -> dict[str, str]:
    """Tables of what `benchmarks.scaling` measured, by marker."""
    reference = scaling["reference"]
    efficient = reference["efficient"]
    rate = reference["flop_per_star"] / efficient["s_per_star"]
    gradients = reference["parameter_bytes"]

    def weights(case: dict[str, Any]) -> int:
        """Weights of a head of a star, their gradients and those of the scores, float32."""
        return 3 * 4 * case["context"] * (case["context"] + 1)

    activations = efficient["peak_bytes"] - gradients - weights(reference)
    per_token = activations / reference["stars"] / reference["context"]

    def line(case: dict[str, Any]) -> list[Any]:
        linear = gradients + per_token * case["stars"] * case["context"]
        return [
            f"{case['context']:,}",
            case["stars"],
            case["labels"],
            case["flop_per_star"] / 1e9,
            1e3 * case["efficient"]["s_per_star"],
            1e3 * case["flop_per_star"] / rate,
            1e3 * case["plain"]["s_per_star"],
            case["efficient"]["peak_bytes"] / 1e6,
            (linear + weights(case)) / 1e6,
            case["plain"]["peak_bytes"] / 1e6,
            max(linear, case["stars"] * case["heads"] * weights(case)) / 1e6,
        ]

    head = ["context", "stars", "labels", "GFLOP a star", "ms a star", "expected", "plain: ms"]
    head += ["MB", "expected", "plain: MB", "expected"]
    first = scaling["processes"][0]
    processes = markdown(
        ["processes", "stars/s", "ratio", "gradients summed a step [MB]"],
        (
            [
                str(case["processes"]),
                case["stars_per_s"],
                case["stars_per_s"] / first["stars_per_s"],
                4 * case["parameters"] / 1e6 if case["processes"] > 1 else 0.0,
            ]
            for case in scaling["processes"]
        ),
    )
    tables = {name: markdown(head, map(line, scaling[name])) for name in ("context", "batch")}
    tables["labels"] = markdown(head, map(line, scaling["labels"]))
    return {**tables, "processes": processes}


def surveys_table(cpu: dict[str, Any], gpu: dict[str, Any] | None) -> str:
    """Cost of whole surveys, computed from the measured rates; none was run."""
    config, peak = ModelConfig(), PEAK_FLOPS["H100"]
    rows = cpu["results"]["rows"]
    core = {
        "training": config.flops_per_star(training=True)
        / rows["training step, paper's model"]["ours_s_per_star"],
        "inference": 8
        * config.flops_per_star(labels=5)
        / rows["inference, 3,757 pixels, 5 labels"]["ours_s_per_star"],
    }
    name, device = "H100, estimate", dict.fromkeys(core, ESTIMATED_SHARE * peak)
    if gpu is not None:
        found = gpu["results"]["rows"]
        epochs = [v["ours_s_per_star"] for k, v in found.items() if k.startswith("epoch")]
        predicted = [v["ours_s_per_star"] for k, v in found.items() if k.startswith("inference")]
        name = f"{gpu['hardware']['gpu']}, measured rate"
        device = {
            "training": config.flops_per_star(training=True) / min(epochs),
            "inference": 8 * config.flops_per_star(labels=5) / min(predicted),
        }
    lines = []
    for survey, (spectra, pixels) in SURVEYS.items():
        tokens = min(pixels, config.context_length)
        visits = max(EPOCHS * STARS, spectra)
        training = visits * config.flops_per_star(tokens, 5, training=True)
        patches = -(-pixels // config.context_length)
        inference = spectra * patches * config.flops_per_star(-(-pixels // patches), 5)
        lines.append(
            [
                survey,
                f"{spectra:,}",
                f"{2 * spectra * pixels / 1e9:,.0f} GB",
                f"{visits:.2g}",
                f"{training:.2g}",
                duration(training / device["training"]),
                duration(training / core["training"]),
                f"{inference:.2g}",
                duration(inference / device["inference"]),
                duration(inference / core["inference"]),
            ]
        )
    head = ["survey", "spectra", "float16 fluxes", "star visits", "training [FLOP]"]
    head += [f"one {name}", "one CPU core", "inference [FLOP]", f"one {name}", "one CPU core"]
    about = (
        f"Rates: {name} {device['training'] / 1e12:,.3g} TFLOP/s in training and "
        f"{device['inference'] / 1e12:,.3g} TFLOP/s in inference; one core of "
        f"{cpu['hardware']['processor']} {core['training'] / 1e9:.3g} and "
        f"{core['inference'] / 1e9:.3g} GFLOP/s, measured."
    )
    return f"{about}\n\n{markdown(head, lines)}"


def sweep_table(record: dict[str, Any]) -> str:
    """Recipes in the order in which they reach the published one's least loss."""
    recipes = record["results"]["recipes"]
    goal = sweep.goal(recipes)
    if goal is None:
        raise ValueError("the sweep has no published recipe to compare with")

    def when(recipe: dict[str, Any], what: str) -> float | None:
        return sweep.reached(recipe, goal, what)

    lines = [
        [
            ("published, " if recipe["name"] == "published" else "") + str(recipe["batch"]),
            f"{recipe['rate']:g}",
            recipe["labels"],
            f"{recipe['warmup']:.0%}" if recipe["warmup"] else "none",
            f"{recipe['visits'][-1]:,}",
            f"{recipe['loss'][-1]:.3f}".replace("-", "−"),
            when(recipe, "visits"),
            when(recipe, "cpu_s"),
        ]
        for recipe in sorted(recipes, key=lambda r: when(r, "visits") or math.inf)
    ]
    head = ["batch", "learning rate", "labels a star", "warm-up", "star visits", "last loss"]
    head += ["visits until the published loss", "CPU seconds"]
    least = f"{goal:.3f}".replace("-", "−")
    about = (
        f"{machine(record)}, one thread, {record['date']}; "
        f"{record['results']['stars']:,} mock stars, {record['results']['dim']} dimensions, 64 "
        f"one-pixel tokens; the published recipe's least loss is {least} a label. The last call: "
        f"`{record['command']}`."
    )
    return f"{about}\n\n{markdown(head, lines)}"


def width_table(records: list[dict[str, Any]]) -> str:
    """Last loss by learning rate and dimensions of a token, of sweeps that differ in these."""
    losses = {
        (record["results"]["dim"], recipe["rate"]): recipe["loss"][-1]
        for record in records
        for recipe in record["results"]["recipes"]
    }
    rates = sorted({rate for _, rate in losses})
    lines = (
        [str(dim)]
        + [
            f"{losses[dim, rate]:.3f}".replace("-", "−") if (dim, rate) in losses else "–"
            for rate in rates
        ]
        for dim in sorted({dim for dim, _ in losses})
    )
    return markdown(["dimensions", *(f"rate {rate:g}" for rate in rates)], lines)


def fill(text: str, name: str, table: str) -> str:
    """Put a table between its markers.

    Raises
    ------
    ValueError
        The text has no such markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"there are no markers {begin} and {end}")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def write(path: Path, tables: dict[str, str]) -> None:
    """Fill all tables of a page."""
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = fill(text, name, table)
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main() -> None:
    """Read the newest records, write both pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=Path, default=HERE, help="folder of the two pages")
    arguments = parser.parse_args()
    cpu, gpu = newest_of_each(stored("suite-cpu", "rows")), stored("suite-gpu", "rows")
    if not cpu + gpu:
        sys.exit(f"there are no results in {RESULTS}: python -m benchmarks --suite cpu")
    pages = {}
    if cpu:
        pages["cpu"] = "\n\n".join(map(suite_table, cpu))
    if gpu:
        pages["gpu"] = suite_table(gpu[0])
    options = newest_of_each(stored("suite-cpu", "options"))
    if options:
        pages["options"] = "\n\n".join(map(options_table, options))
    sweeps = stored("sweep", "recipes")
    compared = [r for r in sweeps if sweep.goal(r["results"]["recipes"]) is not None]
    if compared:
        pages["sweep"] = sweep_table(compared[0])
    others = [r for r in sweeps if r not in compared]
    for name, bins in (("width", False), ("width-bins", True)):
        chosen = [r for r in others if (r["results"].get("pixels_per_token", 1) > 1) == bins]
        if chosen:
            pages[name] = width_table(chosen)
    write(arguments.pages / "README.md", pages)

    grown = stored("suite-cpu", "scaling")
    if grown:
        tables = scaling_tables(grown[0]["results"]["scaling"])
        if {"training step, paper's model", "inference, 3,757 pixels, 5 labels"} <= set(
            grown[0]["results"]["rows"]
        ):  # an interrupted run may lack them
            tables["surveys"] = surveys_table(grown[0], gpu[0] if gpu else None)
        write(arguments.pages / "SCALING.md", tables)
    print("written from", *(r["command"] for r in cpu + gpu[:1]), sep="\n  ")


if __name__ == "__main__":
    main()
