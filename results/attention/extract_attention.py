r"""Where the decoder looks when it is asked for each label, and whether the flux responds there.

Test stars are drawn at random; giants (1.0 < log g < 3.5), dwarfs (log g > 4.0) and all of them
are averaged, over several permutations of the pixels. Attention is counted in units of an even
spread; beside it, how far the answers move with the flux of each pixel. OUTPUT gets

attention.h5            attention of every star on every token in the last decoder block, the means
                        by group and measure, the mean sensitivity of the answers to each pixel, the
                        responses of the flux, the mean spectra
attention_shares.csv    share of attention on the tokens that respond most to a label, and on those
                        that tell most about it which no other label could have done (derivatives
                        of the emulator `nature`, over 64 stars of the group), against chance, and
                        the rank correlation of attention with either

    python extract_attention.py --checkpoint runs/laptop/2_realfinetune_firsthalf \
        --data runs/laptop/survey.h5 --output runs/laptop/attention
"""

import argparse
import hashlib
import itertools
import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from stellarperceptron import StellarPerceptron
from stellarperceptron.attention import (
    MEASURES,
    decoder_attention,
    label_sensitivity,
    star_groups,
    token_groups,
)
from stellarperceptron.dataset import SpectraDataset
from stellarperceptron.emulator import LABELS, Emulator
from stellarperceptron.inference import mean_wavelengths
from stellarperceptron.response import (
    concentration,
    label_information,
    label_response,
    label_slopes,
    token_response,
)
from stellarperceptron.spectra import APOGEE_WAVELENGTH, PIXEL_RANGES, pixel_range
from stellarperceptron.stages import resolve_checkpoint
from stellarperceptron.utils.arguments import HelpFormatter, positive
from stellarperceptron.utils.data_utils import atomic_output

TOPS = (0.02, 0.05, 0.1)  # shares of the tokens that count as responding
RESPONSE_STARS = 64
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
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--kind", default="observed", help="observed or synthetic spectra")
    parser.add_argument(
        "--pixels", default="full", help="full, first_half, fe_chunk or start:stop (of 7,514)"
    )
    parser.add_argument(
        "--stars", type=positive, default=600, help="number of test stars; all if fewer"
    )
    parser.add_argument("--permutations", type=positive, default=4, help="of the pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of stars")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--threads", type=positive, default=1, help="CPU threads (not used on a GPU)"
    )
    return parser.parse_args()


def average(file: h5py.File, batches, groups: dict[str, np.ndarray], shape: tuple) -> dict:
    """Stream attention to the file batch by batch; return its means by group and measure.

    Parameters
    ----------
    file
        Open for writing; gets `attention` (N, Q, T) of the last block, NaN for missing tokens.
    batches
        What `decoder_attention` yields.
    groups
        Masks (N,) of the stars.
    shape
        (N, Q, T).
    """
    chunks = (min(64, shape[0]), *shape[1:])
    stored = file.create_dataset("attention", shape, "f2", chunks=chunks, compression="gzip")
    total = {(group, measure): np.zeros(shape[1:]) for group in groups for measure in MEASURES}
    count = {group: np.zeros(shape[1:]) for group in groups}
    done = 0
    with tqdm(total=shape[0], desc="attention", unit="star", disable=None) as bar:
        for batch in batches:
            rows = slice(done, done + len(batch["last_block"]))
            stored[rows] = batch["last_block"]
            for group, mask in groups.items():
                for measure in MEASURES:
                    total[group, measure] += np.nansum(batch[measure][mask[rows]], axis=0)
                count[group] += np.isfinite(batch["last_block"][mask[rows]]).sum(axis=0)
            bar.update(rows.stop - done)
            done = rows.stop
    with np.errstate(invalid="ignore"):  # a token that no star of the group has: NaN
        return {key: value / count[key[0]] for key, value in total.items()}


def average_sensitivity(batches, groups: dict[str, np.ndarray], shape: tuple[int, int]) -> dict:
    """Mean (Q, n), with its sign, of what `label_sensitivity` yields; by group."""
    total = {group: np.zeros(shape) for group in groups}
    count, done = {group: np.zeros(shape) for group in groups}, 0
    with tqdm(total=len(groups["all"]), desc="sensitivity", unit="star", disable=None) as bar:
        for batch in batches:
            rows = slice(done, done + len(batch))
            for group, mask in groups.items():
                total[group] += np.nansum(batch[mask[rows]], axis=0)
                count[group] += np.isfinite(batch[mask[rows]]).sum(axis=0)
            bar.update(len(batch))
            done = rows.stop
    with np.errstate(invalid="ignore"):
        return {(group, "sensitivity"): total[group] / count[group] for group in groups}


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
    """Extract, compare with the responses, write both files."""
    split = dataset.test
    part = pixel_range(arguments.pixels, split.n_pixels)
    wavelength = dataset.wavelength[part]
    model = StellarPerceptron.load(checkpoint, device=arguments.device)
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
        name: respond(catalogue, mask & known, labels, wavelength) for name, mask in groups.items()
    }
    path = arguments.output / "attention.h5"
    with atomic_output(path) as temporary, h5py.File(temporary, "w") as file:
        batches = decoder_attention(
            model, spectra, wavelength, labels, permutations=arguments.permutations
        )
        means = average(file, batches, groups, (len(rows), len(labels), len(tokens.pixels)))
        gradients = label_sensitivity(model, spectra, wavelength, labels)
        means |= average_sensitivity(gradients, groups, (len(labels), len(wavelength)))
        file.attrs["about"] = json.dumps(
            {
                "checkpoint_sha256": sha256(checkpoint / "weights.pt"),
                "epoch": model.epoch,
                "arguments": {k: str(v) for k, v in vars(arguments).items()},
                "data": dataset.provenance,
                "version": version("stellarperceptron"),
            }
        )
        file.attrs["labels"] = labels
        file.attrs["unit"] = "1 is an even spread over the tokens"
        file["rows"], file["wavelength"] = rows, wavelength
        file["token_pixels"] = tokens.pixels
        file["token_wavelength"] = mean_wavelengths(tokens.pixels, wavelength)
        for group, mask in groups.items():
            file[f"{group}/stars"] = int(mask.sum())
            file[f"{group}/spectrum"] = mean_spectrum(spectra[mask])
            for kind, values in response[group].items():
                file[f"{group}/{kind}"] = values.astype(np.float32)
            for measure in (*MEASURES, "sensitivity"):
                file[f"{group}/{measure}"] = means[group, measure]

    table = shares(means, response, tokens.pixels, labels, part)
    with atomic_output(arguments.output / "attention_shares.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g")
    plain = table[(table.top == 0.05) & (table.group == "all") & table.label.isin(SHOWN)]
    print(plain.drop(columns=["group", "top"]).to_string(index=False, float_format="%.3g"))


def respond(
    catalogue: dict[str, np.ndarray], known: np.ndarray, labels: list[str], wavelength: np.ndarray
) -> dict[str, np.ndarray]:
    """Response and information (Q, n) of the first stars of a group; `known` have all labels."""
    stars = np.flatnonzero(known)[:RESPONSE_STARS]
    values = {name: value[stars] for name, value in catalogue.items() if name in LABELS}
    slopes = label_slopes(Emulator.load("nature"), values, labels)
    borders = (APOGEE_WAVELENGTH[1:] + APOGEE_WAVELENGTH[:-1]) / 2
    slopes = slopes[..., np.searchsorted(borders, wavelength)]
    return {"response": label_response(slopes), "information": label_information(slopes)}


def mean_spectrum(spectra: np.ndarray) -> np.ndarray:
    """Mean flux (n,) of stars (N, n) without their bad pixels; NaN where all are bad."""
    seen = np.isfinite(spectra)
    with np.errstate(invalid="ignore"):
        return np.where(seen, spectra, 0.0).sum(axis=0, dtype=np.float64) / seen.sum(axis=0)


def shares(
    means: dict,
    response: dict[str, dict[str, np.ndarray]],
    pixels: np.ndarray,
    labels: list[str],
    part: slice,
) -> pd.DataFrame:
    """Table of `concentration`: in all pixels seen, and in those that stage 2 was trained on."""
    half = PIXEL_RANGES["first_half"]
    lines = []
    for (group, measure), attention in means.items():
        # Sensitivity is one of pixels, attention of tokens.
        members = np.arange(pixels.max() + 1)[:, None] if measure == "sensitivity" else pixels
        number = np.arange(part.start, part.stop)[members.max(axis=1)]  # the last pixel of each
        ranges = {f"{part.start}:{part.stop}": np.ones(len(members), dtype=bool)}
        if 1 / max(TOPS) < (number < half.stop).sum() < len(members):
            ranges[f"{part.start}:{half.stop}"] = number < half.stop
        ranking = {kind: token_response(r, members) for kind, r in response[group].items()}
        for (name, inside), kind in itertools.product(ranges.items(), ranking):
            for (i, label), top in itertools.product(enumerate(labels), TOPS):
                order = ranking[kind][i, inside]
                result = concentration(np.abs(attention[i, inside]), order, top)
                best = concentration(ranking["information"][i, inside], order, top)
                key = {"group": group, "pixels": name, "measure": measure, "ranked_by": kind}
                key |= {"label": label, "top": top}
                lines.append({**key, **asdict(result), "ratio_of_best": best.ratio})
    return pd.DataFrame(lines)


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
