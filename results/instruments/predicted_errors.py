r"""Errors that a model of many instruments predicts: are they right at any resolving power?

Stars of the mock survey that no model has seen are observed by the model's own instrument and by
instruments of several resolving powers, with 2.5 pixels a resolution element. Counted are the stars
whose labels lie within one predicted standard deviation of the true ones, 68.3 % if it is right.
Writes OUTPUT.csv and OUTPUT.md.

    python predicted_errors.py --checkpoint runs/optical/1 --line-lists mixed --ripple 0 0.015 \
        --output runs/optical/predicted_errors
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.mock.emulated import LINE_LISTS, EmulatedSpectra, emulated_source
from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.labels import label as label_named
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import HelpFormatter, positive, positive_float, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import markdown_table

SAMPLING = 2.5  # pixels a resolution element


def of_power(
    power: float, windows: list[tuple[float, float]], like: Instrument | None = None
) -> Instrument:
    """An instrument of one resolving power that sees some windows, or has another one's arms."""
    only = DrawnInstruments(
        resolving_power=(power, power),
        sampling=(SAMPLING, SAMPLING),
        gaps=0,
        bad=0.0,
        arms=like is not None,
    )
    return only.draw(np.random.default_rng(0), windows, like)


def observe(
    recipe: EmulatedSpectra, seen_by: Instrument, own: bool, noise: Augmentation, seed: int
) -> np.ndarray:
    """Noisy spectra (N, n) of stars as an instrument sees them, which may be the model's own."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for some in recipe.coefficients.split(500):
        flux = recipe.flux(some) if own else recipe.seen_by(some, seen_by)
        parts.append(noise(flux, generator, instrument=seen_by).numpy())
    return np.concatenate(parts)


def pulls(
    model: StellarPerceptron, seen_by: Instrument, flux: np.ndarray, true: pd.DataFrame, snr: float
) -> pd.DataFrame:
    """Metrics of the model's answers and of their errors, a row a label."""
    labels = list(true)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(flagged|left out)")
        found = model.predict(
            flux,
            seen_by.wavelength,
            labels,
            snr=snr,
            resolving_power=np.broadcast_to(seen_by.resolving_power, len(seen_by)),
            progress=False,
        )
    columns = [(found[label], true[label], found[f"{label}_error"]) for label in labels]
    return pd.DataFrame(
        [
            {"label": label, **label_metrics(*(column.to_numpy() for column in three))}
            for label, three in zip(labels, columns, strict=True)
        ]
    )


def text_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table for readers: stars within one sigma [%] and, in brackets, the sd of the pulls."""
    cells = [f"{100 * row.within_1_sigma:.0f} ({row.pull_std:.2f})" for row in table.itertuples()]
    headings = [label_named(label).plain for label in table["label"]]
    wide = table.assign(cell=cells, heading=headings).pivot_table(
        index=["instrument", "S/N"], columns="heading", values="cell", aggfunc="first", sort=False
    )
    return wide[list(dict.fromkeys(headings))].reset_index().astype(str)


def main() -> None:
    """Arguments, model, stars, answers, tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of a stage, or a checkpoint"
    )
    parser.add_argument("--stars", type=positive, default=300, help="number of test stars")
    parser.add_argument("--seed", type=int, default=3, help="of the stars; not that of training")
    parser.add_argument(
        "--powers",
        type=positive_float,
        nargs="+",
        default=[6_300.0, 11_500.0, 22_500.0, 38_000.0],
        help="resolving powers",
    )
    parser.add_argument("--snr", type=positive_float, nargs="+", default=[50.0, 150.0])
    parser.add_argument(
        "--ripple",
        type=float,
        nargs=2,
        default=Augmentation().ripple,
        help="root mean square of the continuum's error: lowest and highest",
    )
    parser.add_argument(
        "--line-lists", choices=LINE_LISTS, default="nominal", help="of the stars' spectra"
    )
    parser.add_argument("--output", type=Path, required=True, help="of the files, without .csv")
    arguments = parser.parse_args()
    stem = arguments.output
    try:
        model = StellarPerceptron.load(resolve_checkpoint(arguments.checkpoint), device="cpu")
        if model.drawn is None:
            raise ValueError("the model was not trained on many instruments")
        own = model.instrument
        source = emulated_source(
            arguments.stars,
            arguments.seed,
            any_instrument=True,
            instrument=own,
            line_lists=arguments.line_lists,
        )
        columns = source.splits["train"]
        recipe = columns["synthetic"]
        true = pd.DataFrame(columns["labels"], columns=list(source.label_names))
        windows = recipe.bank.windows(own) or [tuple(map(float, own.wavelength[[0, -1]]))]
        like = own if model.drawn.arms else None
        instruments = {
            f"R = {power:,.0f}": of_power(power, windows, like) for power in arguments.powers
        }
        tables = []
        for name, seen_by in {**instruments, own.name: own}.items():
            for snr in arguments.snr:
                noise = Augmentation(snr=(snr, snr), ripple=tuple(arguments.ripple))
                flux = observe(recipe, seen_by, seen_by is own, noise, arguments.seed)
                found = pulls(model, seen_by, flux, true, snr)
                found.insert(0, "instrument", name)
                found.insert(1, "S/N", f"{snr:g}")
                tables.append(found)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    table = pd.concat(tables, ignore_index=True)
    stem.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(stem.with_name(f"{stem.name}.csv")) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    text = markdown_table(text_table(table))
    with atomic_output(stem.with_name(f"{stem.name}.md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    run_script(main)
