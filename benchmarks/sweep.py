"""Recipes of training compared at equal numbers of star visits: learning rate, batch, labels.

A small model (dimension 64, 4 heads, 64 one-pixel tokens) learns from a mock survey, once with the
published recipe (batch 64, learning rate 1e-4, one label of a star, no warm-up, cosine with warm
restarts) and once with each combination of batch, learning rate and labels of a star (warm-up, one
cosine, gradients clipped at 1). All are judged alike: loss of all labels of the same validation
stars, the mean over labels. OUTPUT.json gets the curves, OUTPUT.png shows them, and the table that
is printed says when each recipe reached the published one's last loss.

    python -m benchmarks.sweep --output benchmarks/results/sweep
"""

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from tqdm.auto import tqdm

from benchmarks.common import record
from benchmarks.inference import LABELS, paper_model
from benchmarks.scaling import MODEL
from stellarperceptron.config import TrainingOptions
from stellarperceptron.distributed import Process
from stellarperceptron.inference import apogee_pixel_names
from stellarperceptron.profiles import Schedule
from stellarperceptron.spectra import APOGEE_WAVELENGTH
from stellarperceptron.survey import MockSurvey
from stellarperceptron.trainer import Trainer
from stellarperceptron.training import _PerceptronTask
from stellarperceptron.training_data import prepare_training_data, usable_stars
from stellarperceptron.training_generator import TrainingGenerator
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.memory import freed_memory_kept

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CONTEXT = 64


def parse_arguments() -> argparse.Namespace:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stars", type=int, default=4096, help="mock stars (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="default %(default)s")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3])
    parser.add_argument("--labels", nargs="+", choices=("one", "all"), default=["one", "all"])
    parser.add_argument(
        "--warmup", type=float, default=0.05, help="share of the steps (default %(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=1800, help="begin no recipe after so many seconds"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("sweep"), help="path without ending, of both files"
    )
    return parser.parse_args()


def recipes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The published recipe, then all others."""
    published = {"name": "published", "batch": 64, "rate": 1e-4, "labels": "one"}
    others = itertools.product(arguments.labels, arguments.batches, arguments.rates)
    return [
        published,
        *(
            {"name": f"batch {b}, {rate:g}, {n}", "batch": b, "rate": rate, "labels": n}
            for n, b, rate in others
        ),
    ]


def mock_stars(number: int) -> dict[str, np.ndarray]:
    """Synthetic spectra (N, 7514), labels and their errors (N, 5) of mock stars."""
    blocks = list(MockSurvey(1).blocks("train", number))
    return {
        name: np.concatenate([block[name] for block in blocks])
        for name in ("synthetic", "labels", "label_errors")
    }


def curve(recipe: dict[str, Any], stars: dict[str, np.ndarray], arguments) -> dict[str, list]:
    """Train once; CPU seconds so far, star visits and validation loss after each epoch."""
    model = paper_model(context_length=CONTEXT, **MODEL)
    names = apogee_pixel_names(APOGEE_WAVELENGTH)
    model.fit_standardization(stars["synthetic"], names)
    data = prepare_training_data(
        model,
        stars["synthetic"].__getitem__,
        len(stars["labels"]),
        names,
        APOGEE_WAVELENGTH,
        stars["labels"],
        stars["label_errors"],
        LABELS,
    )
    rows = usable_stars(data)
    validation, training = rows[: len(rows) // 8], rows[len(rows) // 8 :]
    published = recipe["name"] == "published"
    options = TrainingOptions(
        epochs=arguments.epochs,
        batch_size=recipe["batch"],
        learning_rate=recipe["rate"],
        labels_per_star=recipe["labels"],
        max_gradient_norm=0.0 if published else 1.0,
    )
    steps = math.ceil(len(training) / recipe["batch"])
    warmup = max(1, round(arguments.warmup * steps * arguments.epochs))
    schedule = (
        Schedule("cosine_warm_restarts")
        if published
        else Schedule("warmup_cosine", warmup_steps=warmup)
    )
    process = Process(0, 1, model.device)
    task = _PerceptronTask(model, data, training, validation, options, process)
    trainer = Trainer(
        task,
        options,
        process,
        lambda optimizer, per_epoch: schedule.make(optimizer, per_epoch, arguments.epochs),
    )
    # The same question for everybody: all labels of every validation star.
    trainer.validation = TrainingGenerator(
        data, validation, 256, CONTEXT, labels_per_star="all", fixed=True
    )
    model.torch_model.train()
    seconds, result = 0.0, {"cpu_s": [], "visits": [], "loss": []}
    with freed_memory_kept():
        for epoch in range(arguments.epochs):
            begin = time.process_time()
            for batch in trainer.training.batches(epoch):
                trainer.train_batch(batch)
            trainer.end_epoch()
            seconds += time.process_time() - begin
            result["cpu_s"].append(seconds)
            result["visits"].append((epoch + 1) * len(training))
            result["loss"].append(trainer.validate()[0] / len(LABELS))
    return result


def reached(curve: dict[str, list], loss: float) -> float | None:
    """CPU seconds until a loss; None if it was not reached."""
    return next(
        (s for s, v in zip(curve["cpu_s"], curve["loss"], strict=True) if v <= loss),
        None,
    )


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Loss against star visits, a panel for each number of labels; the published recipe in both."""
    kinds = sorted({result["labels"] for result in results[1:]}) or ["one"]
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(5.5 * len(kinds), 4), sharey=True, squeeze=False, layout="tight"
    )
    batches = sorted({result["batch"] for result in results[1:]})
    rates = sorted({result["rate"] for result in results[1:]})
    for panel, kind in zip(panels[0], kinds, strict=True):
        for result in results:
            if result["name"] == "published":
                style = {"color": "black", "linestyle": "-", "label": "published"}
            elif result["labels"] != kind:
                continue
            else:
                style = {
                    "color": f"C{batches.index(result['batch'])}",
                    "alpha": 0.3 + 0.7 * (rates.index(result["rate"]) + 1) / len(rates),
                    "label": f"{result['batch']}, {result['rate']:g}",
                }
            panel.plot(result["visits"], result["loss"], **style)
        panel.set(xlabel="star visits", title=f"{kind} of a star's labels")
        panel.legend(title="batch, learning rate", fontsize=6)
    panels[0, 0].set_ylabel("validation loss a label")
    with atomic_output(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def main() -> None:
    """Stars, recipes one after the other, curves."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    stars = mock_stars(arguments.stars)
    begin, results = time.perf_counter(), []
    todo = recipes(arguments)
    for recipe in tqdm(todo, unit="recipe", disable=None):
        if results and time.perf_counter() - begin > arguments.limit:
            print(f"{len(todo) - len(results)} recipes are left out after {arguments.limit:g} s")
            break
        results.append({**recipe, **curve(recipe, stars, arguments)})
        record("sweep", {"recipes": results}, arguments.output.with_suffix(".json"))
        draw(results, arguments.output.with_suffix(".png"))
        print(f"{recipe['name']:25s} loss {results[-1]['loss'][-1]:.3f}", flush=True)
    goal = results[0]["loss"][-1]
    print(f"CPU seconds until the published recipe's {goal:.3f}:")
    for result in sorted(results, key=lambda r: reached(r, goal) or math.inf):
        when = reached(result, goal)
        print(f"{result['name']:25s} {'never' if when is None else f'{when:.1f}'}")


if __name__ == "__main__":
    main()
