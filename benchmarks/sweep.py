"""Recipes of training compared: batch, learning rate, labels of a star, warm-up.

A small model (dimension 64, 4 heads, 64 one-pixel tokens) learns from a mock survey, once with the
published recipe (batch 64, learning rate 1e-4, one label of a star, no warm-up, cosine with warm
restarts, about 6.5 periods) and, with a part of its star visits, with each combination that is
asked for (one cosine after the warm-up, gradients clipped at 1). All are judged alike: loss of all
labels of the same validation stars, the mean over labels. OUTPUT.json gets the curves, OUTPUT.png
shows them; the table that is printed says when each recipe reached the published one's least loss.
What OUTPUT.json has already is not trained again.

    python -m benchmarks.sweep --output benchmarks/results/<date>-<hardware>-sweep

With `--pixels-per-token` the tokens are bins of the first half of the band, all of which are in one
context, and spectra are augmented, as in profile laptop.
"""

import argparse
import itertools
import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from benchmarks.common import record
from benchmarks.inference import LABELS, paper_model
from benchmarks.scaling import MODEL
from stellarperceptron import StellarPerceptron
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.data.mock.survey import MockSurvey
from stellarperceptron.instruments import APOGEE
from stellarperceptron.network.kernels.memory import freed_memory_kept
from stellarperceptron.nn_utils import Schedule
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.prepare import (
    TrainingData,
    fit_standardization,
    prepare_training_data,
    usable_stars,
)
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.stars.labelled import Stars
from stellarperceptron.training.step import Trainer
from stellarperceptron.training.tasks import PerceptronTask
from stellarperceptron.utils.distributed import Process
from stellarperceptron.utils.plotting import COLORS, PAGE_WIDTH, save_figure, use_style

CONTEXT = 64
PUBLISHED = {"name": "published", "batch": 64, "rate": 1e-4, "labels": "one", "warmup": 0.0}
PERIODS = 325 / 50  # of the published schedule (Koblischke & Bovy 2024, section 3)
CAPTION = (
    "Loss of all labels of the same validation stars, mean over the labels, against the number of "
    "stars that a recipe has been shown. Black: the published recipe. Colours: stars in a batch; "
    "paler: lower learning rates; dashed: one label of a star at a time, solid: all."
)
# What recipes must have in common to be compared, and what older records, which lack it, had.
SHARED = {"stars": None, "dim": None, "pixels_per_token": 1}


def parse_arguments() -> argparse.Namespace:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stars", type=int, default=16_384, help="mock stars (default %(default)s)")
    add("--data", type=Path, help="survey file whose first stars are taken; none: they are made")
    add("--dim", type=int, default=64, help="dimensions of a token (default %(default)s)")
    add("--pixels-per-token", type=int, default=1, help="pixels of a bin (default %(default)s)")
    add("--epochs", type=int, default=8, help="of each recipe (default %(default)s)")
    add("--published-epochs", type=int, default=24, help="0: leave it out (default %(default)s)")
    add("--batches", type=int, nargs="+", default=[64, 256, 1024], help="stars (%(default)s)")
    add("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3], help="(%(default)s)")
    add("--labels", nargs="+", choices=("one", "all"), default=["all"], help="(%(default)s)")
    add("--warmups", type=float, nargs="+", default=[0.05], help="share of steps (%(default)s)")
    add("--limit", type=float, default=3600, help="begin no recipe after so many seconds")
    add("--output", type=Path, default=Path("sweep"), help="path without ending, of both files")
    arguments = parser.parse_args()
    if arguments.dim < 1 or arguments.dim % 32:
        parser.error(f"--dim {arguments.dim} is no multiple of 32")
    if arguments.pixels_per_token > 1 and arguments.published_epochs:
        parser.error("the published recipe has tokens of one pixel: --published-epochs 0")
    return arguments


def recipes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The published recipe, then all others."""
    first = [{**PUBLISHED, "epochs": arguments.published_epochs}]
    others = itertools.product(
        arguments.labels, arguments.batches, arguments.rates, arguments.warmups
    )
    return (first if arguments.published_epochs else []) + [
        {
            "name": f"batch {batch}, rate {rate:g}, {labels}, warm-up {warmup:g}",
            "batch": batch,
            "rate": rate,
            "labels": labels,
            "warmup": warmup,
            "epochs": arguments.epochs,
        }
        for labels, batch, rate, warmup in others
    ]


def mock_stars(number: int, data: Path | None = None) -> dict[str, np.ndarray]:
    """Synthetic spectra (N, 7514), labels and their errors (N, 5) of mock stars."""
    if data is not None:
        with SpectraDataset.open(data, LABELS) as dataset:
            train, rows = dataset.train, slice(0, number)
            return {
                "synthetic": train.read("synthetic", rows),
                "labels": train.labels[rows],
                "label_errors": train.label_errors[rows],
            }
    blocks = list(MockSurvey(1).blocks("train", number))
    return {
        name: np.concatenate([block[name] for block in blocks])
        for name in ("synthetic", "labels", "label_errors")
    }


def fresh_model(names: list[str], dim: int, pixels_per_token: int) -> StellarPerceptron:
    """A model with fresh weights, always the same."""
    sizes = {
        name: size if "head" in name else size * dim // MODEL["embedding_dim"]
        for name, size in MODEL.items()
    }
    if pixels_per_token == 1:
        return paper_model(context_length=CONTEXT, **sizes)
    sizes |= {"encoder_dropout_rate": 0.0, "decoder_dropout_rate": 0.0}
    context = math.ceil(len(APOGEE) / pixels_per_token) + len(APOGEE.chips)  # bins end with chips
    return StellarPerceptron(
        [*names, *LABELS],
        device="cpu",
        seed=0,
        instrument=APOGEE,
        context_length=context,
        pixels_per_token=pixels_per_token,
        **sizes,
    )


def prepare(
    stars: dict[str, np.ndarray], dim: int, pixels_per_token: int = 1
) -> tuple[Any, TrainingData]:
    """A model with fresh weights and its stars; those of bins are augmented."""
    part = slice(None) if pixels_per_token == 1 else APOGEE.pixel_range("first_half")
    wavelength = APOGEE_WAVELENGTH[part]
    names = list(APOGEE.pixel_names(wavelength))
    model = fresh_model(names, dim, pixels_per_token)
    flux = stars["synthetic"][:, part]
    given = Stars(
        flux.__getitem__,
        names,
        wavelength,
        stars["labels"],
        # Theory is made from the labels of the catalogue, which are exact for it.
        stars["label_errors"] if pixels_per_token == 1 else None,
        LABELS,
    )
    fit_standardization(model, given)
    augment = None if pixels_per_token == 1 else partial(Augmentation(), pixels=part)
    return model, prepare_training_data(model, given, dtype=torch.float16, augment=augment)


def schedule_of(recipe: dict[str, Any], steps: int) -> Schedule:
    """The published schedule, as long as the training; or a warm-up and one cosine."""
    if recipe["name"] == "published":
        period = max(1, round(recipe["epochs"] / PERIODS))
        return Schedule("cosine_warm_restarts", restart_epochs=period)
    return Schedule("warmup_cosine", warmup_steps=round(recipe["warmup"] * steps))


def curve(recipe: dict[str, Any], model: Any, data: TrainingData) -> dict[str, list]:
    """Train once; CPU seconds so far, star visits and validation loss after each epoch."""
    rows = usable_stars(data)
    validation, training = rows[: len(rows) // 8], rows[len(rows) // 8 :]
    options = TrainingOptions(
        epochs=recipe["epochs"],
        batch_size=recipe["batch"],
        learning_rate=recipe["rate"],
        labels_per_star=recipe["labels"],
        choice="star" if model.config.pixels_per_token == 1 else "batch",
        max_gradient_norm=0.0 if recipe["name"] == "published" else 1.0,
    )
    schedule = schedule_of(recipe, math.ceil(len(training) / recipe["batch"]) * recipe["epochs"])
    process = Process(0, 1, model.device)
    task = PerceptronTask(model, data, training, validation, options, process)
    trainer = Trainer(
        task,
        options,
        process,
        lambda optimizer, per_epoch: schedule.make(optimizer, per_epoch, recipe["epochs"]),
    )
    # The same question for everybody: all labels of every validation star.
    trainer.validation = TrainingGenerator(
        data,
        validation,
        256,
        model.config.context_length,
        choice=options.choice,
        labels_per_star="all",
        fixed=True,
    )
    model.torch_model.train()
    seconds, result = 0.0, {"cpu_s": [], "visits": [], "loss": []}
    with freed_memory_kept():
        for epoch in range(recipe["epochs"]):
            begin = time.process_time()
            for batch in trainer.training.batches(epoch):
                trainer.train_batch(batch)
            trainer.end_epoch()
            seconds += time.process_time() - begin
            result["cpu_s"].append(seconds)
            result["visits"].append((epoch + 1) * len(training))
            result["loss"].append(trainer.validate()["loss"] / len(LABELS))
    return result


def reached(curve: dict[str, list], loss: float, what: str = "cpu_s") -> float | None:
    """CPU seconds, or star visits, until a loss; None if it was not reached."""
    pairs = zip(curve[what], curve["loss"], strict=True)
    return next((amount for amount, value in pairs if value <= loss), None)


def goal(results: list[dict[str, Any]]) -> float | None:
    """Least loss of the published recipe, of its longest training; None without it."""
    published = [result for result in results if result["name"] == "published"]
    return min(max(published, key=lambda r: r["epochs"])["loss"]) if published else None


def left(todo: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Recipes that have no results yet."""
    known = {(result["name"], result["epochs"]) for result in results}
    return [recipe for recipe in todo if (recipe["name"], recipe["epochs"]) not in known]


def known_results(path: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Recipes that a file has already.

    Raises
    ------
    ValueError
        They were trained on other stars, or with another model.
    """
    if not path.exists():
        return []
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    for name, earlier in SHARED.items():
        known, asked = results.get(name, earlier), getattr(arguments, name)
        if known != asked:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{path} has recipes of {option} {known}, not {asked}: give another --output"
            )
    return results["recipes"]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw loss against star visits, a colour for each batch, paler for lower learning rates."""
    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    others = [result for result in results if result["name"] != "published"]
    batches = sorted({result["batch"] for result in others})
    rates = sorted({result["rate"] for result in others})
    for result in results:
        if result["name"] == "published":
            style = {
                "color": COLORS["black"],
                "lw": 1.5,
                "label": "published: 64, 0.0001, one, none, {epochs}".format(**result),
            }
        else:
            style = {
                "color": f"C{batches.index(result['batch'])}",
                "alpha": 0.25 + 0.75 * (rates.index(result["rate"]) + 1) / len(rates),
                "linestyle": "-" if result["labels"] == "all" else "--",
                "label": "{batch}, {rate:g}, {labels}, {warmup:.0%}, {epochs}".format(**result),
            }
        axes.plot(result["visits"], result["loss"], **style)
    axes.set(xlabel="star visits", ylabel="validation loss a label")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(
        title="batch, learning rate, labels,\nwarm-up, epochs",
        bbox_to_anchor=(1.01, 1),
        loc="upper left",
    )
    save_figure(figure, path, CAPTION)


def main() -> None:
    """Stars, recipes one after the other, curves."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    path = arguments.output.with_suffix(".json")
    try:
        results = known_results(path, arguments)
    except ValueError as error:
        sys.exit(str(error))
    todo = left(recipes(arguments), results)
    stars = mock_stars(arguments.stars, arguments.data) if todo else {}
    begin = time.perf_counter()
    for number, recipe in enumerate(tqdm(todo, unit="recipe", disable=None)):
        if time.perf_counter() - begin > arguments.limit:
            print(f"{len(todo) - number} recipes are left out after {arguments.limit:g} s")
            break
        prepared = prepare(stars, arguments.dim, arguments.pixels_per_token)
        results.append({**recipe, **curve(recipe, *prepared)})
        shared = {name: getattr(arguments, name) for name in SHARED}
        record("sweep", {**shared, "recipes": results}, path)
        draw(results, path.with_suffix(".png"))
        print(f"{recipe['name']:45s} loss {results[-1]['loss'][-1]:.3f}", flush=True)
    loss = goal(results)
    if loss is None:
        return
    print(f"CPU seconds until the published recipe's {loss:.3f}:")
    for result in sorted(results, key=lambda r: reached(r, loss) or math.inf):
        when = reached(result, loss)
        print(f"{result['name']:45s} {'never' if when is None else f'{when:.1f}'}")


if __name__ == "__main__":
    main()
