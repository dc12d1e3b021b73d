r"""Precision and predicted errors from windows of a spectrum and at lower signal-to-noise ratios.

Stage 2 predicts labels of the survey's test stars from the first half of the observed band, from
windows of it, and from spectra to which noise was added, correlated between neighbouring pixels as
the survey's is. The windows lie at four random places, a quarter of the stars each. A model that
takes the signal-to-noise ratio is told it. OUTPUT gets

errors_by_range.csv     metrics by label, fraction of the band and signal-to-noise ratio
errors_by_range.png     the same, drawn; also as PDF, and the caption as Markdown

    python errors_by_range.py --data runs/laptop/survey.h5 --output runs/laptop/figures \
        --checkpoint runs/laptop/2_realfinetune_firsthalf
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from tqdm.auto import tqdm

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock.observation import correlate_noise
from stellarperceptron.data.mock.spectrographs import noise_correlation
from stellarperceptron.data.survey_file import ERRORS
from stellarperceptron.evaluation.evaluate import evaluation_labels
from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.labels import label as label_named
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import HelpFormatter, output_folder, positive, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.plotting import save_figure, use_style

PIXELS = "first_half"
SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)  # of the band, the last of them 9 Angstrom
NOISE = (200.0, 100.0, 50.0, 30.0)  # signal-to-noise ratios a pixel of the added noise alone
PLACES = 4  # of a window
ROWS = {  # panels of the figure
    "mad_std": "mad_std over that of\nthe whole spectrum",
    "total_within_1_sigma": "fraction within 1 sigma",
}
TICKS = (1, 2, 3, 5, 10)
GAUSSIAN = 0.6827
CAPTION = (
    "Stage 2 from windows of the first half of the observed band (left), and from all of it after "
    "noise was added, correlated as the survey's (right), at most {stars:,} test stars. Top: "
    "mad_std over that of the whole spectrum. Bottom: fraction of the test stars within 1 sigma, "
    "the quadrature sum of the predicted error and the catalogue's. Colours are labels; dashed: "
    "Gaussian errors."
)


def measure(
    model: StellarPerceptron, dataset: SpectraDataset, labels: list[str], stars: int, seed: int
) -> pd.DataFrame:
    """Metrics by label for every fraction of the band and every signal-to-noise ratio."""
    test = dataset.test
    pixels = test.pixel_range(PIXELS)
    rows = np.arange(min(stars, len(test)))
    flux, wavelength = test.read("observed", rows, pixels), dataset.wavelength[pixels]
    known = test.read(ERRORS, rows, pixels) if test.has_errors else np.zeros_like(flux)
    columns = [dataset.label_names.index(label) for label in labels]
    true, catalogue = (array[rows][:, columns] for array in (test.labels, test.label_errors))
    random, correlation = np.random.default_rng(seed), noise_correlation(dataset.instrument)
    cases = [(share, np.inf) for share in SHARES] + [(1.0, noise) for noise in NOISE]
    table = []
    for share, noise in tqdm(cases, "errors", unit="case", disable=None):
        normal = torch.from_numpy(random.standard_normal(flux.shape, dtype=np.float32))
        seen = flux + correlate_noise(normal, correlation).numpy() / noise
        errors = np.hypot(known, 1 / noise)
        told = model.config.conditions and errors.any()
        found, error = np.full((2, *true.shape), np.nan)
        length = max(1, round(share * len(wavelength)))
        for part in np.array_split(np.arange(len(flux)), PLACES):
            start = int(random.integers(len(wavelength) - length + 1))
            window = slice(start, start + length)
            answer = model.predict(
                seen[part, window],
                wavelength[window],
                labels,
                errors=errors[part, window] if told else None,
                progress=False,
            )
            found[part] = answer[labels]
            error[part] = answer[[f"{label}_error" for label in labels]]
        table += [
            {
                "label": label,
                "share": share,
                "pixels": length,
                "noise_snr": noise,
                **label_metrics(found[:, i], true[:, i], error[:, i], catalogue[:, i]),
            }
            for i, label in enumerate(labels)
        ]
    return pd.DataFrame(table)


def draw(table: pd.DataFrame) -> Figure:
    """Draw precision and coverage against the range, and against the noise."""
    use_style()
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    grid = figure.subplots(len(ROWS), 2, sharex="col", sharey="row")
    ranges, noises = table[np.isinf(table["noise_snr"])], table[table["share"] == 1]
    # Spectra without added noise are drawn at twice the highest of these ratios.
    noises = noises.assign(noise_snr=noises["noise_snr"].replace(np.inf, 2 * max(NOISE)))
    for column, (part, key) in enumerate(((ranges, "pixels"), (noises, "noise_snr"))):
        for row, metric in enumerate(ROWS):
            axes = grid[row, column]
            for label, values in part.groupby("label", sort=False):
                y = values[metric].to_numpy()
                if metric == "mad_std":
                    y = y / y[values["noise_snr"].argmax() if column else 0]
                axes.plot(values[key], y, marker="o", label=label_named(label).symbol)
            axes.set(xscale="log")
    for axes in grid[1]:
        axes.axhline(GAUSSIAN, color="black", lw=0.6, ls="--")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.4), max(high, 0.9))
    for axes in grid[0]:
        axes.set(yscale="log", yticks=TICKS, yticklabels=map(str, TICKS))
        axes.yaxis.set_minor_formatter(NullFormatter())
    for axes, words in zip(grid[:, 0], ROWS.values(), strict=True):
        axes.set_ylabel(words)
    grid[1, 0].set_xlabel("pixels of the window")
    grid[1, 1].set_xlabel("signal-to-noise ratio of the added noise")
    names = [*(f"{noise:g}" for noise in NOISE), "none"]
    grid[1, 1].set_xticks([*NOISE, 2 * max(NOISE)], labels=names)
    grid[1, 1].minorticks_off()
    grid[0, 0].legend(ncols=2)
    return figure


def main() -> None:
    """Arguments, predictions, table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="survey file")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of stage 2, or a checkpoint"
    )
    parser.add_argument("--output", type=output_folder, required=True, help="folder of the results")
    parser.add_argument(
        "--stars", type=positive, default=2000, help="test stars, or all if there are fewer"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the windows and of the noise")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        checkpoint = resolve_checkpoint(arguments.checkpoint)
        with SpectraDataset.open(arguments.data) as dataset:
            model = StellarPerceptron.load(checkpoint, device=arguments.device)
            labels = list(evaluation_labels(model, checkpoint, dataset, "all"))
            table = measure(model, dataset, labels, arguments.stars, arguments.seed)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    with atomic_output(arguments.output / "errors_by_range.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g")
    caption = CAPTION.format(stars=arguments.stars)
    save_figure(draw(table), arguments.output / "errors_by_range.png", caption)
    shown = ["label", "pixels", "noise_snr", "mad_std", "total_pull_std", "total_within_1_sigma"]
    print(table[shown].to_string(index=False, float_format="%.4g"))


if __name__ == "__main__":
    run_script(main)
