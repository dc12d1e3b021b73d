r"""Report of a run: figures, tables, timings and settings, with the paper's numbers beside.

Reads what the other scripts left in the run's folder and writes RUN/report.md and RUN/report.html,
one page that needs no other file. What is missing is said, with the command that makes it.

    python report.py runs/laptop --profile laptop --data runs/laptop/survey.h5

Stage 2 of other runs on the same stars is set beside the baselines: --compare runs/laptop_pixel
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import pandas as pd

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.evaluation.predictions import (
    about_predictions,
    read_predictions,
    require_stars_of,
)
from stellarperceptron.evaluation.summary import (
    attention_text,
    claims_table,
    comparison_sentence,
    configurations,
    describe_survey,
    errors_text,
    machine_table,
    masking_text,
    real_stars_text,
    stage_folders,
    stages_table,
    timings_table,
    training_seconds,
)
from stellarperceptron.evaluation.tables import (
    MODELS,
    compare_predictions,
    comparison_text,
    giants_table,
    giants_text,
    iron_bins_text,
    iron_table,
    iron_text,
    labels_text,
)
from stellarperceptron.utils.arguments import HelpFormatter, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import Document

OBSERVED = {
    "pretrained": "1_basemodel_synthetic_on_observed",
    "finetuned": "2_realfinetune_firsthalf_on_observed",
}
NETWORK = "2_realfinetune_firsthalf_network_on_observed"  # stage 2 without its regression
SYNTHETIC = {"pretrained": "1_basemodel_synthetic_on_synthetic"}
CHUNK = {
    "scratch": "basic_NN_fehpredictions",
    "pretrained": "1_basemodel_synthetic_fehpredictions",
    "finetuned": "2_realfinetune_firsthalf_fehpredictions",
    "hundred": "3_fefinetune_chunk_fehpredictions",
}
PAPER = (
    "The paper is Koblischke & Bovy (2024), arXiv:2411.04750. Its numbers are of real stars of "
    "APOGEE DR17: compare their trends with those of a mock survey, not their values."
)
BASELINES = "results/baselines/train_baselines.py"
COVERAGE = "results/real_spectra_finetune/coverage.py"
BY_RANGE = "results/real_spectra_finetune/errors_by_range.py"
REAL_STARS = "results/real_stars/predict_real_stars.py"
ATTENTION = "results/attention/extract_attention.py"


class Run:
    """A run's folder and survey, and the document about them."""

    def __init__(self, folder: Path, dataset: SpectraDataset, document: Document):
        self.folder, self.dataset, self.document = folder, dataset, document

    def predictions(self, names: dict[str, str]) -> dict[str, pd.DataFrame]:
        """Existing tables of predictions for the survey's test stars."""
        tables = {}
        for key, name in names.items():
            path = self.folder / "evaluation" / f"{name}.csv"
            if path.is_file():
                tables[key] = read_predictions(path, "make reproduce")
                require_stars_of(tables[key], str(path), self.dataset.test, self.dataset.path)
        return tables

    def table(self, name: str) -> pd.DataFrame | None:
        """Table of another script, if it exists."""
        path = self.folder / name
        return pd.read_csv(path) if path.is_file() else None

    def figure(self, name: str, command: str) -> None:
        """Add a picture of another script with its caption, or the command that makes it."""
        path = self.folder / name
        caption = path.with_suffix(".md")
        if path.is_file() and caption.is_file():
            self.document.figure(path, caption.read_text(encoding="utf-8").strip())
        else:
            self.missing(name, command)

    def missing(self, what: str, command: str) -> None:
        """Say that something is missing."""
        self.document.text(f"**Missing:** {what}, which `{command}` or `make reproduce` makes.")


def write_observed(run: Run, observed: dict[str, pd.DataFrame]) -> None:
    """Figure 2, Table 1, all labels."""
    command, document = "results/real_spectra_finetune/Figure2.py", run.document
    document.heading("Labels from observed spectra")
    run.figure("figures/Figure2.png", command)
    if set(observed) == set(OBSERVED):
        document.heading("Table 1", 3)
        document.table(
            giants_text(giants_table(observed)),
            "Giants (1.0 < log g < 3.5), predicted minus catalogue labels: mad_std / RMSE.",
        )
    else:
        run.missing("predictions from observed spectra", f"{Path(command).parent}/evaluate_*.py")
    tables = [(f"{MODELS[key]}, observed spectra", table) for key, table in observed.items()]
    tables += [
        (f"{MODELS[key]}, synthetic spectra", table)
        for key, table in run.predictions(SYNTHETIC).items()
    ]
    document.heading("All test stars, and calibration", 3)
    document.text(
        "Predicted minus catalogue labels, with 68 % bootstrap intervals. Pulls are residuals "
        "divided by the predicted errors alone, which do not include those of the catalogue. The "
        "values in brackets are those of well-calibrated errors, if the catalogue's are negligible."
    )
    for title, table in tables:
        document.table(labels_text(table), f"{title[0].upper()}{title[1:]}.")


def write_baselines(run: Run, others: list[Path]) -> None:
    """Compare stages 1 and 2 with the baselines and with stage 2 of other runs."""
    run.document.heading("Comparison with regressions and plain networks")
    found = sorted(run.folder.glob("baselines/*.csv"), reverse=True)
    baselines = {path.stem.replace("_", " "): path for path in found}
    if not baselines:
        run.missing("baselines/quadratic_regression.csv", BASELINES)
        return
    models = {"stage 1": (run.folder, "pretrained"), "stage 2": (run.folder, "finetuned")}
    models |= {f"{other}, stage 2": (other, "finetuned") for other in others}
    paths = {
        name: folder / "evaluation" / f"{OBSERVED[key]}.csv"
        for name, (folder, key) in models.items()
    }
    paths = {k: v for k, v in paths.items() if v.is_file() or models[k][0] != run.folder}
    alone = run.folder / "evaluation" / f"{NETWORK}.csv"
    if alone.is_file() and "stage 2" in paths:
        models["stage 2, network alone"] = run.folder, "finetuned"
        paths["stage 2, network alone"] = alone
    files = baselines | paths
    for path in files.values():
        table = read_predictions(path, f"{BASELINES} or make reproduce")
        require_stars_of(table, str(path), run.dataset.test, run.dataset.path)
        require_observed_half(path, run.dataset)
    wall = {name: seconds_until(*models[name], path) for name, path in paths.items()}
    comparison = compare_predictions(files, wall)
    if "stage 2" in files:
        sentence = comparison_sentence(comparison, "stage 2", list(baselines))
        run.document.text(f"{sentence[0].upper()}{sentence[1:]}")
    learned = {about_predictions(path).get("stars", "unknown") for path in baselines.values()}
    run.document.table(
        comparison_text(comparison, wall),
        f"{comparison['stars'].iloc[0]:,} test stars, from the first half of the observed band: "
        "mad_std / RMSE, the best in bold. Training stars of the baselines: "
        f"{', '.join(map(str, sorted(learned, key=str)))} of {len(run.dataset.train)}. Seconds of "
        "training and prediction: of the processor for the baselines, by the clock (wall) for the "
        "stages; those of stage 2 contain those of stage 1.",
    )


def require_observed_half(path: Path, dataset: SpectraDataset) -> None:
    """Refuse predictions that were not made from the observed first half."""
    half = dataset.test.pixel_range("first_half")
    expected = {"spectra": "observed", "pixels": [half.start, half.stop]}
    for key, value in about_predictions(path).items():
        if key in expected and value != expected[key]:
            raise ValueError(f"{path} is of the {key} {value}, not {expected[key]}: make it anew")


def seconds_until(folder: Path, model: str, predictions: Path) -> float:
    """Wall time of the trainings up to stage 1 or 2 and of its predictions [s]; NaN if unknown."""
    stages = ["stage 1"] if model == "pretrained" else ["stage 1", "stage 2"]
    seconds = about_predictions(predictions).get("seconds", float("nan"))
    return sum((training_seconds(folder, stage) for stage in stages), seconds)


def write_errors(run: Run, observed: dict[str, pd.DataFrame], chunk: dict[str, pd.DataFrame]):
    """Pulls and coverage of stages 2 and 3."""
    document = run.document
    document.heading("Predicted errors")
    document.text(
        "Standard deviation of the pulls, and fractions of the stars within 1 and 2 sigma. "
        "Well-calibrated Gaussian errors give 1, 68.3 and 95.4 % if sigma is the quadrature sum of "
        "the predicted error and the catalogue's; the predicted error alone does not include the "
        "catalogue's."
    )
    titles = {"finetuned": "Stage 2, first half of the observed band", "hundred": "Stage 3, chunk"}
    for key, tables in (("finetuned", observed), ("hundred", chunk)):
        if key in tables:
            document.table(errors_text(tables[key]), f"{titles[key]}.")
        else:
            run.missing(f"predictions of {titles[key].lower()}", "results/fe/EvaluateFeFT.py")
    run.figure("figures/coverage.png", COVERAGE)
    run.figure("figures/errors_by_range.png", BY_RANGE)


def write_chunk(run: Run, chunk: dict[str, pd.DataFrame]) -> None:
    """Figure 3 and its numbers."""
    run.document.heading("[Fe/H] from a narrow chunk and 100 stars")
    run.figure("figures/Figure3.png", "results/fe/Figure3.py")
    if set(chunk) == set(CHUNK):
        text = iron_text(iron_table(chunk))
        run.document.table(text, "[dex], with 68 % bootstrap intervals.")
        text = iron_bins_text({key: chunk[key] for key in ("scratch", "finetuned", "hundred")})
        run.document.table(text, "RMSE in bins of catalogue [Fe/H] [dex]; the lowest is in bold.")
    else:
        run.missing("predictions from the chunk", "results/fe/EvaluateFeFT.py")


def write_attention(run: Run, shares: pd.DataFrame | None) -> None:
    """Figure 4 and the shares of attention."""
    run.document.heading("Where the model looks")
    run.figure("attention/Figure4.png", "results/attention/Figure4.py")
    run.figure("attention/sensitivity.png", "results/attention/Figure4.py")
    if shares is None:
        run.missing("attention/attention_shares.csv", ATTENTION)
        return
    run.document.text(
        "How much of a label's attention falls on the most relevant 5 % of the tokens, and how "
        "much of its sensitivity to flux on the most relevant 5 % of the pixels, among pixels "
        f"{shares['pixels'].iloc[-1]}? Both are given relative to a uniform distribution. Relevant "
        "are either the pixels whose flux responds most to the label (derivatives of the emulator) "
        "or those that constrain it best, since they respond as no combination of the other labels "
        "does. For comparison, the same numbers are given for the weights of the best linear "
        "unbiased estimator. All derivatives and weights are for fluxes in units of their scatter "
        "in the survey."
    )
    for words, table in attention_text(shares).items():
        run.document.table(table, f"Relative to a uniform distribution, on the 5 % that {words}.")


def write_masking(run: Run, masking: pd.DataFrame | None) -> None:
    """Labels whose errors grow without the pixels of an element."""
    run.document.heading("Without the pixels of an element", 3)
    if masking is None:
        run.missing("attention/masking.csv", ATTENTION)
        return
    stars, pixels = int(masking["stars"].max()), int(masking["pixels"].max())
    run.document.text(
        f"Factor by which the RMSE of each label of {stars} test stars grows when the {pixels} "
        "pixels (5 %) that constrain one element best are masked. If a model measures an element "
        "from its own lines, the error of that element grows most. In the last row, as many random "
        "pixels are masked."
    )
    run.document.table(masking_text(masking))


def write_real_stars(run: Run, stars: pd.DataFrame | None) -> None:
    """Predictions for real stars, with their spectra."""
    run.document.heading("Real stars")
    if stars is None:
        run.missing("real_stars/predictions.csv", REAL_STARS)
        return
    if not len(stars):
        run.document.text("**Missing:** no spectrum of a real star could be downloaded or used.")
        return
    run.document.text(
        "Labels that the model of stage 2 predicts from real APOGEE files, which were not used in "
        "any training. In brackets: those of the survey's radial-velocity pipeline, from the "
        "headers. Flags say why an answer should not be believed."
    )
    run.document.table(real_stars_text(stars))
    failures = run.table("real_stars/failures.csv")
    if failures is not None:
        run.document.table(failures, "Files that could not be used.")
    for path in sorted((run.folder / "real_stars").glob("*.png")):
        run.document.figure(
            path, f"{path.stem}: observed spectrum, and the emulator's at the predicted labels."
        )


def write_training(run: Run) -> None:
    """Stages, loss curves, timings, machine, settings."""
    document = run.document
    document.heading("Training")
    stages = stage_folders(run.folder)
    if stages:
        document.table(stages_table(run.folder))
    for stage, folder in stages.items():
        if (folder / "loss.png").is_file():
            document.figure(folder / "loss.png", f"Loss and learning rate of {stage}.", "32%")
    document.heading("How this was made")
    timings = timings_table(run.folder)
    if timings is not None:
        document.table(
            timings,
            "Wall time of the steps of `make reproduce`, start-up included; some run in parallel.",
        )
    document.table(machine_table())
    evaluations = []
    for path in sorted((run.folder / "evaluation").glob("*.json")):
        about = about_predictions(path)
        first, last = about["pixels"]
        evaluations.append(
            {
                "": path.stem,
                "pixels": f"{first}:{last}",
                "checkpoint": Path(about["checkpoint"]).name,
                "epoch": "–" if about["epoch"] is None else about["epoch"],
                "time [s]": about["seconds"],
                "stars/s": f"{about['stars_per_s']:.0f}",
            }
        )
    if evaluations:
        document.table(pd.DataFrame(evaluations), "Predictions.")
    provenance = json.dumps(run.dataset.provenance, indent=1)
    document.details("Provenance of the survey", provenance)
    for name, text in configurations(run.folder).items():
        document.details(f"Configuration: {name}", text)


def main() -> None:
    """Arguments, predictions, sections, files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--profile", required=True, help="its name, for the title")
    parser.add_argument("--data", type=Path, required=True, help="the survey of the run")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="other runs on the same test stars, whose stage 2 is set beside this one's",
    )
    arguments = parser.parse_args()
    if not arguments.run.is_dir():
        parser.error(f"there is no run in {arguments.run}: make reproduce makes one")
    document = Document(f"SpectraFM, profile {arguments.profile}")
    try:
        with SpectraDataset.open(arguments.data) as dataset:
            run = Run(arguments.run, dataset, document)
            observed, chunk = run.predictions(OBSERVED), run.predictions(CHUNK)
            shares = run.table("attention/attention_shares.csv")
            stars = run.table("real_stars/predictions.csv")
            document.text(f"{datetime.date.today():%d %B %Y}. {describe_survey(dataset)}")
            document.text(PAPER)
            document.heading("What should hold, and what this run shows")
            if arguments.profile == "smoke":
                document.text(
                    "**Toy size: nothing is expected to hold.** The profile `smoke` shows that "
                    "every step runs, with a few hundred stars and a few epochs."
                )
            document.table(claims_table(observed, chunk, stars))
            write_observed(run, observed)
            write_baselines(run, arguments.compare)
            write_chunk(run, chunk)
            write_errors(run, observed, chunk)
            write_attention(run, shares)
            write_masking(run, run.table("attention/masking.csv"))
            write_real_stars(run, stars)
            write_training(run)
        for path, text in (
            (arguments.run / "report.md", document.markdown(arguments.run)),
            (arguments.run / "report.html", document.html()),
        ):
            with atomic_output(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(path)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")


if __name__ == "__main__":
    run_script(main)
