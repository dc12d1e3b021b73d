r"""Labels of real stars from few pixels, learned from few of them.

Ridge and quadratic regression, a network from scratch, and a pre-trained model that is fine-tuned
all learn from the same stars and are tested on the rest, in five random splits. So is the mean of
the answers of quadratic regression and fine-tuned model. STARS_FILE is an .npz file with

wavelength (P,)     vacuum [Angstrom], on pixels of the APOGEE grid, or see below
flux (N, P)         normalized flux
bad (N, P)          true for bad pixels
labels (N, 3)       effective temperature [K], log g, [M/H]; label_names (3,) TEFF, LOGG, M_H or
                    FE_H
resolving_power     only if another instrument than APOGEE took the spectra: they are then
                    normalized as those of the model's training, and have any wavelengths that a
                    model trained on many instruments reads

OUTPUT gets few_labels.csv (each split), few_labels.md (mad_std, mean of the splits) and
few_labels.png (and .pdf), whose caption is below the table. What is in few_labels.csv already is
not run again.

    python few_labels.py --stars-file apogee_window100.npz --output runs/laptop/few_labels \
        --checkpoint runs/laptop/1_basemodel_synthetic
    python few_labels.py --stars-file runs/real/lamost.npz --stars 65 \
        --checkpoint runs/optical/1 --output runs/few
"""

import argparse
import functools
import itertools
import json
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from tqdm.auto import tqdm

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.wavelengths import off_pixels
from stellarperceptron.evaluation.baselines import PixelNetwork
from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.evaluation.tables import format_value
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.training.stars.few_stars import (
    AUGMENTATION,
    SETTINGS,
    TRAINED,
    WARMUP_STEPS,
    fine_tuning,
)
from stellarperceptron.utils.arguments import HelpFormatter, output_folder, positive, run_script
from stellarperceptron.utils.arrays import check_array_archive, sentinels_to_nan
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import markdown_table
from stellarperceptron.utils.plotting import PAGE_WIDTH, axis_label, save_figure, use_style

FLUX_SCALE = 0.958  # of the file's flux over that of this package's pseudo-continuum
MOST_VALUES = 1_000_000_000  # of an array in the file: 100,000 spectra
# What the model calls the labels.
TOKENS = {"TEFF": "TEFF", "LOGG": "LOGG", "M_H": "FE_H", "FE_H": "FE_H"}
HEADINGS = {"TEFF": "Teff [K]", "LOGG": "log g", "M_H": "[M/H]", "FE_H": "[Fe/H]"}
RIDGE, QUADRATIC = "ridge regression", "quadratic regression"
NETWORK, FINE_TUNED = "network from scratch", "pre-trained, fine-tuned"
MEAN, AVERAGED = "mean of quadratic and fine-tuned", (QUADRATIC, FINE_TUNED)
CAPTION = (
    "few_labels.png: mad_std of predicted minus catalogue labels of the stars not learned "
    "from, against the number of stars that each method learned from. Points are means of the "
    "random splits, bars reach from the best to the worst split; colours are methods, drawn side "
    "by side."
)


@dataclass(frozen=True, eq=False)
class Stars:
    """Spectra of N stars, P pixels each, NaN where bad, and their labels (N, L).

    `resolving_power` is that of another instrument; None: they are APOGEE's.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    labels: np.ndarray
    label_names: list[str]
    resolving_power: float | None = None


Method = Callable[[Stars, np.ndarray, np.ndarray, int], np.ndarray]
"""Function that predicts labels (n, L) of the stars `test` after training on the stars `train`."""


def read_stars(path: Path) -> Stars:
    """Read the file, its flux brought to this package's scale.

    Raises
    ------
    FileNotFoundError, ValueError
        The file is missing, or no such file; says what it lacks.
    """
    try:
        check_array_archive(path, MOST_VALUES)
        with np.load(path, allow_pickle=False) as content:
            needed = ["wavelength", "flux", "bad", "labels", "label_names"]
            missing = [name for name in needed if name not in content]
            arrays = {name: content[name] for name in needed if name not in missing}
            power = float(content["resolving_power"]) if "resolving_power" in content else None
    except (zipfile.BadZipFile, EOFError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no .npz file of plain arrays") from error
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    names = arrays["label_names"].astype(str).tolist()
    flux = sentinels_to_nan(arrays["flux"].astype(float))
    labels = sentinels_to_nan(arrays["labels"].astype(float), names)
    shapes = (len(labels), len(arrays["wavelength"])), (len(flux), len(names))
    if (flux.shape, labels.shape) != shapes or arrays["bad"].shape != flux.shape:
        raise ValueError(f"{path}: flux {flux.shape}, labels {labels.shape} and names do not match")
    if unknown := [name for name in names if name not in TOKENS]:
        raise ValueError(f"{path}: labels {unknown} are none of {', '.join(TOKENS)}")
    flux[arrays["bad"].astype(bool) | ~np.isfinite(flux)] = np.nan
    if power is not None:
        return Stars(arrays["wavelength"], flux, labels, names, power)
    pixels = APOGEE.pixels_at(arrays["wavelength"])  # refuses what is not on the APOGEE grid
    if (np.diff(pixels) != 1).any():
        raise ValueError(f"{path}: the wavelengths are not those of neighbouring APOGEE pixels")
    return Stars(arrays["wavelength"], flux / FLUX_SCALE, labels, names)


# --- methods --------------------------------------------------------------------------------------


def regression(quadratic: bool) -> Method:
    """Ridge regression on all pixels, and on products of principal components if it is quadratic.

    Features are never written out: their products are in the kernel 1 + x.y + c (u.v)^2 of the
    centred fluxes x, y and their first components u, v. The strength of the ridge, c and the number
    of components are those with the least squares of the leave-one-out residuals, which the
    eigenvalues of the kernel give without fitting anew (Rifkin & Lippert 2007, Notes on
    Regularized Least Squares, MIT-CSAIL-TR-2007-025).
    """
    kernels = [(0.0, 1)]
    if quadratic:
        kernels += [(weight, number) for weight in (0.1, 1.0, 10.0) for number in (1, 2, 3, 5, 10)]

    def method(stars: Stars, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        mean = np.nanmean(stars.flux[train], axis=0)
        x, asked = (np.nan_to_num(stars.flux[rows] - mean) for rows in (train, test))
        scale = np.sqrt(np.mean((x**2).sum(axis=1)))
        x, asked = x / scale, asked / scale
        axes = np.linalg.svd(x, full_matrices=False)[2].T
        y = stars.labels[train]
        middle = y.mean(axis=0)
        least, answers = np.full(y.shape[1], np.inf), np.zeros((len(test), y.shape[1]))
        for weight, number in kernels:

            def kernel(one: np.ndarray, part: np.ndarray, weight=weight) -> np.ndarray:
                return 1 + one @ x.T + weight * (one @ part @ (x @ part).T) ** 2

            values, vectors = np.linalg.eigh(kernel(x, axes[:, :number]))
            turned = vectors.T @ (y - middle)
            for strength in 10.0 ** np.arange(-5.0, 1.5, 0.25) * len(x) ** 0.5:
                shrunk = 1 / (values.clip(0) + strength)
                weights = vectors @ (shrunk[:, None] * turned)
                left_out = weights / (vectors**2 @ shrunk)[:, None]
                squares = np.square(left_out).mean(axis=0)
                better = squares < least
                least[better] = squares[better]
                answers[:, better] = kernel(asked, axes[:, :number]) @ weights[:, better]
        return answers + middle

    return method


def network(stars: Stars, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Train a plain network from scratch; some of the stars are used for early stopping."""
    model = PixelNetwork(widths=(64, 64), epochs=100, learning_rate=3e-3, progress=False)
    model.fit(stars.flux[train], stars.labels[train], None, stars.label_names, seed)
    return model.predict(stars.flux[test])[stars.label_names].to_numpy()


def instrument_of(stars: Stars) -> Instrument:
    """The instrument of the spectra; gaps in wavelength divide its pixels into chips."""
    step = np.diff(np.log(stars.wavelength))
    index = np.append(0, np.cumsum(np.round(step / np.median(step))))
    ends = [0, *(np.flatnonzero(step > 20 * np.median(step)) + 1), len(index)]
    chips = {f"chip_{i}": (int(a), int(b)) for i, (a, b) in enumerate(itertools.pairwise(ends))}
    return Instrument(
        "OTHER",
        stars.wavelength,
        chips=chips,
        resolving_power=stars.resolving_power,
        grid_index=index,
    )


def fine_tuned(checkpoint: Path, steps: int, weights: str) -> Method:
    """Fine-tune the pre-trained model; see `few_stars.fine_tuning` for its weights."""

    def method(stars: Stars, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        model = StellarPerceptron.load_for_finetuning(checkpoint)
        labels = [TOKENS[name] for name in stars.label_names]
        settings = {**fine_tuning(len(train), steps, seed, weights), "progress": False}
        if stars.resolving_power is not None:
            told = {"resolving_power": stars.resolving_power}
            # Of the model's own pixels it knows the resolving power.
            own = not off_pixels(model.instrument, stars.wavelength).any()
            augment = functools.partial(AUGMENTATION.with_noise, instrument=instrument_of(stars))
            known = pd.DataFrame(stars.labels[train], columns=labels)
            model.fit(
                stars.flux[train],
                known,
                stars.wavelength,
                augment=augment,
                **({} if own else told),
                **settings,
            )
            answers = model.predict(
                stars.flux[test], stars.wavelength, labels, progress=False, **told
            )
            return answers[labels].to_numpy()
        pixels = APOGEE.pixels_at(stars.wavelength)
        augment = functools.partial(AUGMENTATION, pixels=slice(int(pixels[0]), int(pixels[-1]) + 1))
        model.fit(
            np.hstack([stars.flux[train], stars.labels[train]]),
            [*APOGEE.pixel_names(stars.wavelength), *labels],
            labels,
            inputs_wavelength=np.append(stars.wavelength, np.zeros(len(labels))),
            augment=augment,
            **settings,
        )
        answers = model.predict(stars.flux[test], stars.wavelength, labels, progress=False)
        return answers[labels].to_numpy()

    return method


# --- script ---------------------------------------------------------------------------------------


def main() -> None:
    """Arguments, stars, all splits by all methods, table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--stars-file", type=Path, required=True, help=".npz file as above")
    parser.add_argument("--output", type=output_folder, required=True, help="folder of the results")
    parser.add_argument(
        "--checkpoint", type=Path, help="output of stage 1, or a checkpoint; none: no fine-tuning"
    )
    parser.add_argument(
        "--stars", type=positive, nargs="+", default=[30, 100, 300], help="labelled stars"
    )
    parser.add_argument("--splits", type=positive, default=5, help="random splits")
    parser.add_argument(
        "--steps", type=positive, default=1500, help="optimizer steps of a fine-tuning"
    )
    parser.add_argument(
        "--train",
        choices=TRAINED,
        default="auto",
        help="weights to fine-tune; auto: the embeddings below 200 stars, all from there on",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the splits and of the networks")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        stars = read_stars(arguments.stars_file)
        if max(arguments.stars) > len(stars.flux) - 10:
            raise ValueError(
                f"{arguments.stars_file} has {len(stars.flux)} stars: too few to learn from "
                f"{max(arguments.stars)} and test on the rest"
            )
        methods: dict[str, Method] = {RIDGE: regression(False), QUADRATIC: regression(True)}
        methods[NETWORK] = network
        if arguments.checkpoint is not None:
            checkpoint = resolve_checkpoint(arguments.checkpoint)
            methods[FINE_TUNED] = fine_tuned(checkpoint, arguments.steps, arguments.train)
        table = run(arguments, stars, methods)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    text = markdown_table(mean_table(table))
    with atomic_output(arguments.output / "few_labels.md") as temporary:
        temporary.write_text(f"{text}\n{CAPTION}\n", encoding="utf-8")
    draw(table, arguments.output / "few_labels.png")
    print(text, end="")


def run(arguments: argparse.Namespace, stars: Stars, methods: dict[str, Method]) -> pd.DataFrame:
    """Metrics by method, number of stars, split and label; an interrupted run is continued."""
    path, settings = arguments.output / "few_labels.csv", arguments.output / "few_labels.json"
    about = {
        "stars": len(stars.flux),
        "seed": arguments.seed,
        "checkpoint": str(arguments.checkpoint) if arguments.checkpoint else None,
        "fine_tuning": {
            **SETTINGS,
            "steps": arguments.steps,
            "warmup_steps": WARMUP_STEPS,
            "train": arguments.train,
        },
        "augmentation": {
            key: np.ravel(value).tolist() for key, value in vars(AUGMENTATION).items()
        },
    }
    rows = []
    if path.is_file():
        if json.loads(settings.read_text(encoding="utf-8-sig")) != about:
            raise ValueError(f"{path} was made with other settings: remove it, or another --output")
        rows = pd.read_csv(path).to_dict("records")
    with atomic_output(settings) as temporary:
        temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
    done = {(row["method"], row["labelled_stars"], row["split"]) for row in rows}
    names = [*methods, *([MEAN] if FINE_TUNED in methods else [])]
    todo = [
        (method, number, split)
        for number in sorted(set(arguments.stars))
        for split in range(arguments.splits)
        for method in names
        if (method, number, split) not in done
    ]

    def divided(number: int, split: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.RandomState(arguments.seed + split).permutation(len(stars.flux))
        return order[:number], order[number:]

    @functools.lru_cache(maxsize=len(methods))
    def answers(method: str, number: int, split: int) -> tuple[np.ndarray, float]:
        """Labels of the stars that are not learned from, and CPU seconds."""
        begin = time.process_time()
        predicted = methods[method](stars, *divided(number, split), arguments.seed + split)
        return predicted, time.process_time() - begin

    for method, number, split in tqdm(todo, "few labels", unit="fit", disable=None):
        parts = AVERAGED if method == MEAN else (method,)
        found = [answers(part, number, split) for part in parts]
        predicted = np.mean([values for values, _ in found], axis=0)
        seconds = round(sum(taken for _, taken in found), 2)
        _, test = divided(number, split)
        for i, label in enumerate(stars.label_names):
            rows.append(
                {
                    "method": method,
                    "labelled_stars": number,
                    "split": split,
                    "label": label,
                    "cpu_seconds": seconds,
                    **label_metrics(predicted[:, i], stars.labels[test, i]),
                }
            )
        with atomic_output(path) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.7g")
    return pd.DataFrame(rows)


def mean_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean mad_std of the splits as text, with the best for each number of stars in bold."""
    means = table.groupby(["labelled_stars", "method", "label"], sort=False)["mad_std"].mean()
    labels = table["label"].unique()
    rows = []
    for (number, method), values in means.groupby(level=[0, 1], sort=False):
        row = {"labelled stars": str(number), "method": method}
        for label in labels:
            value = values[number, method, label]
            text = format_value(value, label)
            best = value <= means[number, :, label].min()
            row[HEADINGS[label]] = f"**{text}**" if best else text
        rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw errors against the number of labelled stars, a panel for each label."""
    use_style()
    labels = table["label"].unique()
    figure = Figure(figsize=(PAGE_WIDTH, 2.6), layout="constrained")
    for axes, label in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        for place, (method, part) in enumerate(
            table[table["label"] == label].groupby("method", sort=False)
        ):
            values = part.groupby("labelled_stars")["mad_std"].agg(["mean", "min", "max"])
            around = np.abs(values[["min", "max"]].sub(values["mean"], axis=0)).T.to_numpy()
            beside = values.index * 1.05 ** (place - 2)
            axes.errorbar(beside, values["mean"], around, marker="o", label=method)
        numbers = sorted(table["labelled_stars"].unique())
        axes.set(xscale="log", xlabel="number of labelled stars")
        axes.set_xticks(numbers, labels=list(map(str, numbers)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylabel(f"mad_std of {axis_label(TOKENS[label]).replace('Fe/H', 'M/H')}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save_figure(figure, path)


if __name__ == "__main__":
    run_script(main)
