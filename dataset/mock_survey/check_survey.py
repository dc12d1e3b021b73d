"""
Check the mock survey: against direct syntheses, and against the published survey.

``responses`` runs Synspec at five label points, changes one label at a time and compares with the
emulators; it also compares the Sun. ``population`` compares the labels, ``medians`` the median and
the scale of every pixel, with those published for APOGEE DR17 (its arrays of labels, and the
configuration file whose ``norm_config`` has the medians). ``stars`` draws three stars. ``cost``
makes a survey of the paper's size and measures time and memory. All results are printed and stored
in ``checks.json``.

    python dataset/mock_survey/check_survey.py responses --packages folder/of/the/packages
    python dataset/mock_survey/check_survey.py population --labels labels_train.npy
    python dataset/mock_survey/check_survey.py medians --config epoch_325/config.json
    python dataset/mock_survey/check_survey.py stars --lines notable_spectral_lines.csv
    python dataset/mock_survey/check_survey.py cost --output runs/paper.h5 --workers 2
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fit_emulator import OBSERVED, project_spectra
from matplotlib.figure import Figure

from stellarperceptron.data.apogee.continuum import normalize
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, CHIP_PIXELS
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.mock.observation import (
    LSF_GROUPS,
    broadening_index,
    broadening_velocity,
)
from stellarperceptron.data.mock.population import all_labels
from stellarperceptron.data.mock.stellar_labels import LABELS, standard_labels
from stellarperceptron.data.mock.survey import BLOCK, MockSurvey
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.labels import label as label_named
from stellarperceptron.utils.arguments import output_file, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.plotting import (
    COLORS,
    PAGE_WIDTH,
    axis_label,
    mark_gaps,
    save_figure,
    use_style,
)

HERE = Path(__file__).parent
POINTS = {
    "giant": {"TEFF": 4600, "LOGG": 2.3, "FE_H": -0.2, "O_FE": 0.1, "MG_FE": 0.1},
    "dwarf": {"TEFF": 5600, "LOGG": 4.4, "FE_H": -0.1, "O_FE": 0.05, "MG_FE": 0.05},
    "cool giant": {"TEFF": 3900, "LOGG": 1.1, "FE_H": -0.1, "O_FE": 0.05, "MG_FE": 0.05},
    "metal-poor": {"TEFF": 4700, "LOGG": 1.8, "FE_H": -1.6, "O_FE": 0.3, "MG_FE": 0.3},
    "alpha-rich": {"TEFF": 4700, "LOGG": 2.5, "FE_H": -0.5, "O_FE": 0.3, "MG_FE": 0.3},
}
CHANGES = {"MG_FE": 0.3, "O_FE": 0.3, "FE_H": 0.3, "TEFF": 200.0, "LOGG": 0.5}
SUN = {"TEFF": 5772, "LOGG": 4.44, "FE_H": 0.0, "O_FE": 0.0, "MG_FE": 0.0}
PERCENTILES = (1, 5, 16, 50, 84, 95, 99)
SURVEY_COLORS = {"nominal": "blue", "nature": "vermilion", "DR17": "black"}
CAPTIONS = {
    "responses": (
        "Change of the flux of a giant when one label changes by what is written beside the axis, "
        "from direct synthesis (Synspec, thick) and from the emulator {physics} (thin), over 400 "
        "pixels around the largest change."
    ),
    "label_distribution": (
        "Labels of DR17's training stars and of the mock survey. Left and middle: number of stars "
        "in each cell, on a logarithmic colour scale; cells without stars are white. Right: "
        "normalized histograms of DR17 (black) and of the mock survey (orange)."
    ),
    "pixel_medians": (
        "Median of the normalized flux at each pixel over the survey: the emulators nominal (blue) "
        "and nature (vermilion), and DR17 (black). Shaded: gaps between the detectors. Bottom: "
        "mad_std of each pixel over the stars, mock survey against DR17; equal on the grey line."
    ),
    "stars": (
        "Three stars of the mock survey: the observed spectrum (orange, thick), with noise and bad "
        "pixels, and the synthetic one of the same star (blue, thin), in two ranges. Dotted: lines "
        "that the SpectraFM paper names, with their elements. Shaded: wavelengths between two "
        "detectors, where there is no flux."
    ),
}


def store(name: str, values: dict | list, path: Path = HERE / "checks.json") -> None:
    """Print results and store them beside earlier ones."""
    print(json.dumps({name: values}, indent=1))
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = values
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def save(figure: Figure, name: str, **values: str) -> None:
    """Save a figure of the README with its caption."""
    save_figure(figure, HERE / "figures" / f"{name}.png", CAPTIONS[name].format(**values))


# ------------------------------------------------------------------------------- direct syntheses


def responses(args: argparse.Namespace) -> None:
    """Change of the flux for a change of one label, emulated and computed directly."""
    import synthesize_grid  # compiles Synspec when it is first used
    from packages import default_cache

    results, drawn = {}, {}
    for physics in args.physics:
        synthesizer = synthesize_grid.prepare(physics, args.cache or default_cache(), args.packages)
        results[physics], changes = compare_responses(synthesizer, Emulator.load(physics), POINTS)
        drawn |= {(physics, *key): value for key, value in changes.items()}
    store("responses", results)
    draw_responses(drawn, args.physics[0])


def compare_responses(
    synthesizer, emulator: Emulator, points: dict[str, dict], band: str = "apogee"
) -> tuple[dict, dict]:
    """
    Compare an emulator with direct syntheses at points where one label at a time is changed.

    Returns
    -------
    results : dict
        rms of the spectra at the points and at the Sun, correlation and slope of the responses,
        and the worst of these.
    changes : dict
        (point, label) -> direct and emulated change of the flux at the pixels of `OBSERVED`.
    """
    from synthesis import LABEL_NAMES as GRID_NAMES

    cases = {("sun", ""): SUN}
    for point, labels in points.items():
        cases[(point, "")] = labels
        for name, change in CHANGES.items():
            cases[(point, name)] = {**labels, name: labels[name] + change}
    values = {key: complete_point(labels, points.get(key[0], SUN)) for key, labels in cases.items()}
    direct = []
    for row in values.values():
        labels = dict(zip(LABELS, row.tolist(), strict=True))
        alpha = 0.5 * (labels["O_FE"] + labels["MG_FE"])
        labels["ALPHA_M"] = min(max(alpha, -0.2), 0.6)
        direct.append(synthesizer({name: labels[name.upper()] for name in GRID_NAMES}))
    direct = project_spectra(np.stack(direct), emulator.grid, band)
    emulated = emulator.flux(torch.stack(list(values.values())), *OBSERVED[band]).numpy()
    spectra = {key: (direct[i], emulated[i]) for i, key in enumerate(values)}
    table, changes = {}, {}
    for point in points:
        base = spectra[(point, "")]
        for name in CHANGES:
            true, found = (spectra[(point, name)][k] - base[k] for k in (0, 1))
            changes[(point, name)] = (true, found)
            table[f"{point}, {name}"] = agreement(true, found)
    rms = {
        key[0]: round(float(np.sqrt(np.mean((a - b) ** 2))), 5)
        for key, (a, b) in spectra.items()
        if not key[1]
    }
    worst = min(table.items(), key=lambda item: item[1][0])
    return {"rms": rms, "correlation and slope": table, "worst": worst}, changes


def agreement(true: np.ndarray, found: np.ndarray) -> list[float]:
    """Correlation of two responses, and slope of the second on the first."""
    correlation, slope = np.corrcoef(true, found)[0, 1], true @ found / (true @ true)
    return [round(float(correlation), 4), round(float(slope), 3)]


def complete_point(labels: dict, base: dict) -> torch.Tensor:
    """All labels of a point; those not given are taken from the point `base`."""
    full = standard_labels(base)[0]
    for name, value in labels.items():
        full[LABELS.index(name)] = value
    return full


def draw_responses(drawn: dict, physics: str) -> None:
    """Draw emulated and direct responses of the giant where each is largest."""
    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, 5.5), layout="constrained")
    axes = figure.subplots(len(CHANGES), 1)
    for axis, (name, change) in zip(axes, CHANGES.items(), strict=True):
        true, found = drawn[(physics, "giant", name)]
        peak = np.abs(true).argmax()
        chip = next(c for c in CHIP_PIXELS.values() if c.start <= peak < c.stop)
        centre = int(np.clip(peak, chip.start + 200, chip.stop - 200))
        part = slice(centre - 200, centre + 200)
        wavelength, entry = APOGEE_WAVELENGTH[part], label_named(name)
        axis.plot(wavelength, true[part], color=COLORS["black"], lw=1.4, label="Synspec")
        axis.plot(wavelength, found[part], color=COLORS["orange"], lw=0.7, label="emulator")
        axis.set_ylabel(f"change of flux\n{entry.symbol} {change:+g} {entry.unit}")
        axis.margins(x=0)
    axes[0].legend(ncol=2, loc="lower left")
    axes[-1].set_xlabel("vacuum wavelength [Å]")
    save(figure, "responses", physics=physics)


# ------------------------------------------------------------------------------------- population


def population(args: argparse.Namespace) -> None:
    """Labels of the mock survey beside the real ones."""
    real = np.load(args.labels).astype(np.float64)
    survey = MockSurvey(args.seed)
    blocks = -(-args.stars // BLOCK)
    draws, missing = [], []
    for index in range(blocks):  # exactly the survey's stars: these numbers are drawn first
        rng = np.random.default_rng([args.seed, 0, index])
        true = survey.labels(BLOCK, rng)
        draws.append(true + survey.population.errors(true, rng) * rng.standard_normal(true.shape))
        missing.append(survey.population.without_abundances(true, rng))
    mock = np.concatenate(draws)[: args.stars]
    missing = np.concatenate(missing)[: args.stars]
    complete = real[np.isfinite(real).all(1)]
    census = {}
    for i, name in enumerate(PUBLISHED_LABELS):
        a, b = (np.nanpercentile(x[:, i], PERCENTILES) for x in (mock, real))
        span = b[-1] - b[0]
        census[name] = {
            "mock": a.round(3).tolist(),
            "DR17": b.round(3).tolist(),
            "largest difference over range": round(float(np.abs(a - b).max() / span), 4),
        }
    shares = [float(np.nanmean(x[np.isfinite(x[:, 4]), 4] < -1.0)) for x in (mock, real)]
    census["share [Fe/H] < -1"] = {"mock": round(shares[0], 4), "DR17": round(shares[1], 4)}
    census["share without abundances"] = {
        "mock": round(float(missing.mean()), 4),
        "mock, 10,000 stars": round(float(missing[:10_000].mean()), 4),
        "DR17": round(float(np.isnan(real[:, 4]).mean()), 4),
    }
    correlation = [np.corrcoef(x.T)[np.triu_indices(5, 1)].round(3) for x in (mock, complete)]
    names = [
        f"{PUBLISHED_LABELS[i]} {PUBLISHED_LABELS[j]}"
        for i, j in zip(*np.triu_indices(5, 1), strict=True)
    ]
    census["correlations (mock, DR17)"] = {
        n: [float(a), float(b)] for n, a, b in zip(names, *correlation, strict=True)
    }
    store("population", census)

    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, 4.3), layout="constrained")
    axes = figure.subplots(2, 3)
    cells = {}
    for row, (name, x) in enumerate((("DR17", complete), ("mock survey", mock))):
        pairs = ((0, 1, (7200, 3000), (5.2, -0.6)), (4, 3, (-2.5, 0.6), (-0.3, 0.6)))
        for column, (i, j, xlim, ylim) in enumerate(pairs):
            axis, box = axes[row, column], (sorted(xlim), sorted(ylim))
            *_, cells[row, column] = axis.hist2d(x[:, i], x[:, j], 160, range=box, norm="log")
            axis.set(xlim=xlim, ylim=ylim, title=name)
            axis.set_xlabel(axis_label(PUBLISHED_LABELS[i]))
            axis.set_ylabel(axis_label(PUBLISHED_LABELS[j]))
            figure.colorbar(cells[row, column], ax=axis, label="stars in a cell")
    for axis, i in ((axes[0, 2], 4), (axes[1, 2], 2)):
        bins = np.linspace(*np.nanpercentile(real[:, i], [0.01, 99.99]), 80)
        for x, name, color in ((real, "DR17", "black"), (mock, "mock survey", "orange")):
            style = {"histtype": "step", "label": name, "color": COLORS[color]}
            axis.hist(x[:, i], bins, density=True, log=True, **style)
        axis.set(xlabel=axis_label(PUBLISHED_LABELS[i]), ylabel="density [1/dex]")
        axis.legend(loc="lower center")
    save(figure, "label_distribution")


# ---------------------------------------------------------------------------------------- medians


def mad_std(spectra: np.ndarray) -> np.ndarray:
    """Standard deviation of each pixel from its median absolute deviation."""
    return 1.482602 * np.nanmedian(np.abs(spectra - np.nanmedian(spectra, axis=0)), axis=0)


def medians(args: argparse.Namespace) -> None:
    """Median and scale (mad_std) of every pixel over the survey, beside the published ones."""
    norm = json.loads(args.config.read_text(encoding="utf-8-sig"))["norm_config"]
    published = {
        "median": np.array(norm["_input_mean"], dtype=np.float64)[1:7515],
        "spread": np.array(norm["_input_std"], dtype=np.float64)[1:7515],
    }
    survey, pixels, results = MockSurvey(args.seed), {}, {}
    for physics, bank in (("nominal", survey.nominal), ("nature", survey.nature)):
        spectra = []
        for index in range(-(-args.stars // BLOCK)):
            rng = np.random.default_rng([args.seed, 7, index])
            true = survey.labels(BLOCK, rng)
            full = all_labels(true, rng, survey.low, survey.high)
            broadening = broadening_index(true, broadening_velocity(true, rng))
            group = rng.integers(0, len(LSF_GROUPS), BLOCK)
            coefficients = bank.emulator.coefficients(full)
            spectra.append(normalize(bank(coefficients, group, broadening)).numpy())
        spectra = np.concatenate(spectra)[: args.stars]
        pixels[physics] = {"median": np.nanmedian(spectra, axis=0), "spread": mad_std(spectra)}
        results[physics] = {}
        for kind, found in pixels[physics].items():
            difference = found - published[kind]
            results[physics][kind] = {
                "correlation": round(float(np.corrcoef(found, published[kind])[0, 1]), 4),
                "rms": round(float(np.sqrt(np.mean(difference**2))), 5),
            }
        results[physics]["median pixel"] = round(float(np.median(pixels[physics]["median"])), 4)
    store("medians", results)

    wavelength = APOGEE_WAVELENGTH
    windows = ((15200, 15400), (15740, 15800), (16090, 16290), (16700, 16800))
    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, 8), layout="constrained")
    axes = figure.subplots(5, 1)
    for axis, (first, last) in zip(axes, windows, strict=False):
        axis.set_xlim(first, last)
        for name, color in SURVEY_COLORS.items():
            y = published["median"] if name == "DR17" else pixels[name]["median"]
            for chip in CHIP_PIXELS.values():  # no line across the gaps between detectors
                style = {"color": COLORS[color], "lw": 0.6, "label": None if chip.start else name}
                axis.plot(wavelength[chip], y[chip], **style)
        mark_gaps(axis)
        axis.set_ylabel("median flux / continuum")
    axes[0].legend(ncol=3, loc="lower right")
    axes[3].set_xlabel("vacuum wavelength [Å]")
    for name in ("nominal", "nature"):
        style = {"ms": 1.5, "alpha": 0.5, "color": COLORS[SURVEY_COLORS[name]], "mew": 0}
        axes[4].plot(published["spread"], pixels[name]["spread"], ".", rasterized=True, **style)
    axes[4].plot([0, 0.15], [0, 0.15], color=COLORS["grey"], lw=0.6)
    axes[4].set(xlabel="mad_std of flux / continuum, DR17", ylabel="the same, mock survey")
    save(figure, "pixel_medians")


# ------------------------------------------------------------------------------------------ stars


def stars(args: argparse.Namespace) -> None:
    """Draw a giant, a dwarf and a metal-poor star with the notable lines."""
    with open(args.lines, newline="") as file:
        lines = [(float(r["Wavelength"]), r["Element"]) for r in csv.DictReader(file)]
    wavelength = APOGEE_WAVELENGTH
    block = MockSurvey(args.seed).block("train", 0)
    teff, logg, _, _, fe_h = block["labels"].T
    finite = np.isfinite(block["observed"]).mean(1) > 0.98
    kinds = {
        "giant": (np.abs(logg - 2.4) < 0.3) & (np.abs(fe_h) < 0.15),
        "dwarf": (logg > 4.2) & (np.abs(teff - 5700) < 300) & (np.abs(fe_h) < 0.2),
        "metal-poor giant": (fe_h < -1.4) & (logg < 3.0),
    }
    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, 7.2), layout="constrained")
    axes = figure.subplots(6, 1)
    for i, (kind, where) in enumerate(kinds.items()):
        star = int(np.flatnonzero(where & finite)[0])
        for axis, window in ((axes[2 * i], (15150, 15500)), (axes[2 * i + 1], (15730, 16030))):
            inside = (wavelength > window[0]) & (wavelength < window[1])
            for pixels in CHIP_PIXELS.values():  # no line across the gaps between detectors
                part = np.zeros(len(APOGEE_WAVELENGTH), dtype=bool)
                part[pixels] = inside[pixels]
                for name, color, width in (("observed", "orange", 1.2), ("synthetic", "blue", 0.5)):
                    style = {"color": COLORS[color], "lw": width}
                    style["label"] = None if pixels.start else name
                    axis.plot(wavelength[part], block[name][star][part], **style)
            low, high = axis.get_ylim()
            axis.set(xlim=window, ylim=(low, high + 0.2 * (high - low)))
            axis.set_ylabel("flux / continuum")
            mark_gaps(axis)
            for place, element in lines:
                if window[0] < place < window[1]:
                    axis.axvline(place, color=COLORS["grey"], lw=0.5, ls=":")
                    axis.text(place, high + 0.04 * (high - low), element, ha="center")
        axes[2 * i].set_title(
            f"{kind}: {teff[star]:.0f} K, log g {logg[star]:.2f}, [Fe/H] {fe_h[star]:+.2f}, "
            f"[Mg/Fe] {block['labels'][star, 3]:+.2f}",
            loc="left",
        )
        axes[2 * i].legend(ncol=2, loc="lower left")
    axes[-1].set_xlabel("vacuum wavelength [Å]")
    save(figure, "stars")


# ------------------------------------------------------------------------------------------- cost


def cost(args: argparse.Namespace) -> None:
    """Time and memory of one survey; runs are listed one after another."""
    script = HERE.parent / "create_mock_survey.py"
    sizes = ["--stars", str(args.stars), "--test-stars", str(args.test_stars)]
    workers = ["--workers", str(args.workers), "--seed", str(args.seed)]
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, str(script), *sizes, *workers, "--output", str(args.output)], check=True
    )
    seconds = time.perf_counter() - begin
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss [bytes]
    run = {
        "stars": args.stars + args.test_stars,
        "threads": args.workers,
        "cores of the machine": os.cpu_count(),
        "seconds": round(seconds),
        "processor seconds": round(usage.ru_utime + usage.ru_stime),
        "peak memory [GB]": round(usage.ru_maxrss * unit / 1e9, 2),
        "file [GB]": round(args.output.stat().st_size / 1e9, 2),
    }
    path = HERE / "checks.json"
    earlier = json.loads(path.read_text()).get("cost", []) if path.exists() else []
    store("cost", [*earlier, run])


def main() -> None:
    """Read the command line and run one check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    checks = parser.add_subparsers(required=True, metavar="check")
    one = checks.add_parser("responses", help="emulators against direct syntheses")
    one.add_argument("--physics", nargs="+", default=["nominal", "nature"])
    one.add_argument("--packages", type=Path, help="folder with the packages, no download")
    one.add_argument("--cache", type=Path, help="folder for Synspec (default: per user)")
    two = checks.add_parser("population", help="labels against the survey's")
    two.add_argument("--labels", type=Path, required=True, help="(N, 5) array of DR17's labels")
    two.add_argument("--stars", type=int, default=100_000)
    three = checks.add_parser("medians", help="pixels against the survey's")
    three.add_argument("--config", type=Path, required=True, help="JSON with norm_config")
    three.add_argument("--stars", type=int, default=12_288)
    four = checks.add_parser("stars", help="draw three stars")
    four.add_argument("--lines", type=Path, required=True, help="CSV: Wavelength, Element")
    five = checks.add_parser("cost", help="time and memory of the paper's size")
    five.add_argument("--stars", type=int, default=102_747)
    five.add_argument("--test-stars", type=int, default=25_681)
    five.add_argument("--workers", type=int, default=2, help="threads")
    five.add_argument(
        "--output", type=output_file, required=True, help="survey file, which is kept"
    )
    functions = (responses, population, medians, stars, cost)
    for check, function in zip((one, two, three, four, five), functions, strict=True):
        check.add_argument("--seed", type=int, default=1)
        check.set_defaults(function=function)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.function(args)


if __name__ == "__main__":
    run_script(main)
