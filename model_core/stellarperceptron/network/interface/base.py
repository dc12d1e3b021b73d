"""A model with its network and its device."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch

from stellarperceptron.data.flags import Reference
from stellarperceptron.instruments import INSTRUMENTS
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.labels import Label, label, resolve_label_names
from stellarperceptron.layers import (
    NonLinearEmbedding,
    StellarPerceptronDecoder,
    StellarPerceptronEncoder,
    StellarPerceptronTorchModel,
)
from stellarperceptron.model_core import PADDING, StellarPerceptronCore
from stellarperceptron.network.baselines.averaged import AveragedRegression
from stellarperceptron.network.config import PRECISIONS, ModelConfig
from stellarperceptron.utils.arrays import as_array, as_names
from stellarperceptron.utils.distributed import usable_device

__all__ = ["StellarPerceptronBase", "one_of"]

# Attention scores held in memory at once; 2^26 of them take 256 MB.
_MOST_SCORES = 2**26

# Angstrom in other units of wavelengths, which plain numbers may be in.
_OTHER_UNITS = {"nm": 10.0, "micron": 1e4, "m": 1e10}

_NAN_POLICIES = ("mask", "attend")


def one_of(name: str, value: str, known: Sequence[str]) -> str:
    """Return a known choice; for any other raise a `ValueError` that lists the known ones."""
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
            conditions=c.conditions,
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


class StellarPerceptronBase(StellarPerceptronCore):
    """A model with its network.

    For the parameters, see `StellarPerceptron`.
    """

    def __init__(
        self,
        vocabs: Sequence[str],
        *,
        embed_map: Mapping[str, str] | np.ndarray | None = None,
        device: str | torch.device = "auto",
        nan_policy: str = "mask",
        seed: int | None = None,
        instrument: Instrument | None = None,
        **config: Any,
    ):
        super().__init__(vocabs, ModelConfig.from_dict(config), embed_map)
        self.instrument = instrument or self._known_instrument()
        self.nan_policy = one_of("nan_policy", nan_policy, _NAN_POLICIES)
        self.device = usable_device(device)
        self.epoch = 0
        self.trained_on: dict[str, Any] = {}  # the survey, where there is one
        self.references: dict[str, Reference] = {}  # what training spectra are like, by instrument
        self.drawn: DrawnInstruments | None = None  # what other instruments it can read
        self.regression: AveragedRegression | None = None  # whose answers `predict` averages with
        self._warned_of_range = False
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.torch_model = _build_network(self.config, self.vocab_size, self.embed_map)
        if self.config.pixels_per_token > 1:
            # The embedding of a bin is a sum over its pixels; give it the variance of one pixel.
            layer, pixels = self.torch_model.embedding_layer, self._pixel_tokens()
            with torch.no_grad():
                for table in (layer.embeddings, layer.bias):
                    table[pixels] /= math.sqrt(self.config.pixels_per_token)
        self.torch_model.to(self.device).eval()

    def __repr__(self) -> str:
        number = sum(parameter.numel() for parameter in self.torch_model.parameters())
        labels = ", ".join(label.heading for label in self.labels.values())
        pixels = self.config.pixels_per_token
        tokens = "a pixel a token" if pixels == 1 else f"{pixels} pixels a token"
        lines = [
            f"{type(self).__name__} with {number:,} parameters on {self.device}",
            f"labels: {labels or 'none'}",
            f"instrument: {self.instrument or 'none; predict needs names of pixels'}",
            f"context: {self.config.context_length} tokens, {tokens}",
        ]
        return "\n    ".join(lines)

    @property
    def reference(self) -> Reference | None:
        """What the training spectra of the model's instrument are like.

        A model of a combined instrument has `references` of its parts instead, by their names.
        """
        return self.references.get(self._instrument_name)

    @reference.setter
    def reference(self, reference: Reference | None) -> None:
        self.references = {} if reference is None else {self._instrument_name: reference}

    @property
    def _instrument_name(self) -> str:
        return "" if self.instrument is None else self.instrument.name

    def _known_instrument(self) -> Instrument | None:
        """The instrument of `INSTRUMENTS` whose pixels are in the vocabulary, if there is one."""
        for known in INSTRUMENTS.values():
            if f"{known.pixel_prefix}0" in self._token_of:
                return known
        return None

    def _pixel_tokens(self) -> list[int]:
        """Tokens of the instrument's pixels; all tokens without an instrument."""
        labels = set() if self.instrument is None else set(self.label_names)
        return [token for name, token in self._token_of.items() if token and name not in labels]

    @property
    def positions(self) -> np.ndarray:
        """(V + 1,) position of each pixel on the instrument's grid, which determines its bin."""
        positions = super().positions
        if self.instrument is not None:
            index = dict(
                zip(self.instrument.pixel_names().tolist(), self.instrument.grid_index, strict=True)
            )
            for token, name in enumerate(self.vocabs, start=1):
                positions[token] = index.get(name, positions[token])
        return positions

    @property
    def label_names(self) -> list[str]:
        """Names in the vocabulary that are not pixels of the instrument."""
        pixels = set() if self.instrument is None else set(self.instrument.pixel_names().tolist())
        return [name for name in self.vocabs if name not in pixels]

    @property
    def labels(self) -> dict[str, Label]:
        """The labels that the model knows, by name, with their units and ranges."""
        return {name: label(name) for name in self.label_names}

    def get_config(self) -> dict[str, dict[str, Any]]:
        """Everything but the weights, with the instrument; see `StellarPerceptronCore`."""
        config = super().get_config()
        section = config["stellarperceptron"]
        if self.instrument is not None:
            section["instrument"] = self.instrument.to_dict()
            section["units"] = {name: label.unit for name, label in self.labels.items()}
        if self.drawn is not None:
            section["drawn"] = asdict(self.drawn)
        if self.trained_on:
            section["trained_on"] = self.trained_on
        return config

    def resolving_power_at(self, wavelengths: np.ndarray) -> np.ndarray | None:
        """Resolving power (n,) of the instrument at some wavelengths (n,), NaN where unknown.

        None if the model takes no conditions (see `ModelConfig`).
        """
        if not self.config.conditions:
            return None
        power = None if self.instrument is None else self.instrument.resolving_power
        if np.ndim(power):
            power = np.interp(wavelengths, self.instrument.wavelength, power)
        return np.broadcast_to(np.nan if power is None else power, np.shape(wavelengths))

    def _check_wavelengths(self, wavelengths, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
        wavelengths = as_array(wavelengths, unit="Angstrom", name="wavelengths")
        if wavelengths.shape not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"wavelengths have shape {wavelengths.shape}, expected {expected}")
        if not np.isfinite(wavelengths).all():
            raise ValueError("wavelengths are not finite; 0 marks values that have none")
        low, high = self.config.wavelength_range
        given = wavelengths[wavelengths != 0]
        for unit, factor in _OTHER_UNITS.items():
            if given.size and low <= factor * given.min() and factor * given.max() <= high:
                raise ValueError(
                    f"wavelengths from {given.min():g} to {given.max():g} are in {unit}, it seems: "
                    f"give them in Angstrom, or with their unit (wavelengths * u.{unit})"
                )
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

    def stars_at_once(self, given: int | None, scores_per_star: int = 1) -> int:
        """Stars per batch: as given, or chosen by the device and its memory."""
        if given is not None:
            if given < 1:
                raise ValueError(f"batch_size = {given} is below 1")
            return given
        # A CPU's caches hold the activations of a few contexts; a GPU wants many.
        tokens = 4096 if self.device.type == "cpu" else 2**19
        return max(1, min(tokens // self.config.context_length, _MOST_SCORES // scores_per_star))

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Evaluate without gradients and dropout; the network's mode is restored afterwards."""
        training = self.torch_model.training
        self.torch_model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.torch_model.train(training)

    def _label_tokens(self, labels) -> tuple[list[str], np.ndarray]:
        labels = as_names(labels, "labels")
        if not labels:
            raise ValueError("no labels are requested")
        known = set(self.vocabs)
        if PADDING in labels:
            raise ValueError("padding is no label")
        if not known.issuperset(labels):  # such as "[Fe/H]"
            labels = list(resolve_label_names(labels, self.label_names))
        tokens = self.tokenize(labels)
        self.require_standardization(tokens)
        return labels, tokens

    def _known_label(self, name: str) -> str:
        """Name of a label in the vocabulary, however it is written: "[Fe/H]" is "FE_H"."""
        return name if name in self.vocabs else resolve_label_names(name, self.label_names)[0]

    def _frame(
        self, value, error, labels, tokens, pixels, snr=None, instruments: Sequence[str] = ()
    ) -> pd.DataFrame:
        """Standardized (N, Q) values and errors, calibrated, as a table in the labels' units."""
        value = self.standardizer.inverse_standardize(value, tokens)
        error = self.standardizer.inverse_standardize_error(error, tokens)
        error = error * self.calibration.of(instruments).factor(labels, pixels, snr)
        lost = np.flatnonzero((pixels > 0) & ~np.isfinite(value + error).all(axis=1))
        if len(lost):
            text = f"answers for {len(lost)} stars, {lost[0]} the first, are not finite"
            warnings.warn(f"{text}: try precision='float32'", stacklevel=4)
        columns = [*labels, *(f"{label}_error" for label in labels)]
        return pd.DataFrame(np.hstack([value, error]), columns=columns)

    def set_trainable(
        self,
        *,
        freeze_decoder: bool = False,
        freeze_encoder: bool = False,
        freeze_encoder_second_layer: bool = False,
    ) -> int:
        """Choose which parts of the network are trained: all that are not frozen.

        Parameters
        ----------
        freeze_decoder, freeze_encoder, freeze_encoder_second_layer
            Freeze the decoder, both encoder blocks, or only the second one. The published stage 3
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

    def set_embed_map(self, embed_map: Mapping[str, str] | np.ndarray) -> None:
        """Change the embedding rows that tokens use; see `StellarPerceptronCore`."""
        self._update_embed_map(embed_map)
        self.torch_model.embedding_layer.embed_map.copy_(torch.from_numpy(self.embed_map))

    def flops_per_star(
        self, tokens: int | None = None, labels: int = 1, training: bool = False
    ) -> int:
        """Arithmetic for one star; see `ModelConfig.flops_per_star`."""
        return self.config.flops_per_star(tokens, labels, training)
