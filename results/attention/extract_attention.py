r"""Attention of the decoder for each label, compared with the response of the flux to the label.

Attention is averaged over randomly drawn test stars (giants with 1.0 < log g < 3.5, dwarfs with
log g > 4.0, and all stars) and over several permutations of the pixels. It is given relative to a
uniform distribution. The derivatives of the predicted labels with respect to flux are computed,
too. OUTPUT receives

attention.h5            attention of every star to every token in the last decoder block, its means
                        by group, the mean sensitivity of the labels to each pixel, the response of
                        the flux to the labels, the mean spectra
attention_shares.csv    share of attention on the tokens that respond most to a label, and on those
                        that constrain it best (derivatives of the emulator `nature`, for 64 stars
                        of the group), compared with uniform attention and the best linear unbiased
                        estimator; rank correlations with both; the same for the sensitivity to
                        pixels
masking.csv             growth of the RMSE of every label when the 5 % of the pixels that constrain
                        one element best are masked, or as many random pixels

    python extract_attention.py --checkpoint runs/laptop/2_realfinetune_firsthalf \
        --data runs/laptop/survey.h5 --output runs/laptop/attention
"""

import argparse
import errno
import hashlib
import itertools
import json
import math
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.mock.stellar_labels import LABELS
from stellarperceptron.evaluation.attention import (
    decoder_attention,
    label_sensitivity,
    masking_test,
    star_groups,
    token_groups,
)
from stellarperceptron.evaluation.response import (
    best_linear_weights,
    concentration,
    label_information,
    label_response,
    label_slopes,
    leading_pixels,
    token_response,
)
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.network.patches import mean_wavelengths
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.training.stages import require_same_instrument
from stellarperceptron.utils.arguments import (
    HelpFormatter,
    computing_arguments,
    output_folder,
    positive,
    run_script,
)
from stellarperceptron.utils.data_utils import atomic_output, room_to_close, written_by

RESERVE = 32_000_000  # left free on the disk for what HDF5 still holds in memory [bytes]
TOPS = (0.02, 0.05, 0.1)  # shares of the tokens that count as responding
RANKINGS = ("response", "information")  # see `stellarperceptron.evaluation.response`
RESPONSE_STARS = 64
MASKED = ("O_FE", "MG_FE", "FE_H")  # elements whose pixels are taken away
MASKED_SHARE = 0.05  # of the pixels
MEASURES = ("attention", "sensitivity")
UNITS = {
    "attention": "1 is the mean over the tokens",
    "sensitivity": "scales of the label per scale of the pixel",
    "response": "1 / K or 1 / dex",
    "information": "square root of a pixel's share",
    "best_weights": "K or dex",
}
SHOWN = ("MG_FE", "FE_H")  # what is printed; everything is in the table


def parse_arguments() -> argparse.Namespace:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of a stage, or a checkpoint"
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="survey file or folder of published arrays"
    )
    parser.add_argument("--output", type=output_folder, required=True, help="folder of the results")
    parser.add_argument("--kind", default="observed", help="observed or synthetic spectra")
    parser.add_argument(
        "--pixels",
        default="first_half",
        help="a range of the instrument's pixels or start:stop; first_half is what stage 2 is "
        "trained on",
    )
    parser.add_argument(
        "--stars", type=positive, default=600, help="number of test stars; all if fewer"
    )
    parser.add_argument("--permutations", type=positive, default=4, help="of the pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of stars")
    computing_arguments(parser)
    return parser.parse_args()


def average(batches, groups: dict[str, np.ndarray], what: str, store=None) -> dict:
    """Means over the stars of each group; NaN if no star has a value.

    Parameters
    ----------
    batches
        What `decoder_attention` or `label_sensitivity` yields.
    groups
        Masks (N,) of the stars.
    what
        The measure: second part of the result's keys, shown beside the progress.
    store
        Called with the rows and values of each batch.
    """
    total, count, done = {}, {}, 0
    with tqdm(total=len(next(iter(groups.values()))), desc=what, unit="star", disable=None) as bar:
        for batch in batches:
            rows = slice(done, done + len(batch))
            if store is not None:
                store(rows, batch)
            for group, mask in groups.items():
                part, key = batch[mask[rows]], (group, what)
                total[key] = total.get(key, 0.0) + np.nansum(part, axis=0, dtype=float)
                count[key] = count.get(key, 0) + np.isfinite(part).sum(axis=0)
            bar.update(rows.stop - done)
            done = rows.stop
    with np.errstate(invalid="ignore"):
        return {key: total[key] / count[key] for key in total}


def main() -> None:
    """Arguments, data, model, attention, sensitivity, responses, outputs."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    (arguments.output / "complete").unlink(missing_ok=True)
    try:
        checkpoint = resolve_checkpoint(arguments.checkpoint)
        with SpectraDataset.open(arguments.data) as dataset:
            run(arguments, checkpoint, dataset)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    (arguments.output / "complete").touch()


def run(arguments: argparse.Namespace, checkpoint: Path, dataset: SpectraDataset) -> None:
    """Extract, compare with the responses, mask, write the files."""
    split = dataset.test
    part = split.pixel_range(arguments.pixels)
    wavelength = dataset.wavelength[part]
    model = StellarPerceptron.load(checkpoint, device=arguments.device)
    model.regression = None  # all of this is about the network
    require_same_instrument(model, dataset)
    labels = [name for name in dataset.label_names if name in model.vocabs and name in LABELS]
    if not labels:
        raise ValueError(f"{checkpoint} knows none of the labels {', '.join(dataset.label_names)}")
    rng = np.random.RandomState(arguments.seed)
    rows = np.sort(rng.permutation(len(split))[: arguments.stars])
    catalogue = dict(zip(dataset.label_names, split.labels[rows].T.astype(float), strict=True))
    known = np.isfinite(list(catalogue.values())).all(axis=0)
    groups = star_groups(catalogue["LOGG"])
    groups = {name: mask for name, mask in groups.items() if (mask & known).any()}
    if not groups:
        raise ValueError(f"no star of {dataset.path} with all labels was drawn: raise --stars")
    spectra = split.read(arguments.kind, rows, part)

    tokens = token_groups(model, wavelength)
    response = {
        name: respond(catalogue, mask & known, labels, dataset.instrument, wavelength)
        for name, mask in groups.items()
    }
    spread = model.standardizer.inverse_standardize_error(np.ones(len(wavelength)), tokens.names)
    path = arguments.output / "attention.h5"
    shape = (len(rows), len(labels), len(tokens.pixels))
    size = 2 * math.prod(shape) + RESERVE
    with (
        atomic_output(path, expected_bytes=size) as temporary,
        h5py.File(temporary, "w") as file,
        room_to_close(temporary.parent),
    ):
        chunks = (min(64, shape[0]), *shape[1:])
        stored = file.create_dataset("attention", shape, "f2", chunks=chunks, compression="gzip")

        def store(rows: slice, batch: np.ndarray) -> None:
            require_room(temporary.parent, 2 * batch.size + RESERVE, path)
            stored[rows] = batch

        attention = decoder_attention(
            model, spectra, wavelength, labels, permutations=arguments.permutations
        )
        sensitivity = label_sensitivity(model, spectra, wavelength, labels)
        means = average(attention, groups, "attention", store)
        means |= average(sensitivity, groups, "sensitivity")
        file.attrs["about"] = json.dumps(
            {
                "checkpoint_sha256": sha256(checkpoint / "weights.pt"),
                "epoch": model.epoch,
                "arguments": {k: str(v) for k, v in vars(arguments).items()},
                "data": dataset.provenance,
                **written_by(),
            }
        )
        file.attrs["labels"] = labels
        file["rows"], file["wavelength"] = rows, wavelength
        file["token_pixels"] = tokens.pixels
        file["token_wavelength"] = mean_wavelengths(tokens.pixels, wavelength)
        for group, mask in groups.items():
            file[f"{group}/stars"] = int(mask.sum())
            file[f"{group}/spectrum"] = mean_spectrum(spectra[mask])
            for kind, values in response[group].items():
                file[f"{group}/{kind}"] = values.astype(np.float32)
            for measure in MEASURES:
                file[f"{group}/{measure}"] = means[group, measure]
            for name, unit in UNITS.items():
                file[f"{group}/{name}"].attrs["unit"] = unit

    actual = {name: catalogue[name] for name in labels}
    masks = masked_pixels(response["all"]["information"], labels, arguments.seed)
    masking = masking_test(model, spectra, wavelength, actual, masks)
    with atomic_output(arguments.output / "masking.csv") as temporary:
        masking.to_csv(temporary, index=False, float_format="%.5g")
    table = shares(means, response, spread, tokens.pixels, labels, part)
    with atomic_output(arguments.output / "attention_shares.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g")
    plain = table[(table.top == 0.05) & (table.group == "all") & table.label.isin(SHOWN)]
    print(plain.drop(columns=["group", "top"]).to_string(index=False, float_format="%.3g"))


def require_room(folder: Path, n_bytes: int, path: Path) -> None:
    """Stop before the disk is full: HDF5 cannot recover from a write that fails.

    Raises
    ------
    OSError
        There are fewer bytes free.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(errno.ENOSPC, f"{free} bytes are free beside {path}, {n_bytes} are needed")


def respond(
    catalogue: dict[str, np.ndarray],
    known: np.ndarray,
    labels: list[str],
    instrument: Instrument,
    wavelength: np.ndarray,
) -> dict[str, np.ndarray]:
    """Response, information and best weights (Q, n), from the first stars that are `known` (N,)."""
    stars = np.flatnonzero(known)[:RESPONSE_STARS]
    values = {name: value[stars] for name, value in catalogue.items() if name in LABELS}
    slopes = label_slopes(Emulator.load("nature"), values, labels, instrument)
    slopes = slopes[..., instrument.pixels_at(wavelength)]
    return {
        "response": label_response(slopes),
        "information": label_information(slopes),
        "best_weights": best_linear_weights(slopes),
    }


def masked_pixels(information: np.ndarray, labels: list[str], seed: int) -> dict[str, np.ndarray]:
    """Masks (n,) of the pixels that constrain each element best, and of as many random ones.

    Parameters
    ----------
    information
        (Q, n) of the labels, see `label_information`: pixels that respond to an element as no
        combination of the other labels does.
    labels
        Names of the Q labels; those of `MASKED` are masked.
    seed
        Of the random pixels.
    """
    masks = {
        name: leading_pixels(information[labels.index(name)], MASKED_SHARE)
        for name in MASKED
        if name in labels
    }
    noise = np.random.RandomState(seed).uniform(size=information.shape[1])
    return masks | {"pixels at random": leading_pixels(noise, MASKED_SHARE)}


def mean_spectrum(spectra: np.ndarray) -> np.ndarray:
    """Mean flux (n,) of the good pixels of stars (N, n); NaN if all are bad."""
    seen = np.isfinite(spectra)
    with np.errstate(invalid="ignore"):
        return np.where(seen, spectra, 0.0).sum(axis=0, dtype=np.float64) / seen.sum(axis=0)


def shares(
    means: dict,
    response: dict[str, dict[str, np.ndarray]],
    spread: np.ndarray,
    pixels: np.ndarray,
    labels: list[str],
    part: slice,
) -> pd.DataFrame:
    """Table of `concentration`.

    Best weights (Q, n) are multiplied by the spread (n,) of the pixels: as the network's, they are
    those of standardized fluxes then.
    """
    lines = []
    for (group, measure), attention in means.items():
        # Sensitivity is one of pixels, attention of tokens.
        members = np.arange(pixels.max() + 1)[:, None] if measure == "sensitivity" else pixels
        ranking = {kind: token_response(response[group][kind], members) for kind in RANKINGS}
        weights = token_response(spread * response[group]["best_weights"], members)
        for kind, (i, label), top in itertools.product(RANKINGS, enumerate(labels), TOPS):
            values = np.abs(attention[i])
            result = concentration(values, ranking[kind][i], top)
            seen = np.where(np.isnan(values), np.nan, weights[i])
            best = concentration(seen, ranking[kind][i], top)
            key = {"group": group, "pixels": f"{part.start}:{part.stop}", "measure": measure}
            key |= {"ranked_by": kind, "label": label, "top": top}
            lines.append({**key, **asdict(result), "ratio_of_best": best.ratio})
    return pd.DataFrame(lines)


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    run_script(main)
