r"""Labels of one survey, carried over to spectra of another by stars that both have seen.

Some stars have labels of the survey LABELLED and observed spectra of the survey DATA. A model that
was pre-trained on the instruments of both is fine-tuned on them. A plain network on all pixels
learns from the same stars, and, for comparison, from all stars in common. All are tested on the
test stars of DATA. Writes OUTPUT.csv and OUTPUT.md.

    python label_transfer.py --labelled runs/surveys/APOGEE.h5 --data runs/surveys/GAIA_RVS.h5 \
        --checkpoint runs/surveys/1 --output runs/surveys/tables/label_transfer
"""

import argparse
import functools
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.evaluation.baselines import PixelNetwork
from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.labels import label as label_named
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.training.stages import require_labels, require_same_instrument
from stellarperceptron.training.stars.few_stars import AUGMENTATION, fine_tuning
from stellarperceptron.utils.arguments import HelpFormatter, positive, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import markdown_table


def fine_tuned(
    checkpoint: Path,
    dataset: SpectraDataset,
    flux: np.ndarray,
    labels: pd.DataFrame,
    steps: int,
    seed: int,
) -> StellarPerceptron:
    """A pre-trained model that has learned from these stars (N, P)."""
    model = StellarPerceptron.load_for_finetuning(checkpoint, device="cpu")
    model.fit(
        flux,
        labels,
        dataset.wavelength,
        augment=functools.partial(AUGMENTATION, instrument=dataset.instrument),
        progress=False,
        **fine_tuning(len(flux), steps, seed),
    )
    return model


def asked(
    model: StellarPerceptron, flux: np.ndarray, dataset: SpectraDataset, labels: list[str]
) -> pd.DataFrame:
    """The model's answers, without warnings of flags."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(flagged|any valid value)")
        return model.predict(flux, dataset.wavelength, labels, progress=False)


def compare(
    checkpoint: Path,
    labelled: SpectraDataset,
    dataset: SpectraDataset,
    options: argparse.Namespace,
) -> pd.DataFrame:
    """Errors of every method, draw of the stars, and label, a row each."""
    labels = [name for name in labelled.label_names if name in dataset.label_names]
    columns = [labelled.label_names.index(name) for name in labels]
    place = pd.Index(labelled.train.ids).get_indexer(dataset.train.ids)
    rows = np.flatnonzero(place >= 0)
    if len(rows) < options.stars:
        raise ValueError(f"{len(rows)} stars are in both surveys, fewer than {options.stars}")
    known = pd.DataFrame(labelled.train.labels[place[rows]][:, columns], columns=labels)
    own = [dataset.label_names.index(name) for name in labels]
    true = dataset.test.labels if dataset.test.true_labels is None else dataset.test.true_labels
    asked_about, true = dataset.test.read("observed"), true[:, own]
    table = []

    def note(method: str, split: int, found: pd.DataFrame, begin: float) -> None:
        seconds = time.process_time() - begin
        for number, label in enumerate(labels):
            metrics = label_metrics(found[label].to_numpy(), true[:, number])
            table.append(
                {"method": method, "split": split, "label": label, "cpu_s": seconds, **metrics}
            )

    begin = time.process_time()
    model = StellarPerceptron.load(checkpoint, device="cpu")
    note("pre-trained only", 0, asked(model, asked_about, dataset, labels), begin)
    for split in range(options.splits):
        order = np.random.RandomState(options.seed + split).permutation(len(rows))
        few = np.sort(order[: options.stars])
        flux, seed = dataset.train.read("observed", rows[few]), options.seed + split
        begin = time.process_time()
        model = fine_tuned(checkpoint, dataset, flux, known.iloc[few], options.steps, seed)
        found = asked(model, asked_about, dataset, labels)
        note(f"pre-trained, fine-tuned on {options.stars}", split, found, begin)
        begin = time.process_time()
        network = PixelNetwork(progress=False)
        network.fit(flux, known.iloc[few].to_numpy(), None, labels, seed)
        note(f"plain network, {options.stars}", split, network.predict(asked_about), begin)
    begin = time.process_time()
    network = PixelNetwork(progress=False)
    network.fit(dataset.train.read("observed", rows), known.to_numpy(), None, labels, options.seed)
    note(f"plain network, {len(rows):,}", 0, network.predict(asked_about), begin)
    return pd.DataFrame(table)


def text_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table for readers: mad_std and bias, means of the draws."""
    rows = []
    for method, part in table.groupby("method", sort=False):
        cells: dict[str, str] = {"method": str(method)}
        for label, own in part.groupby("label", sort=False):
            entry = label_named(str(label))
            scatter = entry.format_residual(own["mad_std"].mean())
            cells[entry.heading] = f"{scatter} ({entry.format_residual(own['bias'].mean(), '+')})"
        cells["CPU s"] = f"{part['cpu_s'].mean():.0f}"
        rows.append(cells)
    return pd.DataFrame(rows)


def main() -> None:
    """Arguments, surveys, all methods, table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--labelled", type=Path, required=True, help="survey whose labels are known"
    )
    parser.add_argument("--data", type=Path, required=True, help="survey with the spectra")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of stage 1, or a checkpoint"
    )
    parser.add_argument("--stars", type=positive, default=100, help="stars to learn from")
    parser.add_argument("--splits", type=positive, default=3, help="draws of these stars")
    parser.add_argument("--steps", type=positive, default=1500, help="of a fine-tuning")
    parser.add_argument("--seed", type=int, default=0, help="of the draws and of the networks")
    parser.add_argument("--output", type=Path, required=True, help="of the files, without .csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        checkpoint = resolve_checkpoint(arguments.checkpoint)
        model = StellarPerceptron.load(checkpoint, device="cpu")
        with (
            SpectraDataset.open(arguments.labelled) as labelled,
            SpectraDataset.open(arguments.data, labelled.label_names) as dataset,
        ):
            require_same_instrument(model, dataset)
            require_labels(model, labelled.label_names)
            table = compare(checkpoint, labelled, dataset, arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    stem = arguments.output
    stem.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(stem.with_name(f"{stem.name}.csv")) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    text = markdown_table(text_table(table))
    with atomic_output(stem.with_name(f"{stem.name}.md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    run_script(main)
