"""Batches of training stars, the same on any number of processes.

Random choices are hashes of (seed, epoch, star, token) instead of draws from a generator. They do
not depend on the batch size, the number of processes or interruptions of the training, and are the
same on a CPU and a GPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.layers import Tokens
from stellarperceptron.network.kernels.hashing import LARGEST, scramble, smallest
from stellarperceptron.network.patches import with_snr
from stellarperceptron.training.prepare import TrainingData
from stellarperceptron.training.profiles import CHOICES
from stellarperceptron.training.stars.drawn import Seen
from stellarperceptron.training.stars.prefetch import batches_of_values

__all__ = ["Batch", "MixedBatch", "MixedGenerator", "TrainingGenerator"]

# Each kind of random choice has its own stream.
_PIXELS, _LABELS, _PADDING, _AUGMENTATION, _WINDOW, _LENGTH, _CONDITIONS, _INSTRUMENT = range(8)
HIDDEN = 1 / 3  # share of the batches that are not told the signal-to-noise ratio


def _seed_of(*numbers: int) -> int:
    """One int32 from several numbers, by NumPy's seed sequence, which is documented and stable."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) - 2**31


def _is_nan(values: Tensor) -> Tensor:
    """Whether values are NaN."""
    if values.device.type == "cpu":  # NumPy is ten times faster
        return torch.from_numpy(np.isnan(values.numpy()))
    return values.isnan()


@dataclass(frozen=True)
class Batch:
    """Input of the network and the right answers; B stars, Q requests.

    Attributes
    ----------
    stars : Tensor
        (B,) rows of the stars in the training data.
    tokens : Tokens
        Tokens of these stars.
    request_ids : Tensor
        (B, 1), or (Q,) if all labels are requested.
    labels, label_errors : Tensor
        (B, 1) or (B, Q) standardized; NaN where a star lacks the label.
    """

    stars: Tensor
    tokens: Tokens
    request_ids: Tensor
    labels: Tensor
    label_errors: Tensor

    def filled(self, size: int) -> "Batch":
        """A batch of `size` stars in which these are repeated."""
        if size == len(self.stars):
            return self
        rows = torch.arange(size, device=self.stars.device) % len(self.stars)
        parts = self.tokens._asdict()
        for name, part in parts.items():  # those that are the same for all stars stay
            if isinstance(part, Tensor) and part.dim() == 3:
                parts[name] = part[rows]
        tokens = Tokens(**parts)
        request_ids = self.request_ids if self.request_ids.dim() == 1 else self.request_ids[rows]
        return replace(
            self,
            stars=self.stars[rows],
            tokens=tokens,
            request_ids=request_ids,
            labels=self.labels[rows],
            label_errors=self.label_errors[rows],
        )


class TrainingGenerator:
    """Iterate over the batches of an epoch.

    Parameters
    ----------
    data
        All stars.
    rows
        (n,) rows of the stars to use; each needs a label and a valid value.
    batch_size
        Number of stars in a batch, in each process.
    context_length
        Largest number of tokens of a star.
    choice
        "star": in each epoch each star shows a new random set of its valid tokens, as many as fit
        into the context (Koblischke & Bovy 2024, section 3); stars with fewer tokens are padded.
        "batch": all stars of a batch show the same tokens. All tokens must fit into the context.
    labels_per_star
        "one": one of the star's labels, at random. "all": all labels in one pass.
    outputs_padding
        p > 0: the last 0 to p - 1 tokens, a random number for each batch, become padding ("star"
        only).
    window_share
        Fraction of the stars that show a window: neighbouring tokens anywhere in the spectrum, as
        from an instrument with a small range. Drawn in each epoch.
    window_tokens
        "star": number of tokens in a window, at least the context length; 0: the context length.
        "batch": smallest number of tokens, 0: one. The lengths of windows are uniform in their
        logarithm, up to all tokens, and windows begin and end at any pixel.
    subset_share
        Fraction of the stars that show a random subset of the tokens, at least `window_tokens` of
        them ("batch" only). The remaining stars show all tokens.
    seed
        Seed of all random choices.
    rank, world_size
        Rank of this process and number of processes. Together the processes make the batches of a
        single one with `world_size` times the batch size.
    fixed
        For validation: the given order of the stars, the same choices in every epoch ("batch":
        whole spectra), no augmentation, and no star twice.

    Raises
    ------
    ValueError
        Options are impossible or do not fit together.
    """

    def __init__(
        self,
        data: TrainingData,
        rows: np.ndarray,
        batch_size: int,
        context_length: int,
        *,
        choice: str = "star",
        labels_per_star: str = "one",
        outputs_padding: int = 0,
        window_share: float = 0.0,
        window_tokens: int = 0,
        subset_share: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        fixed: bool = False,
    ):
        total = len(data.groups)
        if choice not in CHOICES["training", "choice"]:
            raise ValueError(f"choice = {choice!r} is neither 'star' nor 'batch'")
        if labels_per_star not in ("one", "all"):
            raise ValueError(f"labels_per_star = {labels_per_star!r} is neither 'one' nor 'all'")
        if not 0 <= outputs_padding <= context_length:
            raise ValueError(f"outputs_padding = {outputs_padding} is not in 0..{context_length}")
        if not 0 <= window_share <= 1 or not 0 <= subset_share <= 1 - window_share:
            raise ValueError(
                f"window_share = {window_share} and subset_share = {subset_share} are no shares"
            )
        if choice == "star":
            if data.groups.shape[1] > 1:
                raise ValueError("tokens of several pixels need choice = 'batch'")
            if subset_share:
                raise ValueError("subset_share needs choice = 'batch'")
            if window_tokens and window_tokens < context_length:
                raise ValueError(
                    f"window_tokens = {window_tokens} is below the context length {context_length}"
                )
        else:
            if total > context_length:
                raise ValueError(
                    f"choice = 'batch' needs a context for all {total} tokens, not {context_length}"
                )
            if outputs_padding:
                raise ValueError("outputs_padding needs choice = 'star'")
        self.data = data
        self.rows = torch.as_tensor(rows, dtype=torch.int64)
        self.batch_size, self.choice = batch_size, choice
        self.context_length = min(context_length, total)
        self.labels_per_star = labels_per_star
        self.outputs_padding = outputs_padding
        self.window_share, self.subset_share = window_share, subset_share
        least = context_length if choice == "star" else 1
        self.window_tokens = min(window_tokens or least, total)
        self.seed, self.rank, self.world_size, self.fixed = seed, rank, world_size, fixed
        self.epoch = 0
        device = data.device
        # Scrambled once, neighbouring numbers give independent streams.
        self._token_hash = scramble(torch.arange(total, dtype=torch.int32, device=device))
        self._label_hash = scramble(torch.arange(data.labels.shape[1], device=device).int() - 1000)
        # Without augmentation it is known beforehand which values are bad: only those of the chosen
        # tokens need to be standardized.
        stored = data.augment is None and data.decode is None
        self._standardize_chosen = choice == "star" and stored
        order = torch.arange(data.groups.shape[0], device=device)
        self._ordered = data.groups.shape[1] == 1 and bool((data.groups[:, 0] == order).all())

    def __len__(self) -> int:
        """Batches of an epoch in this process."""
        return math.ceil(len(self.rows) / (self.batch_size * self.world_size))

    def lengths(self, number: int = 100) -> np.ndarray:
        """`number` quantiles of the number of tokens that a star shows."""
        return np.full(number, self.context_length)

    def _order(self) -> Tensor:
        """Rows in the order of this epoch, for all processes together."""
        if self.fixed:
            return self.rows
        order = np.random.RandomState(abs(_seed_of(self.seed, self.epoch, 99))).permutation(
            len(self.rows)
        )
        # The last batch is divided evenly, for which up to world_size - 1 stars are repeated.
        order = np.append(order, order[: -len(order) % self.world_size])
        return self.rows[torch.from_numpy(order)]

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, from batch `start` on.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0. Every epoch has its own order and choices unless the
            generator is fixed.
        start
            Number of batches to skip, at no cost.
        """
        self.epoch = 0 if self.fixed else epoch
        order = self._order().to(self.data.values.device)
        changes = self.data.augment is not None or self.data.draw is not None
        augment = changes and not self.fixed
        together = self.batch_size * self.world_size

        def rows(number: int) -> Tensor:
            part = order[number * together : (number + 1) * together]
            # Augmentation is drawn for the stars of all processes, so that it does not depend on
            # their number.
            return part if augment else self._own(part)

        parts = map(rows, range(start, len(self)))
        values_of_batches = batches_of_values(self.data.values, parts, self.data.device)
        for number, (stars, values) in enumerate(values_of_batches, start):
            if augment:
                generator = torch.Generator(device=values.device)
                generator.manual_seed(abs(_seed_of(self.seed, epoch, _AUGMENTATION, number)))
                random = self._random(_INSTRUMENT, number)
                spectra = self.data.seen(values, generator, random)
                found = {name: getattr(spectra, name) for name in ("values", "noise", "weights")}
                own = {name: self._own(part) for name, part in found.items() if part is not None}
                stars, spectra = self._own(stars), spectra._replace(**own)
            else:
                spectra = Seen(values) if self._standardize_chosen else self.data.seen(values)
            yield self._batch(stars, spectra, number)

    def _own(self, part: Tensor) -> Tensor:
        """The part of a batch that belongs to this process."""
        return part.tensor_split(self.world_size)[self.rank]

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(self.epoch)

    def _random(self, stream: int, number: int) -> np.random.Generator:
        """Randomness of a batch, the same in all processes."""
        return np.random.default_rng(abs(_seed_of(self.seed, self.epoch, stream, number)))

    def _keys(self, stream: int, stars: Tensor, things: Tensor, *batch: int) -> Tensor:
        """(B, n) numbers from 0 to 2^31 - 1 that look random, for n choices of each star."""
        seed = _seed_of(self.seed, self.epoch, stream, *batch)
        star_hash = scramble(scramble(stars.int() ^ seed) + seed)
        return scramble(star_hash[:, None] ^ things).bitwise_and_(LARGEST)

    def _batch(self, stars: Tensor, spectra: Seen, number: int) -> Batch:
        if self.choice == "batch":
            tokens = self._shared_tokens(stars, spectra, number)
        else:
            tokens = self._own_tokens(stars, spectra, number)
        if self.data.conditions is not None:
            snr = self.data.snr(stars, spectra.noise)
            if not self.fixed and self._random(_CONDITIONS, number).random() < HIDDEN:
                snr = torch.full_like(snr, math.nan)
            tokens = tokens._replace(conditions=with_snr(tokens.conditions, snr))
        return Batch(stars, tokens, *self._choose_labels(stars))

    def _shared_tokens(self, stars: Tensor, spectra: Seen, number: int) -> Tokens:
        """All tokens, without the values that a star does not show."""
        everything = torch.arange(len(self.data.groups), device=self.data.device)
        tokens = self.data.tokens(spectra, everything, stars)
        if self.fixed or not self.window_share + self.subset_share:
            return tokens
        hidden = self._hidden(stars, number)
        # A window may lie in a gap between two chips: such a star shows everything.
        hidden &= (~hidden & (self.data.ids != 0)).any(dim=2).any(dim=1)[:, None, None]
        return tokens._replace(values=tokens.values.masked_fill(hidden, math.nan))

    def _hidden(self, stars: Tensor, number: int) -> Tensor:
        """(B, T, P) values outside a star's window or random subset, if it has one.

        A window begins and ends at any pixel. Its first and last bins are incomplete, as in an
        observed spectrum, whose range does not follow the bins.
        """
        total, size = self.data.groups.shape
        # Copies of a star in different batches show different parts.
        keys = self._keys(_WINDOW, stars, self._token_hash, number)
        draws = self._keys(_LENGTH, stars, self._token_hash[:3].view(1, -1), number)
        kind, length, start = (draws.float() / LARGEST).unbind(dim=1)
        low, high = math.log(self.window_tokens), math.log(total)
        length = (low + length * (high - low)).exp().round()
        start = (start * (total - length) * size).round()[:, None]  # in pixels
        place = torch.arange(total * size, device=stars.device)
        outside = (place < start) | (place >= start + length[:, None] * size)
        left_out = keys.argsort(dim=1).argsort(dim=1) >= length[:, None]
        window = kind < self.window_share
        subset = ~window & (kind < self.window_share + self.subset_share)
        outside = outside.view(-1, total, size) & window[:, None, None]
        return outside | (left_out & subset[:, None])[:, :, None]

    def _own_tokens(self, stars: Tensor, spectra: Seen, number: int) -> Tokens:
        """Tokens that each star shows: a choice among its valid ones, without replacement."""
        values = spectra.values
        bad = _is_nan(values if self._ordered else values[:, self.data.groups[:, 0]])
        keys = self._keys(_PIXELS, stars, self._token_hash)
        if self.window_share:
            # Tokens outside are chosen only if the window has too few valid ones.
            keys = torch.where(self._outside_window(stars), keys // 2 + LARGEST // 2, keys // 2)
        keys = keys.bitwise_or_(bad.int().mul_(LARGEST))  # bad tokens come last
        chosen = smallest(keys, self.context_length)
        if self.outputs_padding:  # the last tokens become padding: they must be random
            chosen = chosen.gather(1, keys.gather(1, chosen).argsort(dim=1))
        tokens = self.data.tokens(spectra, chosen, stars)
        if self._standardize_chosen:
            columns = chosen if self._ordered else self.data.groups[:, 0][chosen]
            values = tokens.values.float() / self.data.scale[columns][..., None]
            tokens = tokens._replace(values=values)
        missing = bad.gather(1, chosen)
        if self.outputs_padding and not self.fixed:
            padding = _seed_of(self.seed, self.epoch, _PADDING, number) % self.outputs_padding
            if padding:
                missing[:, -padding:] = True
        return tokens._replace(ids=tokens.ids.masked_fill(missing[..., None], 0))

    def _outside_window(self, stars: Tensor) -> Tensor:
        """(B, T) mask of tokens outside a star's window; False for stars without a window."""
        total = len(self.data.groups)
        whether, where = self._keys(_WINDOW, stars, self._token_hash[:2].view(1, -1)).unbind(1)
        first = where % (total - self.window_tokens + 1)
        distance = torch.arange(total, device=stars.device) - first[:, None]
        inside = (distance >= 0) & (distance < self.window_tokens)
        return (whether < self.window_share * LARGEST)[:, None] & ~inside

    def _choose_labels(self, stars: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        data = self.data
        labels, errors = data.labels[stars], data.label_errors[stars]  # (B, Q)
        if self.labels_per_star == "all":
            return data.label_ids, labels, errors
        keys = self._keys(_LABELS, stars, self._label_hash).masked_fill(labels.isnan(), -1)
        chosen = keys.argmax(dim=1, keepdim=True)
        return data.label_ids[chosen], labels.gather(1, chosen), errors.gather(1, chosen)


@dataclass(frozen=True)
class MixedBatch:
    """Batches of one step, whose loss is averaged over all of their stars."""

    parts: tuple[Batch, ...]

    @property
    def stars(self) -> Tensor:
        """Rows of the stars of all parts."""
        return torch.cat([part.stars for part in self.parts])


class MixedGenerator:
    """Iterate over two sets of stars together: every batch has stars of both.

    An epoch shows all batches of the first set, and as many of the second. Their batch sizes tell
    the share of each.

    Parameters
    ----------
    first, second
        The two sets.

    Raises
    ------
    ValueError
        The second set has fewer batches than the first.
    """

    def __init__(self, first: TrainingGenerator, second: TrainingGenerator):
        if len(second) < len(first):
            raise ValueError(
                f"the second set has {len(second)} batches, fewer than the {len(first)} of the "
                "first: make its batches smaller"
            )
        self.first, self.second = first, second
        self.rows, self.batch_size = first.rows, first.batch_size + second.batch_size

    def __len__(self) -> int:
        """Batches of an epoch in this process."""
        return len(self.first)

    def lengths(self, number: int = 100) -> np.ndarray:
        """`number` quantiles of the number of tokens that a star shows."""
        part = round(number * self.second.batch_size / self.batch_size)
        return np.append(self.first.lengths(number - part), self.second.lengths(part))

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[MixedBatch]:
        """Batches of an epoch, from batch `start` on; see `TrainingGenerator.batches`."""
        parts = self.first.batches(epoch, start), self.second.batches(epoch, start)
        return map(MixedBatch, zip(*parts, strict=False))
