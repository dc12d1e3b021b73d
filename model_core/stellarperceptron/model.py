"""The model as users meet it: perceive stars, request labels, predict, save, load."""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from stellarperceptron.checkpoint import load_weights, read_checkpoint, write_checkpoint
from stellarperceptron.config import ModelConfig
from stellarperceptron.inference import (
    apogee_pixel_names,
    deal_patches,
    group_values,
    predict_patches,
)
from stellarperceptron.layers import (
    NonLinearEmbedding,
    StellarPerceptronDecoder,
    StellarPerceptronEncoder,
    StellarPerceptronTorchModel,
)
from stellarperceptron.model_core import StellarPerceptronCore

__all__ = ["StellarPerceptron"]

_NAN_POLICIES = ("mask", "attend")
_COMBINATIONS = ("mean", "inverse_variance")
_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{name} = {value!r} is not one of {', '.join(known)}")
    return value


def _build_network(config: ModelConfig, vocab_size: int, embed_map: np.ndarray):
    """Make the network of a configuration, with fresh weights."""
    c = config
    return StellarPerceptronTorchModel(
        NonLinearEmbedding(
            vocab_size,
            c.embedding_dim,
            activation=c.embedding_activation,
            embed_map=torch.from_numpy(embed_map),
            wavelength_range=c.wavelength_range,
            pixels_per_token=c.pixels_per_token,
        ),
        StellarPerceptronEncoder(
            c.embedding_dim,
            c.encoder_head_num,
            c.encoder_dense_num,
            dropout_rate=c.encoder_dropout_rate,
            attention_dropout_rate=c.attention_dropout_rate,
            activation=c.encoder_activation,
        ),
        StellarPerceptronDecoder(
            c.embedding_dim,
            c.decoder_head_num,
            c.decoder_dense_num,
            dropout_rate=c.decoder_dropout_rate,
            activation=c.decoder_activation,
        ),
    )


class StellarPerceptron(StellarPerceptronCore):
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

    def __init__(
        self,
        vocabs: Sequence[str],
        *,
        embed_map: Mapping[str, str] | np.ndarray | None = None,
        device: str | torch.device = "auto",
        nan_policy: str = "mask",
        seed: int | None = None,
        **config: Any,
    ):
        super().__init__(vocabs, ModelConfig.from_dict(config), embed_map)
        self.nan_policy = _one_of("nan_policy", nan_policy, _NAN_POLICIES)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.epoch = 0
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.torch_model = _build_network(self.config, self.vocab_size, self.embed_map)
        self.torch_model.to(self.device).eval()
        self._perception: tuple[Tensor, Tensor | None] | None = None
        self._empty_stars = np.zeros(0, dtype=bool)
        self._warned_of_range = False

    # --- what goes in ----------------------------------------------------------------------

    def _check_wavelengths(self, wavelengths, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
        wavelengths = np.asarray(wavelengths, dtype=np.float64)
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
        dtype = _PRECISIONS[_one_of("precision", precision, list(_PRECISIONS))]
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def _default_batch_size(self) -> int:
        # A CPU's caches hold the activations of a few contexts; a GPU wants many.
        tokens = 4096 if self.device.type == "cpu" else 2**19
        return max(1, tokens // self.config.context_length)

    # --- perceive and request --------------------------------------------------------------

    @torch.inference_mode()
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
        _one_of("attention_normalization", attention_normalization, ("pixels", "published"))
        if isinstance(inputs, pd.DataFrame):
            names = inputs.columns.to_numpy(dtype=str) if names is None else names
            inputs = inputs.to_numpy(dtype=float)
        inputs = np.atleast_2d(np.asarray(inputs, dtype=np.float64))
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
        values = self.standardize(inputs, tokens)
        empty = ~(np.isfinite(values) & (tokens != 0)).any(axis=1)
        pixels = None
        if self.config.pixels_per_token > 1:
            if wavelengths is None or wavelengths.ndim != 1 or tokens.ndim != 1:
                raise ValueError(
                    f"with {self.config.pixels_per_token} pixels a token, give one list of names "
                    "and one of wavelengths for all stars (0 for values that are no pixels)"
                )
            tokens, wavelengths, values, pixels = group_values(
                values, tokens, wavelengths, self.config.pixels_per_token
            )
        if values.shape[1] > self.config.context_length:
            raise ValueError(
                f"{values.shape[1]} tokens are more than the context of "
                f"{self.config.context_length}: use predict, which takes any number"
            )
        self._warn_of_empty_stars(empty)

        on_device = {"tokens": tokens, "inputs": values, "pixels": pixels}
        if wavelengths is not None:
            on_device["encoding"] = wavelengths
        network, device = self.torch_model, self.device
        arguments = {k: torch.as_tensor(v) for k, v in on_device.items() if v is not None}
        batch_size = batch_size or self._default_batch_size()
        perceptions, masks, scores = [], [], []
        for start in range(0, len(inputs), batch_size):
            batch = {
                # One row of tokens or wavelengths serves all stars.
                k: (v if v.dim() == 1 else v[start : start + batch_size]).to(device)
                for k, v in arguments.items()
            }
            if "encoding" in batch:
                batch["encoding"] = network.embedding_layer.encode_wavelength(batch["encoding"])
            perception, attend, weights = network.encode(
                **batch, nan_policy=self.nan_policy, need_weights=return_attention_scores
            )
            perceptions.append(perception)
            masks.append(
                torch.ones(perception.shape[:2], dtype=torch.bool, device=device)
                if attend is None
                else attend
            )
            if return_attention_scores:
                axis = 2 if attention_normalization == "pixels" else 1
                weights = weights[..., :-1] * masks[-1][..., None]  # (N, L, L)
                scores.append((weights / weights.sum(dim=axis, keepdim=True)).cpu())
                if axis == 2:
                    scores[-1].nan_to_num_(nan=0.0)  # tokens that were not there
        mask = torch.cat(masks)
        self._perception = torch.cat(perceptions), None if bool(mask.all()) else mask
        self._empty_stars = empty
        return torch.cat(scores).numpy() if return_attention_scores else None

    @torch.inference_mode()
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
        batch_size = batch_size or 16 * self._default_batch_size()
        answers, scores = [], []
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
        self.require_standardization(tokens)
        return labels, tokens

    def _frame(self, value, error, labels, tokens) -> pd.DataFrame:
        """Standardized (N, Q) values and errors -> data frame in the labels' units."""
        value = self.inverse_standardize(value, tokens)
        error = self.inverse_standardize_error(error, tokens)
        columns = [*labels, *(f"{label}_error" for label in labels)]
        return pd.DataFrame(np.hstack([value, error]), columns=columns)

    # --- any number of pixels --------------------------------------------------------------

    @torch.inference_mode()
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
            (n,) names (or tokens) of the pixels; None finds APOGEE's pixels by wavelength.
        combine
            "mean": values and uncertainties are averaged over the patches, as published.
            "inverse_variance": weighted with the inverse predicted variances; the uncertainty is
            the harmonic mean of the variances, since all patches see the same star.
        batch_size
            Stars at a time; None chooses by device.
        precision
            "float32", or "bfloat16" or "float16" arithmetic where matrices are multiplied.
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
        _one_of("combine", combine, _COMBINATIONS)
        labels, label_tokens = self._label_tokens(labels)
        if len(np.shape(spectra)) != 2:
            raise ValueError(f"spectra have shape {np.shape(spectra)}, expected (stars, pixels)")
        stars, n = np.shape(spectra)
        wavelengths = self._check_wavelengths(wavelengths, [(n,)])
        if (wavelengths <= 0).any():
            raise ValueError("every pixel needs a wavelength above 0")
        if names is None:
            if "syn_apogee0" not in self.vocabs:
                raise ValueError(
                    "the vocabulary has no APOGEE pixels: give their names (names=...)"
                )
            names = apogee_pixel_names(wavelengths)
        tokens = self.tokenize(names)
        if tokens.shape != (n,):
            raise ValueError(f"{tokens.shape} names do not match spectra of {n} pixels")
        self.require_standardization(tokens)

        patches = deal_patches(
            tokens, wavelengths, self.torch_model.embedding_layer, self.config.context_length, seed
        )
        request_tokens = torch.as_tensor(label_tokens, device=self.device)
        batch_size = batch_size or self._default_batch_size()
        answers, empty = [], []
        bar = tqdm(
            total=stars,
            desc="predict",
            unit="star",
            smoothing=0.05,
            disable=None if progress else True,
        )
        with bar, self._autocast(precision):
            for start in range(0, stars, batch_size):
                flux = np.asarray(spectra[start : start + batch_size], dtype=np.float32)
                flux = self.standardize(torch.from_numpy(flux).to(self.device), tokens)
                value, error, seen = predict_patches(
                    self.torch_model, flux, patches, request_tokens, combine, self.nan_policy
                )
                answers.append(torch.stack([value, error]).double().cpu())
                empty.append(~seen.cpu())
                bar.update(len(flux))
        if not stars:
            return self._frame(*np.empty((2, 0, len(labels))), labels, label_tokens)
        self._warn_of_empty_stars(torch.cat(empty).numpy())
        return self._frame(*torch.cat(answers, dim=1).numpy(), labels, label_tokens)

    # --- training state, files, figures ----------------------------------------------------

    def set_trainable(
        self,
        *,
        freeze_decoder: bool = False,
        freeze_encoder: bool = False,
        freeze_encoder_second_layer: bool = False,
    ) -> int:
        """Choose what training may change; everything that is not frozen.

        Parameters
        ----------
        freeze_decoder, freeze_encoder, freeze_encoder_second_layer
            Freeze the decoder, both encoder blocks, or the second only. The published stage 3
            freezes the decoder and the second encoder block.

        Returns
        -------
        int
            Number of trainable parameters.
        """
        network = self.torch_model
        network.requires_grad_(True)
        network.torch_decoder.requires_grad_(not freeze_decoder)
        network.torch_encoder.requires_grad_(not freeze_encoder)
        if freeze_encoder_second_layer:
            network.torch_encoder.encoder_transformer_block_2.requires_grad_(False)
        return sum(p.numel() for p in network.parameters() if p.requires_grad)

    def flops_per_star(
        self, tokens: int | None = None, labels: int = 1, training: bool = False
    ) -> int:
        """Arithmetic for one star; see `ModelConfig.flops_per_star`."""
        return self.config.flops_per_star(tokens, labels, training)

    def save(
        self,
        folder: str | os.PathLike,
        *,
        overwrite: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Save a checkpoint folder that the published code can load, too.

        Parameters
        ----------
        folder
            Its parent is made when it is missing.
        overwrite
            Replace an existing checkpoint; a save that fails leaves it as it was.
        optimizer
            Its state is saved with the weights.

        Raises
        ------
        FileExistsError
            The folder exists and `overwrite` is False.
        """
        write_checkpoint(
            folder,
            self.torch_model,
            self.get_config(),
            self.embed_map,
            optimizer=optimizer,
            epoch=self.epoch,
            overwrite=overwrite,
        )

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        embed_map: np.ndarray | None = None,
        *,
        device: str | torch.device = "auto",
        nan_policy: str = "mask",
        seed: int | None = None,
    ) -> "StellarPerceptron":
        """Make a model with fresh weights from the sections of a `config.json`.

        Parameters
        ----------
        config
            As `get_config` gives it; files of the published code and of Leung & Bovy (2023) too.
        embed_map
            (V + 1,) integers; None: each token its own row.
        device, nan_policy, seed
            See the class.
        """
        entries = {k: v for k, v in config["nn_config"].items() if not k.startswith("backend_")}
        entries |= config.get("stellarperceptron", {})
        model = cls(
            config["tokenizer_config"]["vocabs"],
            embed_map=embed_map,
            device=device,
            nan_policy=nan_policy,
            seed=seed,
            **entries,
        )
        model._set_norm_config(config["norm_config"])
        return model

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        *,
        device: str | torch.device = "auto",
        nan_policy: str = "mask",
    ) -> "StellarPerceptron":
        """Load a checkpoint: ours, the published ones, or Leung & Bovy's (2023).

        Parameters
        ----------
        folder
            With `config.json`, `weights.pt` and, unless every token has its own row,
            `embed_map.npz`. Nothing in it is executed.
        device, nan_policy
            See the class.

        Raises
        ------
        FileNotFoundError
            The folder is no checkpoint.
        ValueError
            Files that are damaged, hold more than tensors, or do not fit together; names them.
        """
        checkpoint = read_checkpoint(folder)
        try:
            model = cls.from_config(
                checkpoint.config, checkpoint.embed_map, device=device, nan_policy=nan_policy
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"checkpoint {folder}: {error}") from error
        load_weights(model.torch_model, checkpoint.weights, f"weights of {folder}")
        model.epoch = checkpoint.epoch
        return model

    @classmethod
    def load_for_finetuning(
        cls,
        folder: str | os.PathLike,
        new_names: Sequence[str] = (),
        embed_map: Mapping[str, str] | None = None,
        *,
        device: str | torch.device = "auto",
        nan_policy: str = "mask",
        seed: int | None = None,
    ) -> "StellarPerceptron":
        """Load a checkpoint and append new tokens to its vocabulary.

        Old tokens keep their rows, their embedding map and their standardization. New ones get
        rows with fresh weights, and a standardization when the model is fitted.

        Parameters
        ----------
        folder
            See `load`.
        new_names
            Names of new pixels or labels.
        embed_map
            Names whose embedding row is that of another name, such as new pixels that share the
            row of the old ones.
        device, nan_policy, seed
            See the class; the seed is that of the new rows.

        Raises
        ------
        FileNotFoundError, ValueError
            As from `load`; new names that are known already.
        """
        old = cls.load(folder, device="cpu", nan_policy=nan_policy)
        grown = cls(
            [*old.vocabs, *new_names],
            device=device,
            nan_policy=nan_policy,
            seed=seed,
            **vars(old.config),
        )
        rows = old.vocab_size + 1
        grown.embed_map[:rows] = old.embed_map
        grown._update_embed_map(embed_map)
        grown.torch_model.embedding_layer.embed_map.copy_(torch.from_numpy(grown.embed_map))
        for name in ("_input_mean", "_input_std", "_input_standardized"):
            getattr(grown, name)[:rows] = getattr(old, name)
        weights = old.torch_model.state_dict()
        fresh = grown.torch_model.state_dict()
        for name in ("embedding_layer.embeddings", "embedding_layer.bias"):
            weights[name] = torch.cat([weights[name], fresh[name][rows:].cpu()])
        load_weights(grown.torch_model, weights, f"weights of {folder}")
        grown.epoch = old.epoch
        return grown
