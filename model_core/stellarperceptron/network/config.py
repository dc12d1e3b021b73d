"""Sizes of the network, checked before it is built."""

import itertools
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from stellarperceptron.instruments import APOGEE
from stellarperceptron.network.block import ACTIVATIONS
from stellarperceptron.utils.arguments import with_nearest

__all__ = ["PRECISIONS", "PUBLISHED_KEYS", "ModelConfig"]

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_PIXELS = 100_000  # per token: more than any spectrum has
# Entries of `nn_config` in published checkpoints.
PUBLISHED_KEYS = (
    "context_length",
    "embedding_dim",
    "embedding_activation",
    "encoder_head_num",
    "encoder_dense_num",
    "encoder_dropout_rate",
    "encoder_activation",
    "decoder_head_num",
    "decoder_dense_num",
    "decoder_dropout_rate",
    "decoder_activation",
)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network; the defaults are the published ones (Koblischke & Bovy 2024).

    Parameters
    ----------
    context_length
        Largest number of tokens that the encoder takes at once.
    embedding_dim
        Number of dimensions D of a token.
    embedding_activation, encoder_activation, decoder_activation
        "gelu", "relu", "silu" or "tanh".
    encoder_head_num, encoder_dense_num, encoder_dropout_rate
        Attention heads and feed-forward width of the first encoder block (the second has half of
        each), and dropout probability.
    decoder_head_num, decoder_dense_num, decoder_dropout_rate
        The same for the first of three decoder blocks (the others have a half and a quarter).
    wavelength_range
        Wavelengths at 0 and 1 of the wavelength encoding, vacuum [Angstrom].
    pixels_per_token
        Number of neighbouring pixels that make a token; published: 1.
    attention_dropout_rate
        Dropout probability of the encoder's attention weights.
    conditions
        Tell tokens of several pixels the resolving power and the signal-to-noise ratio, where they
        are known.

    Raises
    ------
    ValueError
        Values are impossible; the message lists all of them.
    """

    context_length: int = 512
    embedding_dim: int = 256
    embedding_activation: str = "gelu"
    encoder_head_num: int = 16
    encoder_dense_num: int = 2048
    encoder_dropout_rate: float = 0.05
    encoder_activation: str = "gelu"
    decoder_head_num: int = 16
    decoder_dense_num: int = 2048
    decoder_dropout_rate: float = 0.05
    decoder_activation: str = "gelu"
    wavelength_range: tuple[float, float] = APOGEE.encoding_range
    pixels_per_token: int = 1
    attention_dropout_rate: float = 0.0
    conditions: bool = False

    def __post_init__(self):
        for field in fields(self):  # NumPy's numbers become Python's, which JSON can hold
            value = getattr(self, field.name)
            if isinstance(value, numbers.Real) and not isinstance(value, bool):
                value = int(value) if isinstance(value, numbers.Integral) else float(value)
                object.__setattr__(self, field.name, value)
        problems = list(self._problems())
        if problems:
            raise ValueError("impossible model configuration: " + "; ".join(problems))
        object.__setattr__(self, "wavelength_range", tuple(map(float, self.wavelength_range)))

    def _problems(self) -> Iterable[str]:
        whole = {}
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if field.type is int:
                whole[field.name] = number and isinstance(value, int) and value >= 1
                if not whole[field.name]:
                    yield f"{field.name} = {value!r} is not a whole number of at least 1"
            if field.name.endswith("_rate") and not (number and 0 <= value < 1):
                yield f"{field.name} = {value!r} is not in [0, 1)"
            if field.name.endswith("_activation") and value not in ACTIVATIONS:
                yield f"{field.name} = {value!r} is not one of {', '.join(ACTIVATIONS)}"
        if not isinstance(self.conditions, bool):
            yield f"conditions = {self.conditions!r} is neither true nor false"
        elif self.conditions and self.pixels_per_token == 1:
            yield "conditions = True needs pixels_per_token above 1"
        if whole["pixels_per_token"] and self.pixels_per_token > MOST_PIXELS:
            yield f"pixels_per_token = {self.pixels_per_token} is above {MOST_PIXELS}"
        if whole["embedding_dim"] and self.embedding_dim % 2:
            yield f"embedding_dim = {self.embedding_dim} is not even"
        for part, halvings in (("encoder", 1), ("decoder", 2)):
            name = f"{part}_head_num"
            if not (whole[name] and whole["embedding_dim"]):
                continue
            heads = getattr(self, name)
            if heads % 2**halvings or self.embedding_dim % heads:
                yield (
                    f"{name} = {heads} is not a multiple of {2**halvings} that divides "
                    f"embedding_dim = {self.embedding_dim}"
                )
        for name, divisor in (("encoder_dense_num", 2), ("decoder_dense_num", 8)):
            if whole[name] and getattr(self, name) % divisor:
                yield f"{name} = {getattr(self, name)} is not a multiple of {divisor}"
        try:
            low, high = (float(edge) for edge in self.wavelength_range)
            possible = math.isfinite(low) and math.isfinite(high) and low < high
        except (TypeError, ValueError):
            possible = False
        if not possible:
            yield f"wavelength_range = {self.wavelength_range!r} is not (low, high) in Angstrom"

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "ModelConfig":
        """Read a configuration; unknown keys are errors.

        Raises
        ------
        ValueError
            Keys are unknown (the message lists the nearest known ones) or values impossible.
        """
        known = [field.name for field in fields(cls)]
        unknown = [with_nearest(key, known) for key in entries if key not in known]
        if unknown:
            raise ValueError("unknown entries in the model configuration: " + "; ".join(unknown))
        return cls(**entries)

    def flops_per_star(
        self, tokens: int | None = None, labels: int = 1, training: bool = False
    ) -> int:
        """Number of floating-point operations of the published network for one star.

        A multiplication and an addition count as two operations. The number is that of the matrix
        products of the published network (in which the decoder projects keys and values for every
        token), the usual basis of model FLOP utilization. `layers` needs about 10 % less.

        Parameters
        ----------
        tokens
            Number of tokens perceived; None: the context length.
        labels
            Number of labels requested.
        training
            Count forward and backward pass, three times the forward pass alone.
        """
        c, n, q = self, tokens or self.context_length, labels
        dim = c.embedding_dim
        total = 0
        for i in range(2):
            total += 8 * n * dim**2 + 4 * n * (n + 1) * dim
            total += 4 * n * dim * (c.encoder_dense_num // 2**i)
        for i in range(3):
            total += 4 * (n + q) * dim**2 + 4 * q * (n + 1) * dim
            total += 4 * q * dim * (c.decoder_dense_num // 2**i)
        widths = [dim, *(c.decoder_dense_num // 2**i for i in range(4)), 2]
        total += sum(2 * q * a * b for a, b in itertools.pairwise(widths))
        if c.pixels_per_token > 1:
            total += 4 * n * c.pixels_per_token * dim
        return total * (3 if training else 1)
