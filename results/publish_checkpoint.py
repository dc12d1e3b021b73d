r"""Ship a checkpoint: save it in half precision, with a model card.

Only what is needed to predict and to be fine-tuned: no state of the optimizer. Predictions change
by about a hundredth of their errors. The card (`card.md`, shown by `model.card`) says what the
model was trained on, how well it does on test stars, and what it must not be used for. The folder
`checkpoints` of the package holds what `StellarPerceptron.from_pretrained` finds by name.
`pinned.json` holds predictions for a few stars, so that a test notices when the model or the
package begins to predict something else.

    python publish_checkpoint.py --checkpoint runs/laptop/2_realfinetune_firsthalf \
        --data runs/laptop/survey.h5 \
        --predictions runs/laptop/evaluation/2_realfinetune_firsthalf_on_observed.csv \
        --output model_core/stellarperceptron/checkpoints/laptop
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.apogee.continuum import normalize
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.evaluation.predictions import (
    predicted_labels,
    read_predictions,
    require_stars_of,
)
from stellarperceptron.evaluation.summary import describe_survey
from stellarperceptron.instruments import APOGEE
from stellarperceptron.labels import label
from stellarperceptron.training.run.calibration import describe_training
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import HelpFormatter, output_folder, run_script
from stellarperceptron.utils.data_utils import atomic_output, written_by
from stellarperceptron.utils.document import markdown_table

EVALUATION = "results/real_spectra_finetune/evaluate_2_realfinetune_firsthalf_epoch_10.py"
TOLD = """ `predict` tells
the model the signal-to-noise ratio, by `errors` or `snr`; it answers without it, too."""
AVERAGED = """ From these
pixels, the labels are the mean of those of the network and of a quadratic regression that learned
from the same stars (`model.regression`); errors below are those of the mean."""
CARD = """# Model card: {name}

A network of {parameters:,} parameters that reads any part of an APOGEE spectrum and answers with
stellar labels and their standard deviations. Its weights are in half precision. Made with
stellarperceptron {version} on {date}.

## Input

{instrument}:
vacuum wavelengths in the star's rest frame, and flux over the pseudo-continuum of this package (a
polynomial on each chip, `stellarperceptron.data.apogee.continuum.normalize`), NaN for bad pixels.
`StellarPerceptron.predict` converts other units of length and interpolates from other grids of
sufficient sampling. The resolving power must be near {resolving_power:,.0f}.{told}

Give it the first half of the band, pixels 0 to 3,756 (15,152 to 16,028 A), on which it was
fine-tuned. It answers from other pixels and from the whole band, too, but less exactly there: it
knows them from the synthetic spectra alone.{averaged}

## Training data

{survey}
{source}No test star was used in training or in the choice of settings.

## Labels, range, errors

Range: 0.5 to 99.5 % of the training stars. Errors: {stars:,} test stars, first half of the band.
The pull is the difference over its predicted standard deviation, with the catalogue's error added
in quadrature; for well-calibrated errors its scatter is 1.

{table}
## What it must not be used for

- Stars outside this range, such as late M dwarfs and hot stars. The model answers for them, too,
  with errors that are too small. The column `flags` of its answers finds most of them.
- Spectra that are not at rest, in air wavelengths, or normalized in another way; spectra of another
  resolving power.
- Anything that is not the spectrum of a single star: binaries, galaxies, spectra of sky.
- Results that rest on the labels of single real stars. {limits}\
- Comparisons with catalogues at the level of the errors above, without a calibration on stars that
  both have.
"""
MOCK = """Its spectra are computed, not observed: one line list stands for theory; another,
calibrated to the real survey, stands for real stars, with noise, sky lines and defects like those
of the survey.
"""
MOCK_LIMITS = """No real star was in the training,
  and offsets of up to hundreds of kelvin against the survey's pipeline were seen.
"""

# Stars whose predictions are pinned: giants, one of them metal-poor, a subgiant and two dwarfs, as
# the mock survey observes them on average, but without noise.
STARS = {
    "TEFF": [4000.0, 4600.0, 4900.0, 5200.0, 5700.0, 4300.0],
    "LOGG": [1.2, 2.4, 1.9, 3.6, 4.4, 4.6],
    "O_FE": [0.1, 0.0, 0.35, 0.05, -0.05, 0.0],
    "MG_FE": [0.1, 0.0, 0.3, 0.05, 0.0, 0.0],
    "FE_H": [-0.3, 0.1, -1.5, -0.1, 0.2, -0.4],
}
RESOLVING_POWER = 21_000.0  # APOGEE's, and the macroturbulence of giants


def main() -> None:
    """Arguments, checkpoint, card, pinned predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of a stage, or a checkpoint"
    )
    parser.add_argument("--data", type=Path, required=True, help="the survey it was trained on")
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        help="its predictions of that survey's test stars",
    )
    parser.add_argument(
        "--output", type=output_folder, required=True, help="folder; replaced if it exists"
    )
    arguments = parser.parse_args()
    try:
        model = StellarPerceptron.load(resolve_checkpoint(arguments.checkpoint), device="cpu")
        predictions = read_predictions(arguments.predictions, EVALUATION)
        with SpectraDataset.open(arguments.data) as dataset:
            require_stars_of(predictions, arguments.predictions.name, dataset.test, arguments.data)
            model.card = card(model, arguments.output.name, dataset, predictions)
            if model.reference is None:  # checkpoints of version 0.1
                labels = [name for name in dataset.label_names if name in model.vocabs]
                describe_training(model, dataset, "observed", "first_half", labels)
        model.save(arguments.output, dtype=torch.float16, overwrite=True)
        if model.instrument == APOGEE:
            pinned = pinned_predictions(StellarPerceptron.load(arguments.output, device="cpu"))
            with atomic_output(arguments.output / "pinned.json") as temporary:
                temporary.write_text(json.dumps(pinned, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    size = sum(path.stat().st_size for path in arguments.output.iterdir())
    print(f"{arguments.output}: {size / 1e6:.2f} MB")


def card(
    model: StellarPerceptron, name: str, dataset: SpectraDataset, predictions: pd.DataFrame
) -> str:
    """Write the model card: Markdown."""
    rows = []
    for known in predicted_labels(predictions):
        entry = label(known)
        training = dataset.train.labels[:, list(dataset.label_names).index(known)]
        low, high = np.nanquantile(training, [0.005, 0.995])
        columns = [f"{known}_{end}" for end in ("pred", "actual", "err", "actual_err")]
        metrics = label_metrics(*(predictions[column] for column in columns))
        rows.append(
            {
                "label": entry.heading,
                "range": f"{entry.format_value(low)} to {entry.format_value(high)}",
                "mad_std": entry.format_residual(metrics["mad_std"]),
                "RMSE": entry.format_residual(metrics["rmse"]),
                "scatter of the pulls": f"{metrics['total_pull_std']:.2f}",
            }
        )
    mock = dataset.provenance.get("generator") == "create_mock_survey.py"
    return CARD.format(
        name=name,
        parameters=sum(p.numel() for p in model.torch_model.parameters()),
        version=", commit ".join(written_by().values()),
        date=f"{datetime.date.today():%d %B %Y}",
        instrument=model.instrument,
        resolving_power=model.instrument.resolving_power,
        told=TOLD if model.config.conditions else "",
        averaged="" if model.regression is None else AVERAGED,
        survey=describe_survey(dataset),
        source=MOCK if mock else "",
        limits=MOCK_LIMITS if mock else "\n",
        stars=len(predictions),
        table=markdown_table(pd.DataFrame(rows)),
    )


def pinned_predictions(model: StellarPerceptron) -> dict[str, dict[str, list[float]]]:
    """Predictions for `STARS` by range of pixels and column; the package's emulator is observed."""
    flux = Emulator.load("nature").flux(STARS, APOGEE.wavelength, RESOLVING_POWER)
    flux = normalize(flux.clamp(max=1.0).numpy())
    labels, pinned = [name for name in STARS if name in model.vocabs], {}
    for name in ("first_half", "fe_chunk", "full"):
        part = APOGEE.pixel_range(name)
        predicted = model.predict(flux[:, part], APOGEE.wavelength[part], labels, progress=False)
        pinned[name] = predicted.drop(columns="flags").to_dict("list")
    return pinned


if __name__ == "__main__":
    run_script(main)
