r"""Labels of real stars in the optical, by a model that has seen synthetic spectra only.

Reads up to three sets of real spectra in DATA, brings them to vacuum wavelengths, to the stars'
rest frame and to an instrument's pixels, and predicts their labels with one model: stage 1 of
profile `optical`, which sees the windows of HERMES, or of profile `low_resolution`, which sees
nearly all pixels of LAMOST, but no other set (profiles: `training/profiles`).

gaia_benchmarks_hermes/spectra.npz  Gaia benchmark stars, R = 28,000; NAME_ARM_flux and
    NAME_ARM_wavelength_start_step [Angstrom, air, at rest] of four arms, names, labels
galah_sample/galah_sample.npz       spectra of GALAH; wavelength (N, 4, n) [Angstrom, air,
    barycentric], flux, relative_error, id, labels, among them RV_COM [km/s]
lamost_dr1/lamost_dr1.npz           spectra of LAMOST, R = 1,800; wavelength (n,) [Angstrom,
    vacuum], flux, ivar, bad (N, n), z, id, labels

labels (N, L) are those of the literature, NaN where unknown; label_names are TEFF [K], LOGG, FE_H.
OUTPUT gets

real_stars.csv      a row a star: labels of the model with errors and flags, and the literature's
real_stars_table.md bias, scatter and pulls of each set; labels of each star of the first two sets
real_stars.png      predicted labels against those of the literature (and .pdf, and caption)
lamost.npz          the LAMOST spectra that have labels, for results/real_stars/few_labels.py, and
lamost_reached.npz  those of them that the emulators reach

    python real_stars.py --data real --checkpoint runs/optical/1 --output runs/real
"""

import argparse
import dataclasses
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.apogee.continuum import normalize_as
from stellarperceptron.data.apogee.spectra import Spectrum
from stellarperceptron.data.flags import flag_names
from stellarperceptron.data.readers.conversion import Arm, error_of, on_pixels
from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT, air_to_vacuum
from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.instruments import GALAH, LOW_RESOLUTION
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.labels import label as label_named
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import HelpFormatter, output_folder, run_script
from stellarperceptron.utils.arrays import check_array_archive
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import markdown_table
from stellarperceptron.utils.plotting import PAGE_WIDTH, axis_label, save_figure, use_style

LABELS = ("TEFF", "LOGG", "FE_H")
BENCHMARKS, SURVEY, FAINT = "Gaia benchmark stars", "GALAH", "LAMOST"
ARMS = ("blue", "green", "red", "ir")
MOST_VALUES = 100_000_000  # of an array in a file
# Line lists err by more than the noise of the best spectra, so that the model is told no more.
LARGEST_SNR = 100.0
# What the emulators reach; see dataset/mock_survey/README.md.
REACH = {"TEFF": (4200.0, 6740.0), "LOGG": (0.2, 5.0), "FE_H": (-2.5, 0.6)}
CAPTION = (
    "Labels of real stars by a model that was trained on synthetic spectra only, against those of "
    "the literature: {sets}. Bars are the predicted errors. Open symbols: stars that the emulators "
    "of the training do not reach ({low:.0f} to {high:.0f} K, [Fe/H] above {iron:g}). The line is "
    "one to one."
)


def lamost_in_windows() -> Instrument:
    """LAMOST's pixels in the windows of HERMES, without the cores of the Balmer lines.

    Synthetic cores are wrong. They are left out of the model's pixels, and at a low resolving power
    they reach one resolution element farther.
    """
    grid, power = LOW_RESOLUTION.wavelength, float(LOW_RESOLUTION.resolving_power)
    index, chips, first = [], {}, 0
    for name, chip in GALAH.chips.items():
        pixels = GALAH.wavelength[chip]
        inside = (grid >= pixels[0]) & (grid <= pixels[-1])
        for core in np.flatnonzero(np.diff(GALAH.grid_index[chip]) > 1):
            low, high = pixels[core], pixels[core + 1]
            inside &= (grid < low - low / power) | (grid > high + high / power)
        index.append(np.flatnonzero(inside))
        chips[name] = slice(first, first := first + len(index[-1]))
    pixels = np.concatenate(index)
    return Instrument(
        "LAMOST in the windows of HERMES",
        grid[pixels],
        chips=chips,
        resolving_power=power,
        continuum=GALAH.continuum,
        valid_flux=GALAH.valid_flux,
        grid_index=pixels,
    )


# --- reading --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stars:
    """Flux (N, P), S/N a pixel (N,), NaN if unknown, and labels (N, 3) of stars."""

    instrument: Instrument
    names: list[str]
    flux: np.ndarray
    snr: np.ndarray
    labels: pd.DataFrame


def open_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz file.

    Raises
    ------
    ValueError
        It is no file of plain arrays.
    """
    try:
        check_array_archive(path, MOST_VALUES)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file}
    except (zipfile.BadZipFile, EOFError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no .npz file of plain arrays: {error}") from error


def literature(arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Labels (N, 3) of the literature in a file."""
    table = pd.DataFrame(arrays["labels"], columns=arrays["label_names"].astype(str))
    return table[list(LABELS)].astype(float)


def collected(
    instrument: Instrument, spectra: Iterable[Spectrum], labels: pd.DataFrame, known_errors: bool
) -> Stars:
    """Normalized spectra on the pixels of an instrument, which lie on a grid of the spectra's."""
    names, flux, snr = [], [], []
    for spectrum in spectra:
        pixels = spectrum.instrument.nearest_pixels(instrument.wavelength)
        bad = spectrum.bad()[pixels]
        own = spectrum.flux[pixels]
        names.append(spectrum.star_id)
        flux.append(normalize_as(instrument, own, bad))
        ratio = (own / spectrum.error[pixels])[~bad]
        snr.append(np.median(ratio) if known_errors and len(ratio) else np.nan)
    return Stars(instrument, names, np.array(flux, dtype=np.float32), np.array(snr), labels)


def benchmarks(path: Path) -> Stars:
    """Gaia benchmark stars; the file has no errors."""
    arrays = open_arrays(path)

    def star(name: str) -> Spectrum:
        arms = []
        for arm in ARMS:
            flux = arrays[f"{name}_{arm}_flux"].astype(np.float64)
            start, step = arrays[f"{name}_{arm}_wavelength_start_step"]
            wavelength = air_to_vacuum(start + step * np.arange(len(flux)))
            arms.append(Arm(wavelength, flux, 0.01 * flux, flux <= 0))
        return on_pixels(GALAH, arms, star_id=name, kind="NARVAL")

    names = arrays["names"].astype(str).tolist()
    return collected(GALAH, map(star, names), literature(arrays), False)


def galah(path: Path) -> Stars:
    """Spectra of GALAH; the velocity is the reduction pipeline's."""
    arrays = open_arrays(path)
    velocity = arrays["labels"][:, arrays["label_names"].tolist().index("RV_COM")]

    def star(row: int) -> Spectrum:
        arms = []
        for wavelength, flux, error in zip(
            *(arrays[name][row] for name in ("wavelength", "flux", "relative_error")), strict=True
        ):
            bad = np.zeros(len(flux), dtype=bool)
            arms.append(Arm(air_to_vacuum(wavelength), flux, error * np.abs(flux), bad))
        star_id = str(arrays["id"][row])
        return on_pixels(GALAH, arms, velocity=velocity[row], star_id=star_id, kind="GALAH")

    rows = range(len(arrays["id"]))
    return collected(GALAH, map(star, rows), literature(arrays), True)


def lamost(path: Path, whole: bool = False) -> Stars:
    """Spectra of LAMOST that have labels: with all pixels, or in the windows of HERMES."""
    arrays = open_arrays(path)
    labels = literature(arrays)
    rows = np.flatnonzero(labels.notna().all(axis=1))

    def star(row: int) -> Spectrum:
        arm = Arm(
            arrays["wavelength"],
            arrays["flux"][row].astype(np.float64),
            error_of(arrays["ivar"][row]),
            arrays["bad"][row].astype(bool),
        )
        return on_pixels(
            LOW_RESOLUTION,
            [arm],
            velocity=SPEED_OF_LIGHT * float(arrays["z"][row]),
            star_id=str(arrays["id"][row]).removesuffix(".fits"),
            kind="LAMOST",
        )

    known = labels.iloc[rows].reset_index(drop=True)
    instrument = LOW_RESOLUTION if whole else lamost_in_windows()
    return collected(instrument, map(star, rows), known, True)


SETS = {
    BENCHMARKS: ("gaia_benchmarks_hermes/spectra.npz", benchmarks),
    SURVEY: ("galah_sample/galah_sample.npz", galah),
    FAINT: ("lamost_dr1/lamost_dr1.npz", lamost),
}


def read_set(name: str, folder: Path, instrument: Instrument = GALAH) -> Stars:
    """One of the sets in a folder, for a model of GALAH or of `LOW_RESOLUTION`.

    Raises
    ------
    FileNotFoundError, ValueError
        Its file is missing, or no such file; says what it lacks.
    """
    file, read = SETS[name]
    whole = instrument == LOW_RESOLUTION
    if whole and name != FAINT:
        raise ValueError(f"a model of {instrument} reads no spectra of {name}: --sets {FAINT}")
    try:
        return lamost(folder / file, whole=True) if whole else read(folder / file)
    except KeyError as error:
        raise ValueError(f"{folder / file} lacks {error.args[0]}") from error


# --- answers --------------------------------------------------------------------------------------


def answers(model: StellarPerceptron, name: str, stars: Stars, blue: bool = False) -> pd.DataFrame:
    """The model's labels, errors and flags, a row a star, and the literature's labels.

    At the resolving power of HERMES the blue window is left out, unless it is asked for: the two
    line lists differ most there, and with it two giants of GALAH come out 100 K cooler and 0.1 to
    0.2 dex poorer in iron.
    """
    shown = np.ones(len(stars.instrument), dtype=bool)
    if stars.instrument == GALAH:
        shown[GALAH.chips["blue"]] = blue
    found = model.predict(
        stars.flux[:, shown],
        stars.instrument.wavelength[shown],
        list(LABELS),
        snr=np.where(np.isfinite(stars.snr), stars.snr.clip(5, LARGEST_SNR), LARGEST_SNR),
        resolving_power=stars.instrument.resolving_power,
        progress=False,
    )
    about = pd.DataFrame({"set": name, "star": stars.names, "snr": stars.snr})
    found["flag_names"] = [flag_names(flags) for flags in found["flags"]]
    return pd.concat([about, stars.labels.add_prefix("literature_"), found], axis=1)


def reached(table: pd.DataFrame) -> pd.Series:
    """Whether the emulators reach the literature's labels of the stars."""
    return pd.concat(
        [table[f"literature_{name}"].between(*ends) for name, ends in REACH.items()], axis=1
    ).all(axis=1)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Errors of groups of stars, a row for each group and label."""
    teff = table["literature_TEFF"]
    target = (table["set"] == BENCHMARKS) & teff.between(4000, 6500)
    groups = {
        f"{BENCHMARKS}, 4000 to 6500 K": target,
        f"{BENCHMARKS}, 4000 to 6500 K, within the emulators' reach": target & reached(table),
    }
    for name in table["set"].unique():
        of_set = (table["set"] == name) & reached(table)
        groups[f"{name}, within the emulators' reach"] = of_set
    rows = []
    for group, chosen in groups.items():
        part = table[chosen]
        for label in LABELS:
            metrics = label_metrics(
                part[label].to_numpy(),
                part[f"literature_{label}"].to_numpy(),
                part[f"{label}_error"].to_numpy(),
            )
            rows.append({"stars of": group, "label": label, **metrics})
    return pd.DataFrame(rows)


def summary_text(errors: pd.DataFrame) -> pd.DataFrame:
    """The summary for readers."""
    rows = []
    for row in errors[errors["stars"] > 0].to_dict("records"):
        entry = label_named(row["label"])
        rows.append(
            {
                "stars of": row["stars of"],
                "number": str(row["stars"]),
                "label": f"{entry.plain} [{entry.unit}]",
                "bias": entry.format_residual(row["bias"], "+"),
                "mad_std": entry.format_residual(row["mad_std"]),
                "rms": entry.format_residual(row["rmse"]),
                "sd of pulls": f"{row['pull_std']:.1f}",
            }
        )
    return pd.DataFrame(rows)


def star_text(table: pd.DataFrame) -> pd.DataFrame:
    """A row a star for readers: the model's labels and, in brackets, the literature's."""
    rows = []
    for row in table.to_dict("records"):
        cells = {"set": row["set"], "star": row["star"]}
        for label in LABELS:
            entry = label_named(label)
            value = entry.format_value(row[label], row[f"{label}_error"])
            cells[f"{entry.plain} [{entry.unit}]"] = (
                f"{value} ({entry.format_value(row[f'literature_{label}'])})"
            )
        rows.append(cells | {"flags": row["flag_names"]})
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """Draw predicted labels against the literature's, a panel for each label."""
    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, PAGE_WIDTH / 2.6), layout="constrained")
    inside = reached(table)
    markers = dict(zip(SETS, "sDo", strict=True))
    order = [name for name in reversed(SETS) if name in set(table["set"])]  # few above many
    for axes, label in zip(figure.subplots(1, len(LABELS)), LABELS, strict=True):
        for color, name in enumerate(order):
            for filled in (False, True):
                part = table[(table["set"] == name) & (inside == filled)]
                axes.errorbar(
                    part[f"literature_{label}"],
                    part[label],
                    part[f"{label}_error"],
                    fmt=markers[name],
                    color=f"C{color}",
                    markerfacecolor=f"C{color}" if filled else "none",
                    markersize=2 if name == FAINT else 4,
                    elinewidth=0.3 if name == FAINT else 0.6,
                    label=name if filled else None,
                    zorder=2 + color,
                )
        both = table[[label, f"literature_{label}"]].to_numpy()
        ends = np.nanmin(both), np.nanmax(both)
        axes.plot(ends, ends, color="black", lw=0.6, zorder=1)
        axes.set(xlabel=f"literature: {axis_label(label)}")
        axes.set_ylabel(f"predicted: {axis_label(label)}")
    first = figure.axes[0]
    if not inside.all():
        style = {"color": "grey", "mfc": "none", "ms": 4, "ls": "none"}
        first.plot([], [], "o", label="beyond the emulators' reach", **style)
    first.legend()
    return figure


def main() -> None:
    """Arguments, model, stars, answers, tables, figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets")
    parser.add_argument(
        "--sets", nargs="+", choices=list(SETS), help="default: all that the model reads"
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of a stage, or a checkpoint"
    )
    parser.add_argument(
        "--blue", action="store_true", help="show the blue window of HERMES, too, at R = 28,000"
    )
    parser.add_argument("--output", type=output_folder, required=True, help="folder of the results")
    arguments = parser.parse_args()
    try:
        model = StellarPerceptron.load(resolve_checkpoint(arguments.checkpoint), device="cpu")
        readable = [FAINT] if model.instrument == LOW_RESOLUTION else list(SETS)
        chosen, found = arguments.sets or readable, []
        for name in chosen:
            stars = read_set(name, arguments.data, model.instrument)
            found.append(answers(model, name, stars, arguments.blue))
            if name == FAINT:
                write_for_few_labels(stars, arguments.output / "lamost.npz")
                inside = reached(found[-1]).to_numpy()
                write_for_few_labels(stars, arguments.output / "lamost_reached.npz", inside)
        table = pd.concat(found, ignore_index=True)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    with atomic_output(arguments.output / "real_stars.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    errors = summary(table)
    text = markdown_table(summary_text(errors))
    few = table[table["set"] != FAINT]
    if len(few):
        text += "\nPredicted labels and, in brackets, those of the literature:\n\n"
        text += markdown_table(star_text(few))
    with atomic_output(arguments.output / "real_stars_table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    caption = CAPTION.format(
        sets=", ".join(chosen),
        low=REACH["TEFF"][0],
        high=REACH["TEFF"][1],
        iron=REACH["FE_H"][0],
    )
    save_figure(draw(table), arguments.output / "real_stars.png", caption)
    print(text, end="")


def write_for_few_labels(stars: Stars, path: Path, some: np.ndarray | slice = slice(None)) -> None:
    """Write some spectra in the form that `few_labels.py` reads, without pixels that all lack."""
    seen = np.isfinite(stars.flux[some]).any(axis=0)
    flux = stars.flux[some][:, seen]
    with atomic_output(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            wavelength=stars.instrument.wavelength[seen],
            resolving_power=np.array(stars.instrument.resolving_power),
            flux=np.nan_to_num(flux),
            bad=~np.isfinite(flux),
            labels=stars.labels.to_numpy()[some],
            label_names=np.array(list(stars.labels)),
        )


if __name__ == "__main__":
    run_script(main)
