"""The model as users meet it: perceive stars, request labels, predict, fit."""

import dataclasses
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.layers import Tokens
from stellarperceptron.network.base import StellarPerceptronBase, one_of
from stellarperceptron.network.checkpoint import read_config, read_embed_map
from stellarperceptron.network.config import PRECISIONS
from stellarperceptron.network.patches import (
    group_values,
    predict_patches,
    split_into_patches,
)
from stellarperceptron.network.standardizer import Standardizer
from stellarperceptron.training.prepare import (
    array_stars,
    fit_standardization,
    prepare_training_data,
    survey_stars,
    usable_stars,
)
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.run_folder import RunFolder
from stellarperceptron.training.tasks import train
from stellarperceptron.utils.distributed import Process

__all__ = ["StellarPerceptron"]

_COMBINATIONS = ("mean", "inverse_variance")
# Attention scores that are held at once; 2^26 of them take 256 MB.
_MOST_SCORES = 2**26


def _plain(values: Any, dtype: type = np.float64) -> np.ndarray:
    """A writable array; what a masked array masks becomes NaN."""
    if isinstance(values, np.ma.MaskedArray):
        values = values.astype(dtype).filled(np.nan)
    return np.array(values, dtype=dtype)


class StellarPerceptron(StellarPerceptronBase):
    """A foundation model for stellar spectra (Koblischke & Bovy 2024, Leung & Bovy 2023).

    Parameters
    ----------
    vocabs
        Names of all tokens, pixels and labels; see `StellarPerceptronCore`.
    embed_map
        Which embedding row a token uses; see `StellarPerceptronCore`.
    device
        "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1", ...
    nan_policy
        "mask": missing values are not attended to. "attend": they are attended to as zero
        vectors, as the published code does at inference.
    seed
        Of the initial weights; None takes PyTorch's global generator as it stands.
    instrument
        Whose pixels the vocabulary names. None: APOGEE if "syn_apogee0" is among them, or else no
        instrument, and pixels are given by name.
    **config
        Entries of `ModelConfig`; the defaults are the published sizes.

    Examples
    --------
    >>> names = ["syn_apogee0", "syn_apogee1", "TEFF"]
    >>> model = StellarPerceptron(names, embed_map={"syn_apogee1": "syn_apogee0"}, seed=1)
    >>> model.fit_standardization([[0.9, 1.0, 4500.0], [1.0, 0.9, 4800.0]], names)
    >>> model.perceive([[0.95, 0.97]], names[:2], [15152.2, 15152.4])
    >>> list(model.request(["TEFF"]).columns)
    ['TEFF', 'TEFF_error']
    """

    def __init__(self, vocabs: Sequence[str], **options: Any):
        super().__init__(vocabs, **options)
        self._perception: tuple[Tensor, Tensor | None] | None = None
        self._empty_stars = np.zeros(0, dtype=bool)
        self._warned_of_range = False

    # --- what goes in ----------------------------------------------------------------------

    def _check_wavelengths(self, wavelengths, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
        wavelengths = np.array(wavelengths, dtype=np.float64)  # writable, as PyTorch wants it
        if wavelengths.shape not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"wavelengths have shape {wavelengths.shape}, expected {expected}")
        if not np.isfinite(wavelengths).all():
            raise ValueError("wavelengths are not finite; 0 marks values that have none")
        low, high = self.config.wavelength_range
        given = wavelengths[wavelengths != 0]
        if given.size and (given.min() < low or given.max() > high) and not self._warned_of_range:
            self._warned_of_range = True
            warnings.warn(
                f"wavelengths from {given.min():.1f} to {given.max():.1f} Angstrom reach beyond "
                f"the range {low:.0f} to {high:.0f} of this model's wavelength encoding",
                stacklevel=3,
            )
        return wavelengths

    def _warn_of_empty_stars(self, empty: np.ndarray) -> None:
        if empty.any():
            index = np.flatnonzero(empty)
            more = f" and {len(index) - 10} more" if len(index) > 10 else ""
            warnings.warn(
                f"stars without any valid value, whose labels are NaN: index "
                f"{', '.join(map(str, index[:10]))}{more}",
                stacklevel=3,
            )

    def _autocast(self, precision: str):
        dtype = PRECISIONS[one_of("precision", precision, list(PRECISIONS))]
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def _batch_size(self, given: int | None, scores_per_star: int = 1) -> int:
        """Stars at a time: those asked for, or what suits the device and its memory."""
        if given is not None:
            if given < 1:
                raise ValueError(f"batch_size = {given} is below 1")
            return given
        # A CPU's caches hold the activations of a few contexts; a GPU wants many.
        tokens = 4096 if self.device.type == "cpu" else 2**19
        return max(1, min(tokens // self.config.context_length, _MOST_SCORES // scores_per_star))

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Without gradients and dropout, whatever the network is in the middle of."""
        training = self.torch_model.training
        self.torch_model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.torch_model.train(training)

    # --- perceive and request --------------------------------------------------------------

    def perceive(
        self,
        inputs: np.ndarray | pd.DataFrame,
        names: Sequence[str] | np.ndarray | None = None,
        wavelengths: np.ndarray | None = None,
        *,
        batch_size: int | None = None,
        return_attention_scores: bool = False,
        attention_normalization: str = "pixels",
    ) -> np.ndarray | None:
        """Perceive stars; `request` then answers for them.

        Parameters
        ----------
        inputs
            (N, n) values in physical units, NaN for missing ones; a data frame brings its names;
            (n,) is one star.
        names
            (n,) names (or tokens) of the columns, or (N, n) when every star has its own; "[pad]"
            for padding.
        wavelengths
            (n,) or (N, n), vacuum [Angstrom]; 0 for values that have none, such as labels or
            colours. None: none of them has. With more than one pixel a token, (n,) is needed, and
            neighbouring pixels are grouped.
        batch_size
            Stars at a time; None chooses by device.
        return_attention_scores
            Return how much every token attends to every other in the last encoder block.
        attention_normalization
            "pixels": what a token attends to sums to one. "published": the sum runs over the
            attending tokens instead, as in the published code; NaN where nothing attends.

        Returns
        -------
        ndarray or None
            (N, T, T) attention of token (axis 1) to token (axis 2), averaged over heads, without
            the learned key, when asked for. T is n with one pixel a token.

        Raises
        ------
        ValueError
            Shapes that do not match, unknown names, wavelengths that are not finite, or more
            tokens than the context (use `predict`).
        """
        one_of("attention_normalization", attention_normalization, ("pixels", "published"))
        self._perception = None  # an error below must not leave the answers of other stars
        if isinstance(inputs, pd.DataFrame):
            names = inputs.columns.to_numpy(dtype=str) if names is None else names
            inputs = inputs.to_numpy(dtype=float)
        inputs = np.atleast_2d(_plain(inputs))
        shapes = (inputs.shape[1:], inputs.shape)
        if inputs.ndim != 2 or names is None or np.shape(names) not in shapes:
            raise ValueError(
                f"inputs {inputs.shape} and names {None if names is None else np.shape(names)} "
                "do not match: give a name for each column, or for each value"
            )
        tokens = self.tokenize(names)
        self.require_standardization(tokens)
        if wavelengths is not None:
            wavelengths = self._check_wavelengths(wavelengths, shapes)
        values = self.standardizer.standardize(inputs, tokens)
        empty = ~(np.isfinite(values) & (tokens != 0)).any(axis=1)
        ids, values = tokens[..., None], values[..., None]
        if self.config.pixels_per_token > 1:
            if wavelengths is None or wavelengths.ndim != 1 or tokens.ndim != 1:
                raise ValueError(
                    f"with {self.config.pixels_per_token} pixels a token, give one list of names "
                    "and one of wavelengths for all stars (0 for values that are no pixels)"
                )
            ids, values, wavelengths = group_values(
                values[..., 0],
                tokens,
                wavelengths,
                self.positions[tokens],
                self.config.pixels_per_token,
            )
        if values.shape[1] > self.config.context_length:
            raise ValueError(
                f"{values.shape[1]} tokens are more than the context of "
                f"{self.config.context_length}: use predict, which takes any number"
            )
        self._warn_of_empty_stars(empty)

        complete = bool((np.isfinite(values) & (ids != 0)).any(axis=2).all())
        length = values.shape[1]
        heads = self.config.encoder_head_num // 2 if return_attention_scores else 0
        batch_size = self._batch_size(batch_size, max(1, heads * length * (length + 1)))
        perceptions: list[Tensor] = []
        masks: list[Tensor] = []
        scores: list[Tensor] = []
        encode_wavelength = self.torch_model.embedding_layer.encode_wavelength

        def part(values: np.ndarray | None, rows: slice, shared: int) -> Tensor | None:
            """Rows of an array; all of one that has `shared` dimensions, alike for all stars."""
            if values is None:
                return None
            values = values if values.ndim == shared else values[rows]
            return torch.as_tensor(values, device=self.device)

        with self._evaluation():
            for start in range(0, len(inputs), batch_size):
                rows = slice(start, start + batch_size)
                encoding = part(wavelengths, rows, shared=1)
                batch = Tokens(
                    part(ids, rows, shared=2),
                    part(values, rows, shared=0),
                    None if encoding is None else encode_wavelength(encoding),
                    complete,
                )
                perception, attend, weights = self.torch_model.encode(
                    batch, self.nan_policy, need_weights=return_attention_scores
                )
                perceptions.append(perception)
                if not complete:
                    masks.append(attend)
                if return_attention_scores:
                    scores.append(_normalized(weights, attend, attention_normalization).cpu())
            shape = (0, length, self.config.embedding_dim)
            perception = torch.cat(perceptions) if perceptions else torch.empty(shape)
        self._perception = perception, torch.cat(masks) if masks else None
        self._empty_stars = empty
        if not return_attention_scores:
            return None
        return torch.cat(scores).numpy() if scores else np.empty((0, length, length))

    def request(
        self,
        labels: Sequence[str] | str,
        *,
        batch_size: int | None = None,
        return_attention_scores: bool = False,
    ) -> pd.DataFrame | tuple[pd.DataFrame, np.ndarray]:
        """Ask for labels of the stars perceived last.

        Parameters
        ----------
        labels
            Names of Q labels (any tokens of the vocabulary).
        batch_size
            Stars at a time; None chooses by device.
        return_attention_scores
            Return also how much each label attended to each token.

        Returns
        -------
        DataFrame
            N rows; columns `<label>` and, after all of them, `<label>_error` (standard
            deviation), in the labels' units. NaN for stars without any valid value.
        ndarray
            (N, T, Q) attention in the last decoder block, averaged over heads, without the
            learned key; it sums to one over the tokens. Only when asked for.

        Raises
        ------
        RuntimeError
            Nothing has been perceived yet.
        ValueError
            Unknown labels.
        """
        labels, tokens = self._label_tokens(labels)
        if self._perception is None:
            raise RuntimeError("nothing has been perceived yet: call perceive before request")
        perception, mask = self._perception
        request_tokens = torch.as_tensor(tokens, device=self.device)
        scores_per_star = len(labels) * self.config.decoder_head_num * (perception.shape[1] + 1)
        batch_size = self._batch_size(batch_size, scores_per_star)
        answers = [torch.empty(2, 0, len(labels), dtype=torch.float64)]
        scores = [torch.empty(0, len(labels), perception.shape[1], dtype=torch.float64)]
        with self._evaluation():
            for start in range(0, len(perception), batch_size):
                part = slice(start, start + batch_size)
                value, logvar, weights = self.torch_model.decode(
                    request_tokens,
                    perception[part],
                    None if mask is None else mask[part],
                    need_weights=return_attention_scores,
                )
                answers.append(torch.stack([value, (0.5 * logvar).exp()]).double().cpu())
                if return_attention_scores:
                    weights = weights[..., :-1].double()  # (N, Q, L)
                    scores.append((weights / weights.sum(dim=2, keepdim=True)).cpu())
        value, error = torch.cat(answers, dim=1).numpy()
        value[self._empty_stars] = error[self._empty_stars] = np.nan
        frame = self._frame(value, error, labels, tokens)
        if not return_attention_scores:
            return frame
        attention = torch.cat(scores).transpose(1, 2).numpy().copy()
        attention[self._empty_stars] = np.nan
        return frame, attention

    def _label_tokens(self, labels) -> tuple[list[str], np.ndarray]:
        labels = [labels] if isinstance(labels, str) else [str(label) for label in labels]
        if not labels:
            raise ValueError("no labels are requested")
        tokens = self.tokenize(labels)
        if not tokens.all():
            raise ValueError("padding is no label")
        self.require_standardization(tokens)
        return labels, tokens

    def _frame(self, value, error, labels, tokens) -> pd.DataFrame:
        """Standardized (N, Q) values and errors -> data frame in the labels' units."""
        value = self.standardizer.inverse_standardize(value, tokens)
        error = self.standardizer.inverse_standardize_error(error, tokens)
        columns = [*labels, *(f"{label}_error" for label in labels)]
        return pd.DataFrame(np.hstack([value, error]), columns=columns)

    # --- any number of pixels --------------------------------------------------------------

    def predict(
        self,
        spectra: np.ndarray,
        wavelengths: np.ndarray,
        labels: Sequence[str] | str,
        *,
        names: Sequence[str] | np.ndarray | None = None,
        combine: str = "mean",
        batch_size: int | None = None,
        precision: str = "float32",
        compile: bool = False,
        seed: int = 0,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Predict labels from spectra with any number of pixels.

        The pixels are dealt out at random, alike for all stars, into as few equal patches as the
        context allows; each patch is perceived on its own, and their answers are combined
        (Koblischke & Bovy 2024, section 3).

        Parameters
        ----------
        spectra
            (N, n) fluxes, NaN for bad pixels; an array or anything that is sliced like one (HDF5
            dataset, memory map). Read in batches.
        wavelengths
            (n,) vacuum [Angstrom], in any order.
        labels
            Names of Q labels.
        names
            (n,) names (or tokens) of the pixels; None finds the instrument's by wavelength.
        combine
            "mean": values and uncertainties are averaged over the patches, as published.
            "inverse_variance": weighted with the inverse predicted variances; the uncertainty is
            the harmonic mean of the variances, since all patches see the same star.
        batch_size
            Stars at a time; None chooses by device.
        precision
            "float32", or "bfloat16" or "float16" arithmetic where matrices are multiplied.
        compile
            Compile the network first, for one shape that all stars and patches are brought to: half
            a minute that pays on a GPU from some ten thousand stars on.
        seed
            Of the deal.
        progress
            Show a progress bar when the output is a terminal.

        Returns
        -------
        DataFrame
            As from `request`.

        Raises
        ------
        ValueError
            Shapes that do not match, unknown names or labels, wavelengths that are not finite.
        """
        one_of("combine", combine, _COMBINATIONS)
        labels, label_tokens = self._label_tokens(labels)
        if isinstance(spectra, Tensor):
            spectra = spectra.detach().cpu().numpy()
        if len(np.shape(spectra)) != 2:
            raise ValueError(f"spectra have shape {np.shape(spectra)}, expected (stars, pixels)")
        stars, n = np.shape(spectra)
        if not n:
            raise ValueError("the spectra have no pixels")
        wavelengths = self._check_wavelengths(wavelengths, [(n,)])
        if (wavelengths <= 0).any():
            raise ValueError("every pixel needs a wavelength above 0")
        if names is None:
            if self.instrument is None:
                raise ValueError(
                    "the model has no instrument to find pixels by wavelength: give their names "
                    "(names=...)"
                )
            names = self.instrument.pixel_names(wavelengths)
        tokens = self.tokenize(names)
        if tokens.shape != (n,):
            raise ValueError(f"{tokens.shape} names do not match spectra of {n} pixels")
        if not tokens.all():
            raise ValueError("padding among the pixels: leave it out, or make bad pixels NaN")
        self.require_standardization(tokens)

        batch_size = self._batch_size(batch_size)
        answers = [torch.empty(2, 0, len(labels), dtype=torch.float64)]
        unseen = [np.zeros(0, dtype=bool)]
        bar = tqdm(
            total=stars,
            desc="predict",
            unit="star",
            smoothing=0.05,
            disable=None if progress else True,
        )
        network = torch.compile(self.torch_model, dynamic=False) if compile else self.torch_model
        with bar, self._evaluation(), self._autocast(precision):
            patches = split_into_patches(
                tokens,
                wavelengths,
                self.positions[tokens],
                self.torch_model.embedding_layer,
                self.config.context_length,
                seed,
                fill=compile,
            )
            request_tokens = torch.as_tensor(label_tokens, device=self.device)
            for start in range(0, stars, batch_size):
                flux = _plain(spectra[start : start + batch_size], np.float32)
                number = len(flux)
                if compile:
                    flux = np.resize(flux, (min(batch_size, stars), n))  # the same over and over
                flux = self.standardizer.standardize(torch.from_numpy(flux).to(self.device), tokens)
                value, error, seen = predict_patches(
                    network, flux, patches, request_tokens, combine, self.nan_policy, compile
                )
                answers.append(torch.stack([value, error])[:, :number].double().cpu())
                unseen.append(~seen[:number].cpu().numpy())
                bar.update(number)
        self._warn_of_empty_stars(np.concatenate(unseen))
        return self._frame(*torch.cat(answers, dim=1).numpy(), labels, label_tokens)

    # --- training --------------------------------------------------------------------------

    def fit(
        self,
        inputs: SpectraDataset | pd.DataFrame | np.ndarray,
        inputs_name: Sequence[str] | None = None,
        outputs_name: Sequence[str] | None = None,
        *,
        inputs_err: np.ndarray | None = None,
        inputs_wavelength: np.ndarray | None = None,
        kind: str = "observed",
        pixels: str | slice = "full",
        validation_split: float = 0.1,
        validation_indices: np.ndarray | None = None,
        lr_scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
        freeze_decoder: bool = False,
        freeze_encoder: bool = False,
        freeze_encoder_second_layer: bool = False,
        standardization_file: str | os.PathLike | None = None,
        embed_map_file: str | os.PathLike | None = None,
        new_names_for_embed_mapping: Sequence[str] = (),
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        checkpoint_folder: str | os.PathLike | None = None,
        resume: bool = False,
        process: Process | None = None,
        progress: bool = True,
        **options: Any,
    ) -> pd.DataFrame:
        """Train on stars whose labels are known.

        Parameters
        ----------
        inputs
            A survey, or (N, n) values with the inputs and the labels as columns, NaN where
            missing; a data frame brings its names.
        inputs_name
            (n,) names of the columns.
        outputs_name
            Names of the labels, which are never inputs; None: all labels of a survey.
        inputs_err
            (N, n) standard deviations; only those of the labels count.
        inputs_wavelength
            (n,) or (N, n) vacuum [Angstrom], 0 for columns that have none. None: none has.
        kind, pixels
            Which spectra and which pixels of a survey; see `SpectraDataset`.
        validation_split
            Share of the stars that is kept for validation, drawn from `seed`.
        validation_indices
            Rows to validate on instead.
        lr_scheduler
            Gives a schedule for the optimizer, stepped every epoch (every step when it has a true
            attribute `every_step`). None: a constant learning rate.
        freeze_decoder, freeze_encoder, freeze_encoder_second_layer
            See `set_trainable`.
        standardization_file
            `config.json` of a checkpoint with this vocabulary, or the folder with it, whose
            standardization to use.
        embed_map_file
            `embed_map.npz` of a checkpoint with this vocabulary.
        new_names_for_embed_mapping
            Names that share the embedding row of the vocabulary's first name.
        augment
            Makes a changed copy of fluxes (B, n), given a generator; fresh on every draw.
        checkpoint_folder
            Where logs and checkpoints go; None: nowhere.
        resume
            Go on from the newest checkpoint there, which may be that of a training with fewer
            epochs. False refuses a folder that has checkpoints.
        process
            See `utils.distributed.process_group`; None: alone, on this model's device.
        progress
            Show a progress bar when the output is a terminal.
        **options
            Entries of `stellarperceptron.training.profiles.TrainingOptions`: epochs, batch_size,
            learning_rate, labels_per_star, precision, seed, ...

        Returns
        -------
        DataFrame
            Metrics, a row an epoch: time [s], loss, mse_loss, val_loss, val_mse_loss, lr, ...

        Raises
        ------
        ValueError
            Shapes that do not match, unknown names, no usable star.
        TrainingError
            The loss became NaN.
        """
        settings = TrainingOptions(**options)
        if standardization_file is not None:
            norm = read_config(standardization_file)["norm_config"]
            self.standardizer = Standardizer.from_config(norm, self.vocab_size + 1)
        if embed_map_file is not None:
            self.set_embed_map(read_embed_map(Path(embed_map_file)))
        self.set_embed_map(dict.fromkeys(new_names_for_embed_mapping, self.vocabs[0]))
        if isinstance(inputs, SpectraDataset):
            stars = survey_stars(inputs, kind, pixels, outputs_name)
        else:
            stars = array_stars(inputs, inputs_name, outputs_name, inputs_err, inputs_wavelength)
        if stars.wavelengths is not None:
            self._check_wavelengths(stars.wavelengths, [np.shape(stars.wavelengths)])
        fit_standardization(self, stars)
        data = prepare_training_data(self, stars, augment=augment)
        usable = usable_stars(data)
        if validation_indices is None:
            order = np.random.RandomState(settings.seed).permutation(len(usable))
            validation_indices = usable[order[: round(validation_split * len(usable))]]
        validation_indices = np.asarray(validation_indices)
        if validation_indices.dtype == bool:
            validation_indices = np.flatnonzero(validation_indices)
        validation = np.intersect1d(validation_indices, usable)
        training = np.setdiff1d(usable, validation)
        if not len(training):
            raise ValueError("there is no star with a label and a valid value to train on")
        self.set_trainable(
            freeze_decoder=freeze_decoder,
            freeze_encoder=freeze_encoder,
            freeze_encoder_second_layer=freeze_encoder_second_layer,
        )
        process = process or Process(0, 1, self.device)
        folder = None
        if checkpoint_folder is not None:
            configuration = {
                "training": dataclasses.asdict(settings),
                "model": dataclasses.asdict(self.config),
                "frozen": [
                    name for name, p in self.torch_model.named_parameters() if not p.requires_grad
                ],
                "inputs": len(stars.names),
                "outputs_name": list(stars.label_names),
                "stars": len(training),
                "validation_stars": len(validation),
                "labels_crc32": zlib.crc32(data.labels.cpu().numpy().tobytes()),
            }
            folder = RunFolder(
                checkpoint_folder,
                configuration,
                process.rank,
                resume=resume,
                grows="training.epochs",
            )
        history = train(
            self,
            data,
            training,
            validation,
            settings,
            process,
            scheduler=(lambda optimizer, _: lr_scheduler(optimizer)) if lr_scheduler else None,
            folder=folder,
            resume=resume,
            progress=progress,
        )
        return pd.DataFrame(history)


def _normalized(weights: Tensor, attend: Tensor | None, normalization: str) -> Tensor:
    """(N, L, L + 1) softmax weights of the encoder, normalized over the tokens; see `perceive`."""
    weights = weights[..., :-1]
    if attend is not None:
        weights = weights * attend[..., None]  # rows of tokens that were not there
    if normalization == "published":
        return weights / weights.sum(dim=1, keepdim=True)
    return (weights / weights.sum(dim=2, keepdim=True)).nan_to_num(nan=0.0)
