"""Batches of training samples, made where the data lie, reproducible on any number of processes.

Each star, each epoch, gives a fresh random set of its valid pixels and one of its labels, or all
(Koblischke & Bovy 2024, section 3). Choices are hashed from (seed, epoch, star, pixel) instead of
drawn from a generator: they do not depend on the batch size, on the number of processes or on
where training was interrupted, and are the same on a CPU and a GPU.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.training.prefetch import batches_of_values
from stellarperceptron.training.prepare import Batch, TrainingData
from stellarperceptron.utils.hashing import LARGEST, scramble, smallest

__all__ = ["TrainingGenerator"]

# What is drawn has a stream of its own.
_PIXELS, _LABELS, _PADDING, _AUGMENTATION, _NARROW = range(5)


def _seed_of(*numbers: int) -> int:
    """One int32 from several numbers, by NumPy's documented and stable seed sequence."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) - 2**31


def _all_nan(values: Tensor) -> Tensor:
    """(B, T) tokens of (B, T, P) without any valid pixel."""
    if values.device.type == "cpu" and values.dtype == torch.float32:  # NumPy is ten times faster
        return torch.from_numpy(np.isnan(values.numpy()).all(axis=2))
    return values.isnan().all(dim=2)


class TrainingGenerator:
    """Iterate over the batches of an epoch.

    Parameters
    ----------
    data
        All stars.
    rows
        (n,) the stars to use; those without any label or valid pixel must not be among them.
    batch_size
        Stars of a batch in each process.
    context_length
        Tokens of a star. A star with fewer valid ones is padded.
    labels_per_star
        "one": one of the available labels, at random. "all": all of them in one pass.
    outputs_padding
        p > 0: the last 0 to p - 1 tokens become padding, at random batch by batch.
    narrow_share
        Share of the stars, drawn anew each epoch, whose tokens come from a stretch of the spectrum,
        anywhere, as in a narrow observed range.
    narrow_tokens
        Tokens in this stretch, at least the context length; 0: just as many.
    seed
        Of everything that is random.
    rank, world_size
        This process and their number. Together they make the batches of one process with
        `world_size` times the batch size.
    fixed
        For validation: stars in their order, the same choices in every epoch, nothing augmented
        and nobody twice.
    """

    def __init__(
        self,
        data: TrainingData,
        rows: np.ndarray,
        batch_size: int,
        context_length: int,
        *,
        labels_per_star: str = "one",
        outputs_padding: int = 0,
        narrow_share: float = 0.0,
        narrow_tokens: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        fixed: bool = False,
    ):
        if labels_per_star not in ("one", "all"):
            raise ValueError(f"labels_per_star = {labels_per_star!r} is neither 'one' nor 'all'")
        if not 0 <= outputs_padding <= context_length:
            raise ValueError(f"outputs_padding = {outputs_padding} is not in 0..{context_length}")
        if not 0 <= narrow_share <= 1:
            raise ValueError(f"narrow_share = {narrow_share} is not in [0, 1]")
        if narrow_tokens and narrow_tokens < context_length:
            raise ValueError(
                f"narrow_tokens = {narrow_tokens} is below the context length {context_length}"
            )
        self.data = data
        self.rows = torch.as_tensor(rows, dtype=torch.int64)
        self.batch_size = batch_size
        self.context_length = min(context_length, len(data.tokens))
        self.labels_per_star = labels_per_star
        self.outputs_padding = outputs_padding
        self.narrow_share = narrow_share
        self.narrow_tokens = min(narrow_tokens or context_length, len(data.tokens))
        self.seed, self.rank, self.world_size, self.fixed = seed, rank, world_size, fixed
        self.epoch = 0
        device = data.device
        # Neighbouring numbers, scrambled once, give streams that have nothing in common.
        self._pixel_hash = scramble(
            torch.arange(len(data.tokens), dtype=torch.int32, device=device)
        )
        self._label_hash = scramble(torch.arange(data.labels.shape[1], device=device).int() - 1000)

    def __len__(self) -> int:
        """Batches of an epoch in this process."""
        return math.ceil(len(self.rows) / (self.batch_size * self.world_size))

    def _order(self) -> Tensor:
        """Rows of this epoch in the order in which all processes together meet them."""
        if self.fixed:
            return self.rows
        order = np.random.RandomState(abs(_seed_of(self.seed, self.epoch, 99))).permutation(
            len(self.rows)
        )
        # The last batch is shared evenly: at most world_size - 1 stars come twice.
        order = np.append(order, order[: -len(order) % self.world_size])
        return self.rows[torch.from_numpy(order)]

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, from batch `start` on.

        Parameters
        ----------
        epoch
            Counted from 0; every epoch has its own order and choices unless the generator is
            fixed.
        start
            Batches to skip, at no cost.
        """
        self.epoch = 0 if self.fixed else epoch
        order = self._order().to(self.data.values.device)
        augment = self.data.augment is not None and not self.fixed
        together = self.batch_size * self.world_size

        def rows(number: int) -> Tensor:
            part = order[number * together : (number + 1) * together]
            # Random changes are drawn for the stars of all processes, so that they do not depend
            # on the number of these.
            return part if augment else self._own(part)

        parts = map(rows, range(start, len(self)))
        values_of_batches = batches_of_values(self.data.values, parts, self.data.device)
        for number, (stars, values) in enumerate(values_of_batches, start):
            values = values.float()  # (B, T, P)
            if augment:
                generator = torch.Generator(device=values.device)
                generator.manual_seed(abs(_seed_of(self.seed, epoch, _AUGMENTATION, number)))
                values = self._own(self.data.augment(values, generator))
                stars = self._own(stars)
            yield self._batch(stars, values, number)

    def _own(self, part: Tensor) -> Tensor:
        """What this process has of the rows of a batch."""
        return part.tensor_split(self.world_size)[self.rank]

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(self.epoch)

    def _keys(self, stream: int, stars: Tensor, things: Tensor) -> Tensor:
        """(B, n) numbers from 0 to 2^31 - 1 that look random, for n things of each star."""
        seed = _seed_of(self.seed, self.epoch, stream)
        star_hash = scramble(scramble(stars.int() ^ seed) + seed)
        return scramble(star_hash[:, None] ^ things).bitwise_and_(LARGEST)

    def _batch(self, stars: Tensor, values: Tensor, number: int) -> Batch:
        data = self.data
        positions, missing = self._choose_pixels(stars, values)
        single = values.shape[2] == 1
        if single:  # gathering in two dimensions is much faster
            values = values[..., 0].gather(1, positions)
        else:
            values = values.gather(1, positions[..., None].expand(-1, -1, values.shape[2]))
        tokens = data.tokens[positions].masked_fill(missing, 0)
        if self.outputs_padding and not self.fixed:
            choice = _seed_of(self.seed, self.epoch, _PADDING, number) % self.outputs_padding
            if choice:
                tokens[:, -choice:] = 0
        request_tokens, labels, errors = self._choose_labels(stars)
        return Batch(
            stars,
            tokens,
            positions,
            values if single else None,
            None if single else values,
            request_tokens,
            labels,
            errors,
            self._stretch(stars)[0] if self.narrow_share else None,
        )

    def _choose_pixels(self, stars: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) with at least one valid pixel, without replacement, and who lacks them."""
        keys = self._keys(_PIXELS, stars, self._pixel_hash)
        bad = _all_nan(values)
        if self.narrow_share:
            # Others follow only where the stretch has too few valid tokens.
            keys = torch.where(self._outside_stretch(stars), keys // 2 + LARGEST // 2, keys // 2)
        keys = keys.bitwise_or_(bad.int().mul_(LARGEST))  # bad ones come last
        chosen = smallest(keys, self.context_length)
        if self.outputs_padding:  # which takes the last ones, which must be any
            chosen = chosen.gather(1, keys.gather(1, chosen).argsort(dim=1))
        return chosen, bad.gather(1, chosen)

    def _outside_stretch(self, stars: Tensor) -> Tensor:
        """(B, T) tokens that a star with a narrow range does not have; none for other stars."""
        narrow, first = self._stretch(stars)
        distance = torch.arange(len(self.data.tokens), device=stars.device) - first[:, None]
        inside = (distance >= 0) & (distance < self.narrow_tokens)
        return narrow[:, None] & ~inside

    def _stretch(self, stars: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) whether a star has a narrow range, and the first token of its stretch."""
        whether, where = self._keys(_NARROW, stars, self._pixel_hash[:2].view(1, -1)).unbind(1)
        first = where % (len(self.data.tokens) - self.narrow_tokens + 1)
        return whether < self.narrow_share * LARGEST, first

    def _choose_labels(self, stars: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        data = self.data
        labels, errors = data.labels[stars], data.label_errors[stars]  # (B, Q)
        if self.labels_per_star == "all":
            return data.label_tokens, labels, errors
        keys = self._keys(_LABELS, stars, self._label_hash).masked_fill(labels.isnan(), -1)
        chosen = keys.argmax(dim=1, keepdim=True)
        return data.label_tokens[chosen], labels.gather(1, chosen), errors.gather(1, chosen)
