"""
Fit emulators to grids of synthetic spectra.

Gaussian processes predict the coefficients of the spectra's principal components (see
``stellarperceptron/data/mock/emulator.py``). The length scales maximize the marginal likelihood,
separately for the leading, the middle and the trailing components. For *nature* (the emulator of
observed spectra) the difference between its spectra and the prediction of *nominal* (the emulator
of synthetic spectra) for the same labels is fitted.

One label point in ten, the same for both grids, is held out of the fit; the errors there are
printed, drawn and stored in the emulator file. That of APOGEE's H band is in the package, those of
other ranges are in the folder ``emulators``; they hold *nature* if its grid is given.

    python dataset/mock_survey/fit_emulator.py
    python dataset/mock_survey/fit_emulator.py --range rvs --nature grids/rvs_nature.h5
"""

import argparse
import itertools
import json
import math
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import synthesize_grid
import torch
from line_lists import air_to_vacuum
from matplotlib.figure import Figure
from spectral_ranges import APOGEE, RANGES
from torch import Tensor
from tqdm import tqdm

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.mock.emulator import EMULATOR_FILE, Emulator, Part, write_emulators
from stellarperceptron.data.mock.gaussian_process import GaussianProcess
from stellarperceptron.data.mock.line_spread import FineGrid
from stellarperceptron.data.mock.stellar_labels import LABELS, to_inputs
from stellarperceptron.instruments import GAIA_RVS, LOW_RESOLUTION
from stellarperceptron.utils.arguments import output_file, output_picture, run_script
from stellarperceptron.utils.plotting import (
    COLORS,
    PAGE_WIDTH,
    axis_label,
    save_figure,
    use_style,
)

# Wavelengths [Angstrom, vacuum] and resolution at which errors are reported: those of APOGEE, of
# Gaia's RVS, of LAMOST, and of the four cameras of GALAH.
OBSERVED = {
    "apogee": (APOGEE_WAVELENGTH, 22_500.0),
    "rvs": (GAIA_RVS.wavelength, 11_500.0),
    "low_resolution": (LOW_RESOLUTION.wavelength, 1_800.0),
    "hermes": (
        np.concatenate(
            [
                air_to_vacuum(np.arange(low, high, step))
                for low, high, step in (
                    (4713.0, 4903.0, 0.046),
                    (5648.0, 5873.0, 0.055),
                    (6478.0, 6737.0, 0.064),
                    (7585.0, 7887.0, 0.074),
                )
            ]
        ),
        28_000.0,
    ),
}
HELD_OUT = 10  # hold out one label point in ten
CAPTION = (
    "Errors of the emulators nominal (blue) and nature (vermilion) at the held-out label points. "
    "Above: 68th (dark) and 95th (light) percentile of the absolute error of the flux at each "
    "pixel, a panel for each detector. Below: rms of each held-out spectrum (point); the lines are "
    "at 0.002 (dashed) and 0.008 (dotted)."
)
PRIOR = 100.0  # variance of the linear terms' coefficients, in units of the kernel's


@dataclass
class Grid:
    """Spectra (N, H), their labels (N, 20), which are held out (N,), and their wavelengths."""

    flux: np.ndarray
    labels: np.ndarray
    held_out: np.ndarray
    wavelengths: FineGrid
    source: dict


def read_grid(path: Path, allow_incomplete: bool = False) -> Grid:
    """Read a grid made by ``synthesize_grid.py``; `GridError` names a file that is damaged."""
    labels, flux, attributes = synthesize_grid.read_grid(path, allow_incomplete)
    held_out = [zlib.crc32(row.astype(np.float32).tobytes()) % HELD_OUT == 0 for row in labels]
    names = [name.upper() for name in attributes["label_names"]]
    source = {"file": Path(path).name, "labels_sha256": attributes["labels_sha256"]}
    starts = np.atleast_1d(attributes["log10_wavelength_start"]).tolist()
    pixels = np.atleast_1d(attributes.get("window_pixels", flux.shape[1])).tolist()
    return Grid(
        flux.astype(np.float32),
        labels[:, [names.index(name) for name in LABELS]].astype(np.float64),
        np.array(held_out),
        FineGrid(
            tuple(starts),
            tuple(pixels),
            float(attributes["log10_wavelength_step"]),
            float(attributes["resolution"]),
        ),
        source,
    )


def principal_components(spectra: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (H,) and the leading components (K, H), unit vectors in order of their variance."""
    mean = spectra.mean(0, dtype=np.float64)
    centred = (spectra - mean).astype(np.float32)
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    order = np.argsort(values)[::-1][: min(number, len(values) - 1)]
    components = (vectors[:, order] / np.sqrt(values[order])).T @ centred
    return mean, components


def _covariance(log: dict[str, Tensor], x: Tensor) -> Tensor:
    """Covariance (G, G) of the grid points (G, 20), with the linear terms and the noise."""
    linear = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], dim=1)
    amplitude = torch.stack([torch.zeros_like(log["amplitude"]), log["amplitude"]]).exp()
    process = GaussianProcess(log["scale"].exp(), amplitude, x, x, x)
    eye = torch.eye(len(x), dtype=x.dtype)
    return process.kernel(x) + log["noise"].exp() * eye + PRIOR * linear @ linear.T


def fit_process(
    inputs: Tensor, targets: Tensor, *, steps: int, subset: int, seed: int, name: str
) -> GaussianProcess:
    """
    Gaussian process of several coefficients that share one kernel.

    Parameters
    ----------
    inputs : (G, 20)
        Scaled to -1..1.
    targets : (G, K)
        Coefficients; every one has its own variance, which drops out of the likelihood.
    steps, subset
        Steps of the optimiser for the length scales, and number of spectra it uses.
    """
    long_scale = torch.full((inputs.shape[1],), -2.5, dtype=torch.float64)
    long_scale[:9] = -0.5  # what changes every spectrum; single elements change little
    log = {
        "scale": torch.stack([long_scale, long_scale - 0.8]),
        "amplitude": torch.tensor(0.0, dtype=torch.float64),
        "noise": torch.tensor(-8.0, dtype=torch.float64),
    }
    log = {key: value.requires_grad_() for key, value in log.items()}
    some = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:subset]
    x, y = inputs[some], targets[some]
    weight = y.std(0) / y.std(0).sum()
    optimizer = torch.optim.Adam(log.values(), lr=0.08)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=2e-3)
    for _ in tqdm(range(steps), desc=name, leave=False, mininterval=5):
        factor = torch.linalg.cholesky(_covariance(log, x))
        whitened = torch.linalg.solve_triangular(factor, y, upper=False)
        # -log likelihood per spectrum, each coefficient's variance at its best value
        misfit = 0.5 * (torch.log((whitened**2).mean(0)) * weight).sum()
        loss = misfit + factor.diagonal().log().sum() / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            log["noise"].clamp_(min=math.log(1e-6))  # keeps single-precision weights accurate
    with torch.no_grad():
        alpha = torch.cholesky_solve(targets, torch.linalg.cholesky(_covariance(log, inputs)))
        alpha = alpha.float().double()  # as they are stored
        ones = torch.ones(len(inputs), 1, dtype=inputs.dtype)
        linear = PRIOR * torch.cat([ones, inputs], dim=1).T @ alpha
        amplitude = torch.stack([torch.zeros_like(log["amplitude"]), log["amplitude"]]).exp()
        return GaussianProcess(log["scale"].exp().detach(), amplitude, inputs, linear, alpha)


def fit_part(
    grid: Grid, residual: np.ndarray, number: int, edges: tuple[int, ...], limits, args, name: str
) -> Part:
    """
    Components and processes for `residual` (N, H) at the grid's labels, held-out ones left out.

    `edges` split the components into groups of one kernel each; `limits` are the inputs that are
    scaled to -1 and 1 (None: the range of this grid).
    """
    train = ~grid.held_out
    mean, components = principal_components(residual[train], number)
    labels = torch.from_numpy(grid.labels[train])
    x = to_inputs(labels)
    input_low, input_high = limits if limits else (x.amin(0), x.amax(0))
    x = ((x - input_low) / (input_high - input_low) * 2.0 - 1.0).float().double()
    targets = torch.from_numpy(((residual[train] - mean) @ components.T).astype(np.float64))
    bounds = [0, *(e for e in edges if e < len(components)), len(components)]
    processes = [
        fit_process(
            x,
            targets[:, a:b],
            steps=args.steps,
            subset=args.subset,
            seed=args.seed,
            name=f"{name}, components {a + 1} to {b}",
        )
        for a, b in itertools.pairwise(bounds)
    ]
    return Part(
        torch.from_numpy(mean),
        torch.from_numpy(components.astype(np.float64)),
        processes,
        torch.from_numpy(grid.labels.min(0)),
        torch.from_numpy(grid.labels.max(0)),
        input_low,
        input_high,
    )


def predict(emulator: Emulator, labels: np.ndarray, projection) -> np.ndarray:
    """Spectra (N, P), in blocks; the grids' ranges differ a little, labels move to the edge."""
    blocks = [
        projection(emulator.coefficients(labels[i : i + 512], "clip")).float().numpy()
        for i in range(0, len(labels), 512)
    ]
    return np.concatenate(blocks)


def project_spectra(flux: np.ndarray, wavelengths: FineGrid, band: str = "apogee") -> np.ndarray:
    """Spectra (N, H) on a fine grid at the resolution and pixels (N, P) of `OBSERVED`."""
    columns = torch.from_numpy(flux.astype(np.float64)).T.contiguous()
    return wavelengths.sample(columns, *OBSERVED[band]).T.numpy()


def held_out_errors(emulator: Emulator, grid: Grid, band: str = "apogee") -> np.ndarray:
    """Emulated minus synthesized flux (n, P) of the held-out spectra, as `OBSERVED`."""
    direct = project_spectra(grid.flux[grid.held_out], grid.wavelengths, band)
    projection = emulator.project(*OBSERVED[band])
    return predict(emulator, grid.labels[grid.held_out], projection) - direct


REGIONS = {
    "all": lambda t, g, m: np.full(len(t), True),
    "giants, 1 < logg < 3.5": lambda t, g, m: (g > 1) & (g < 3.5),
    "luminous giants, logg < 1": lambda t, g, m: g <= 1,
    "dwarfs, logg > 3.7": lambda t, g, m: g > 3.7,
    "Teff < 4000 K": lambda t, g, m: t < 4000,
    "Teff > 6000 K": lambda t, g, m: t > 6000,
    "[Fe/H] < -1": lambda t, g, m: m < -1,
    "[Fe/H] > 0": lambda t, g, m: m > 0,
}


def summary(errors: np.ndarray, grid: Grid) -> dict:
    """Percentiles of the rms of each held-out spectrum, by region of the labels."""
    rms = np.sqrt((errors**2).mean(1))
    out = {}
    for name, region in REGIONS.items():
        inside = rms[region(*grid.labels[grid.held_out][:, :3].T)]
        if len(inside):
            out[name] = {
                "spectra": len(inside),
                "median": round(float(np.median(inside)), 6),
                "percentile 95": round(float(np.percentile(inside, 95)), 6),
            }
    return out


def draw(results: dict[str, tuple[np.ndarray, Grid]], wavelength: np.ndarray, path: Path) -> None:
    """Draw the held-out error against wavelength and labels."""
    step = np.diff(wavelength)
    pieces = np.split(np.arange(len(wavelength)), np.flatnonzero(step > 60 * np.median(step)) + 1)
    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, 1.5 + 1.3 * len(results)), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    by_wavelength = upper.subplots(len(results), len(pieces), sharey=True, squeeze=False)
    by_label = lower.subplots(1, 3, sharey=True)
    colors = (COLORS["blue"], COLORS["vermilion"])[: len(results)]
    for row, (name, (errors, grid)), color in zip(
        by_wavelength, results.items(), colors, strict=True
    ):
        for axis, piece in zip(row, pieces, strict=True):
            for level, shade in ((95, 0.4), (68, 1.0)):
                y = np.percentile(np.abs(errors[:, piece]), level, axis=0)
                axis.plot(wavelength[piece], y, color=color, lw=0.4, alpha=shade)
            axis.set_xlim(wavelength[piece[[0, -1]]])
        row[0].set_ylabel("|error| of\nflux / continuum")
        row[-1].set_title(f"{name}: 68 and 95 %", loc="right")
        rms = np.sqrt((errors**2).mean(1))
        for label_axis, d in zip(by_label, (0, 1, 2), strict=True):
            x = grid.labels[grid.held_out][:, d]
            label_axis.plot(x, rms, ".", color=color, alpha=0.7, mew=0, label=name)
    by_wavelength[0, 0].set_ylim(bottom=0)  # once all is drawn; the panels share the axis
    upper.supxlabel("vacuum wavelength [Å]")
    for axis, label in zip(by_label, LABELS[:3], strict=True):
        axis.set(xlabel=axis_label(label), yscale="log", ylim=(1e-4, 3e-2))
        axis.axhline(0.002, color=COLORS["grey"], lw=0.6, ls="--")
        axis.axhline(0.008, color=COLORS["grey"], lw=0.6, ls=":")
    by_label[0].set_ylabel("rms error of flux / continuum")
    by_label[0].legend(loc="upper right")
    save_figure(figure, path, CAPTION)


def fit_parts(grids: dict[str, Grid], args) -> dict[str, Part]:
    """Fit *nominal*, and the difference to it where there is a grid of *nature*."""
    nominal, nature = grids["nominal"], grids.get("nature")
    first = fit_part(nominal, nominal.flux, args.components, (6, 20), None, args, "nominal")
    parts = {"nominal": first}
    if nature is not None:
        emulator = Emulator("nominal", [first], nominal.wavelengths)
        parts["difference"] = fit_part(
            nature,
            nature.flux - predict(emulator, nature.labels, emulator.project()),
            args.difference_components,
            (6,),
            (first.input_low, first.input_high),
            args,
            "difference",
        )
    for part, grid in zip(parts.values(), grids.values(), strict=True):
        counts = {"fitted": int((~grid.held_out).sum()), "held_out": int(grid.held_out.sum())}
        part.info = {**grid.source, "spectra": counts, "seed": args.seed}
    return parts


def main() -> None:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--range", choices=tuple(RANGES), default=APOGEE.name)
    parser.add_argument("--nominal", type=Path, help="default: grids/[<range>_]nominal.h5 here")
    parser.add_argument(
        "--nature",
        type=Path,
        help="default: grids/nature.h5 for APOGEE; without it, other ranges have nominal alone",
    )
    parser.add_argument(
        "--output",
        type=output_file,
        help="emulator file to write (default: that in the package, or emulators/<range>.npz)",
    )
    parser.add_argument("--figure", type=output_picture, help="picture to draw (PNG)")
    parser.add_argument(
        "--allow-incomplete", action="store_true", help="fit grids that are still being computed"
    )
    parser.add_argument("--components", type=int, default=100, help="of nominal (100)")
    parser.add_argument("--difference-components", type=int, default=60, help="of nature (60)")
    parser.add_argument("--steps", type=int, default=150, help="of the optimiser (150)")
    parser.add_argument("--subset", type=int, default=600, help="spectra it looks at (600)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    begin = time.time()
    here, prefix, suffix = Path(__file__).parent, "", ""
    if args.range != APOGEE.name:
        prefix, suffix = f"{args.range}_", f"_{args.range}"
        args.output = args.output or here / "emulators" / f"{args.range}.npz"
    else:
        args.output = args.output or EMULATOR_FILE
        args.nature = args.nature or here / "grids/nature.h5"
    args.figure = args.figure or here / f"figures/emulator_error{suffix}.png"
    paths = {"nominal": args.nominal or here / f"grids/{prefix}nominal.h5", "nature": args.nature}
    try:
        grids = {n: read_grid(p, args.allow_incomplete) for n, p in paths.items() if p is not None}
    except (synthesize_grid.GridError, FileNotFoundError) as error:
        sys.exit(f"fit_emulator.py: {error}")
    wavelengths = grids["nominal"].wavelengths
    if any(grid.wavelengths != wavelengths for grid in grids.values()):
        parser.error("the two grids have different wavelength grids")
    if wavelengths.size != RANGES[args.range].pixels:
        parser.error(f"{paths['nominal']} is no grid of the range {args.range}")

    parts = fit_parts(grids, args)
    write_emulators(args.output, parts, wavelengths)

    # The errors are those of the quantized file; then the file is written again with them in it.
    results = {}
    for part, (name, grid) in zip(parts.values(), grids.items(), strict=True):
        errors = held_out_errors(Emulator.load(name, args.output), grid, args.range)
        results[name] = (errors, grid)
        part.info["errors"] = summary(errors, grid)
        print(f"{name}: {(~grid.held_out).sum()} spectra fitted, {grid.held_out.sum()} held out")
        for region, figures in part.info["errors"].items():
            print(f"  {region:28s} {json.dumps(figures)}")
    write_emulators(args.output, parts, wavelengths)
    draw(results, OBSERVED[args.range][0], args.figure)
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {size:.1f} MB, {time.time() - begin:.0f} s")


if __name__ == "__main__":
    run_script(main)
