r"""Errors of all labels against the number of labelled stars.

The baselines are trained on 30 to 20,000 stars; given a checkpoint of stage 1, so is the model
fine-tuned, by the script of stage 2, on the very same stars. All predict the survey's test stars.
OUTPUT gets

learning_curve.csv, .png    mad_std and RMSE by method, number of stars and label, with the
                            picture as PDF and its caption
<stars>/                    predictions, as `train_baselines.py` writes them
<stars>/fine_tuned/         the run of stage 2

Each point is computed once: what is there is not trained again.

    python learning_curve.py --data runs/laptop/survey.h5 --output runs/laptop/learning_curve \
        --checkpoint runs/laptop/1_basemodel_synthetic
"""

import argparse
import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from tqdm.auto import tqdm

from stellarperceptron.evaluation.baselines import BASELINES
from stellarperceptron.evaluation.predictions import about_predictions
from stellarperceptron.evaluation.tables import compare_predictions
from stellarperceptron.training.profiles import find_profile, read_profile
from stellarperceptron.utils.arguments import HelpFormatter, output_folder, positive, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.plotting import PAGE_WIDTH, axis_label, save_figure, use_style

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ROOT / "training/profiles"
STAGE_2 = ROOT / "training/2_realfinetune_firsthalf"
FINE_TUNE = STAGE_2 / "finetuningAPOGEE.py"
EVALUATE = ROOT / "results/real_spectra_finetune/evaluate_2_realfinetune_firsthalf_epoch_10.py"
TRAIN_BASELINES = ROOT / "results/baselines/train_baselines.py"
FINE_TUNED = "2_realfinetune_firsthalf_on_observed"  # as the evaluation script names its table
NAMES = {
    FINE_TUNED: "pre-trained, fine-tuned",
    **{name: name.replace("_", " ").replace("pixel", "plain") for name in BASELINES},
}
METRICS = {"mad_std": "mad_std", "rmse": "RMSE"}
CAPTION = (
    "{metric} of predicted minus catalogue labels of the test stars, against the number of "
    "labelled stars that each method learned from, on logarithmic axes. A point is one training; "
    "colours are methods."
)


def parse_arguments() -> argparse.Namespace:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="survey file")
    parser.add_argument("--output", type=output_folder, required=True, help="folder of the results")
    parser.add_argument(
        "--stars",
        type=positive,
        nargs="+",
        default=[30, 100, 300, 1000, 3000, 10000, 20000],
        help="labelled stars",
    )
    parser.add_argument("--checkpoint", type=Path, help="output of stage 1; none: baselines only")
    parser.add_argument("--profile", default="laptop", help="of stage 2")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.ENTRY=VALUE", help="of stage 2"
    )
    parser.add_argument(
        "--least-steps",
        type=positive,
        default=600,
        help="steps of stage 2: of few stars it makes more epochs than its profile says",
    )
    parser.add_argument("--pixels", default="first_half", help="as of train_baselines.py")
    parser.add_argument("--seed", type=int, default=0, help="of stars and of training")
    parser.add_argument(
        "--baselines", nargs="+", choices=list(BASELINES), default=list(BASELINES), metavar="NAME"
    )
    parser.add_argument("--metric", choices=list(METRICS), default="mad_std", help="of the figure")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads")
    return parser.parse_args()


def main() -> None:
    """All points, then table and figure."""
    arguments = parse_arguments()
    numbers = sorted(set(arguments.stars))
    try:
        for number in tqdm(numbers, "learning curve", unit="point", disable=None):
            train_baselines(arguments, number)
            if arguments.checkpoint is not None:
                fine_tune(arguments, number)
        table = gather(arguments.output, numbers)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{Path(__file__).name}: {Path(error.cmd[1]).name} failed, see above")
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    with atomic_output(arguments.output / "learning_curve.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")
    draw(table, arguments.metric, arguments.output / "learning_curve.png")


def call(script: Path, *arguments: object) -> None:
    """Run a script as a process of its own."""
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True)


def train_baselines(arguments: argparse.Namespace, number: int) -> None:
    """Train the baselines on a number of stars; the script skips existing results."""
    call(
        TRAIN_BASELINES,
        *("--data", arguments.data, "--output", arguments.output / str(number)),
        *("--pixels", arguments.pixels, "--stars", number, "--seed", arguments.seed),
        *("--threads", arguments.threads, "--baselines", *arguments.baselines),
    )


def fine_tune(arguments: argparse.Namespace, number: int) -> None:
    """Fine-tune on a number of stars and predict; an interrupted run is continued."""
    folder = arguments.output / str(number)
    path = folder / f"{FINE_TUNED}.csv"
    if "cpu_seconds" in about_predictions(path):
        print(f"{path} is there: nothing to do")
        return
    chosen = [*arguments.set, f"data.stars={number}", f"data.pixels={arguments.pixels}"]
    profile = read_profile(find_profile(arguments.profile, PROFILES), "stage_2", chosen)
    steps = math.ceil(number / profile.training.batch_size)
    epochs = max(profile.training.epochs, math.ceil(arguments.least_steps / steps))
    chosen.append(f"training.epochs={epochs}")
    common = ("--data", arguments.data, "--threads", arguments.threads)
    begin = cpu_seconds()
    call(
        FINE_TUNE,
        *(*common, "--output", folder / "fine_tuned", "--checkpoint", arguments.checkpoint),
        *("--profile", arguments.profile, "--seed", arguments.seed),
        *(word for entry in chosen for word in ("--set", entry)),
    )
    trained = cpu_seconds()
    call(
        EVALUATE,
        *(*common, "--output", folder, "--checkpoint", folder / "fine_tuned"),
        *("--pixels", arguments.pixels),
    )
    # Stage 1 is not in it: it is trained once, for all numbers of stars. (Of a training that was
    # interrupted, only the rest is.)
    seconds = {"fit": trained - begin, "predict": cpu_seconds() - trained}
    about = {**about_predictions(path), "stars": number, "epochs": epochs, "cpu_seconds": seconds}
    with atomic_output(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")


def cpu_seconds() -> float:
    """CPU time of all processes that this one has run [s]."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(usage.ru_utime + usage.ru_stime, 2)


def gather(output: Path, numbers: list[int]) -> pd.DataFrame:
    """Metrics of all points."""
    parts = []
    for number in numbers:
        paths = {name: output / str(number) / f"{stem}.csv" for stem, name in NAMES.items()}
        files = {name: path for name, path in paths.items() if path.is_file()}
        part = compare_predictions(files)
        part.insert(1, "labelled_stars", number)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def draw(table: pd.DataFrame, metric: str, path: Path) -> None:
    """Draw errors against the number of labelled stars, a log-log panel for each label."""
    use_style()
    labels = list(table["label"].unique())
    columns = min(3, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(PAGE_WIDTH * columns / 3, 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, label in zip(panels, labels, strict=False):
        for method, part in table[table["label"] == label].groupby("method", sort=False):
            axes.plot(part["labelled_stars"], part[metric], marker="o", label=method)
        axes.set(xscale="log", yscale="log", xlabel="number of labelled stars")
        axes.set_ylabel(f"{METRICS[metric]} of {axis_label(label)}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,g}")
            axis.set_minor_formatter(NullFormatter())
    handles, names = panels[0].get_legend_handles_labels()
    free = panels[len(labels) :]
    for axes in free:
        axes.axis("off")
    (free[0] if len(free) else panels[0]).legend(
        handles, names, loc="center" if len(free) else "best"
    )
    save_figure(figure, path, CAPTION.format(metric=METRICS[metric]))


if __name__ == "__main__":
    run_script(main)
