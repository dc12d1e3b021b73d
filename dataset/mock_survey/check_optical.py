"""
Check the syntheses and emulators of the HERMES windows and of Gaia's RVS.

``responses`` compares an emulator with direct syntheses, as ``check_survey.py`` does it in the H
band. ``benchmarks`` synthesizes Gaia benchmark stars and compares them with real spectra in the
four HERMES windows. Its folder has ``spectra.npz``: NARVAL spectra at R of about 28,000, air
wavelengths, rest frame, normalized; for each star and window ``NAME_blue_flux`` (green, red, ir)
and ``NAME_blue_wavelength_start_step``, the ``names``, and ``labels`` (Teff, log g, [Fe/H]).

Results are printed and stored in ``checks_optical.json``.

    python dataset/mock_survey/check_optical.py responses --range rvs
    python dataset/mock_survey/check_optical.py benchmarks --folder gaia_benchmarks_hermes
"""

import argparse
import json
from pathlib import Path

import numpy as np
import synthesize_grid
import torch
from check_survey import POINTS, agreement, compare_responses, store
from fit_emulator import OBSERVED
from grid_labels import complete
from line_lists import air_to_vacuum
from matplotlib.figure import Figure
from packages import default_cache
from spectral_ranges import APOGEE, RANGES

from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.mock.line_spread import FineGrid
from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT
from stellarperceptron.utils.arguments import run_script
from stellarperceptron.utils.plotting import COLORS, PAGE_WIDTH, save_figure, use_style

HERE = Path(__file__).parent
HERMES = RANGES["hermes"]
# Air wavelengths [A] that are compared. The telluric A band of oxygen, 7590 to 7700, is left out.
COMPARED = {
    "blue": (4715.0, 4902.0),
    "green": (5650.0, 5872.0),
    "red": (6480.0, 6736.0),
    "ir": (7705.0, 7886.0),
}
# Cores of Balmer lines form above the photosphere, out of LTE: line [A], half width [A].
CORES = ((4861.34, 1.2), (6562.80, 2.0))
OXYGEN_TRIPLET = (7772.0, 7780.0)  # vacuum, A
STARS = ("18Sco", "Arcturus", "Procyon", "HD122563")
MICROTURBULENCE = (1.0, 1.5, 2.0)  # km/s: the best is taken
RESOLUTIONS = np.arange(16_000.0, 28_001.0, 2000.0)  # of star and spectrograph together
VELOCITIES = np.arange(-1.5, 1.51, 0.5)  # km/s, errors of the rest frame
CHECKS = HERE / "checks_optical.json"
DRAWN = 50.0  # Angstrom of each window
CAPTION = (
    "Gaia benchmark stars: real spectra (black), direct syntheses with the line list of {physics} "
    "(orange) and their difference (blue), {width:g} Å in the middle of each HERMES window."
)


def responses(args: argparse.Namespace) -> None:
    """Change of the flux for a change of one label, emulated and computed directly."""
    band = RANGES[args.range]
    path = args.emulator or HERE / f"emulators/{args.range}.npz"
    points = {name: p for name, p in POINTS.items() if p["TEFF"] >= band.least_teff}
    points["dwarf"] = {**points["dwarf"], "LOGG": 4.3}  # log g + 0.5 is inside small grids, too
    results = {}
    for physics in args.physics:
        emulator = Emulator.load(physics, path)
        run = synthesize_grid.prepare(physics, args.cache, args.packages, band, args.line_list)
        results[physics], changes = compare_responses(run, emulator, points, args.range)
        wavelength = OBSERVED[args.range][0]
        triplet = (wavelength > OXYGEN_TRIPLET[0]) & (wavelength < OXYGEN_TRIPLET[1])
        if triplet.any():
            results[physics]["O_FE, O I 7772 to 7775"] = {
                point: agreement(*(change[triplet] for change in changes[point, "O_FE"]))
                for point in points
            }
        results[physics]["held out"] = emulator.parts[-1].info["errors"]
    store(f"responses, {args.range}", results, CHECKS)


# ------------------------------------------------------------------------------------- real stars


def read_star(file, name: str, window: str) -> tuple[np.ndarray, np.ndarray]:
    """Air wavelengths [A] and flux of a window, without what is not compared."""
    start, step = file[f"{name}_{window}_wavelength_start_step"]
    flux = file[f"{name}_{window}_flux"].astype(np.float64)
    air = start + step * np.arange(len(flux))
    low, high = COMPARED[window]
    good = (air > low) & (air < high) & np.isfinite(flux)
    for line, half_width in CORES:
        good &= np.abs(air - line) > half_width
    return air[good], flux[good]


def compare(observed: list, flux: np.ndarray, grid: FineGrid) -> list[dict]:
    """
    Best agreement of a synthetic spectrum (H,) with a star's windows [(air wavelength, flux)].

    One line width for all windows, in each a velocity and a parabola that the observed flux is
    divided by. Returns the residuals' rms and the correlation of each window.
    """
    best = None
    for resolution in RESOLUTIONS:
        windows = []
        for air, real in observed:
            vacuum = air_to_vacuum(air)
            shifted = np.concatenate([vacuum * (1 - v / SPEED_OF_LIGHT) for v in VELOCITIES])
            models = grid.sample(torch.from_numpy(flux)[:, None], shifted, resolution)[:, 0]
            x = np.linspace(-1.0, 1.0, len(air))
            choices = []
            for model in models.numpy().reshape(len(VELOCITIES), -1):
                level = np.polynomial.polynomial.polyfit(x, real / model, 2, w=model)
                normalized = real / np.polynomial.polynomial.polyval(x, level)
                rms = float(np.sqrt(np.mean((normalized - model) ** 2)))
                choices.append((rms, normalized, model))
            rms, normalized, model = min(choices, key=lambda choice: choice[0])
            correlation = float(np.corrcoef(normalized, model)[0, 1])
            windows.append({"rms": rms, "correlation": correlation, "spectra": (normalized, model)})
        total = sum(window["rms"] ** 2 for window in windows)
        if best is None or total < best[0]:
            best = (total, windows)
    return best[1]


def benchmarks(args: argparse.Namespace) -> None:
    """Real spectra of benchmark stars beside direct syntheses with their published labels."""
    windows = HERMES.windows
    grid = FineGrid(
        tuple(w.start for w in windows), tuple(w.pixels for w in windows), 3e-6, 60_000.0
    )
    runs = {
        physics: synthesize_grid.prepare(physics, args.cache, args.packages, HERMES, args.line_list)
        for physics in args.physics
    }
    results, drawn = {}, {}
    with np.load(args.folder / "spectra.npz") as file:
        published = dict(zip(file["names"].tolist(), file["labels"].tolist(), strict=True))
        for name in args.stars:
            teff, logg, fe_h = published[name]
            alpha = min(max(-0.4 * fe_h, 0.0), 0.4)  # of the Galaxy's stars, roughly
            observed = [read_star(file, name, window) for window in COMPARED]
            for physics, run in runs.items():
                choices = {}
                for vmicro in MICROTURBULENCE:
                    labels = {"TEFF": teff, "LOGG": logg, "FE_H": fe_h, "VMICRO": vmicro}
                    spectrum = run(complete({**labels, "O_FE": alpha, "Mg_FE": alpha}))
                    choices[vmicro] = compare(observed, spectrum.astype(np.float64), grid)
                vmicro = min(choices, key=lambda v: sum(w["rms"] ** 2 for w in choices[v]))
                found = dict(zip(COMPARED, choices[vmicro], strict=True))
                drawn[name, physics] = [(a, *w["spectra"]) for (a, _), w in
                                        zip(observed, found.values(), strict=True)]  # fmt: skip
                results.setdefault(name, {})[physics] = {
                    "vmicro [km/s]": vmicro,
                    "rms": {w: round(f["rms"], 4) for w, f in found.items()},
                    "correlation": {w: round(f["correlation"], 3) for w, f in found.items()},
                }
                print(name, physics, json.dumps(results[name][physics]), flush=True)
    store("benchmarks", results, CHECKS)
    caption = CAPTION.format(physics=args.physics[-1], width=DRAWN)
    figure = draw(drawn, args.stars, args.physics[-1])
    save_figure(figure, HERE / "figures/benchmarks_hermes.png", caption)


def draw(drawn: dict, stars: list[str], physics: str) -> Figure:
    """Draw the middle of every window for every star."""
    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, 1.3 * len(stars)), layout="constrained")
    axes = figure.subplots(len(stars), len(COMPARED), sharey=True, sharex="col", squeeze=False)
    for row, name in zip(axes, stars, strict=True):
        for axis, (air, real, model) in zip(row, drawn[name, physics], strict=True):
            middle = 0.5 * (air[0] + air[-1])
            part = np.abs(air - middle) < 0.5 * DRAWN
            axis.plot(air[part], real[part], color=COLORS["black"], lw=0.9)
            axis.plot(air[part], model[part], color=COLORS["orange"], lw=0.5)
            axis.plot(air[part], real[part] - model[part], color=COLORS["blue"], lw=0.4)
            axis.set(xlim=(middle - 0.5 * DRAWN, middle + 0.5 * DRAWN), ylim=(-0.25, 1.1))
        row[0].set_ylabel(f"{name}\nflux / continuum")
    figure.supxlabel("air wavelength [Å]")
    return figure


def main() -> None:
    """Read the command line and run one check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    checks = parser.add_subparsers(required=True, metavar="check")
    one = checks.add_parser("responses", help="an emulator against direct syntheses")
    one.add_argument("--range", choices=[n for n in RANGES if n != APOGEE.name], required=True)
    one.add_argument("--emulator", type=Path, help="default: emulators/<range>.npz")
    two = checks.add_parser("benchmarks", help="syntheses against real stars")
    two.add_argument("--folder", type=Path, required=True, help="folder that has spectra.npz")
    two.add_argument("--stars", nargs="+", default=list(STARS))
    for check, function in ((one, responses), (two, benchmarks)):
        check.add_argument("--physics", nargs="+", default=["nominal"])
        check.add_argument(
            "--line-list", type=Path, help="of GALAH, for nature in the HERMES windows"
        )
        check.add_argument("--packages", type=Path, help="folder with the packages, no download")
        check.add_argument("--cache", type=Path, default=default_cache(), help="for Synspec")
        check.set_defaults(function=function)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.function(args)


if __name__ == "__main__":
    run_script(main)
