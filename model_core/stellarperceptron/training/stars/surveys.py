"""Batches of several surveys: in turns, and stars that several have seen in one context.

A survey has its own instrument, stars and labels; the model has the pixels of all instruments.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from stellarperceptron.layers import Tokens
from stellarperceptron.training.batches import Batch, MixedBatch, MixedGenerator, TrainingGenerator
from stellarperceptron.training.prepare import TrainingData, usable_stars

__all__ = [
    "CommonStars",
    "InTurns",
    "OneAfterAnother",
    "OtherSurveys",
    "SurveyStars",
    "common_stars",
]


@dataclass(frozen=True)
class SurveyStars:
    """The stars of a survey that a training uses.

    Attributes
    ----------
    data
        All stars.
    training, validation
        Rows of the stars to train and to validate on.
    rehearsal
        Other spectra of the same stars; see `Profile.rehearsal`.
    """

    data: TrainingData
    training: np.ndarray
    validation: np.ndarray
    rehearsal: TrainingData | None = None

    def __len__(self) -> int:
        return len(self.training) + len(self.validation)

    def useful(self) -> "SurveyStars":
        """The same without the stars that have no label or no valid pixel."""
        useful = usable_stars(self.data)
        training, validation = (
            rows[np.isin(rows, useful)] for rows in (self.training, self.validation)
        )
        return replace(self, training=training, validation=validation)


@dataclass(frozen=True)
class OtherSurveys:
    """What a training sees beside its first survey.

    Attributes
    ----------
    surveys
        The other surveys.
    weights
        Weight of each survey, the first one included; empty: all the same.
    combined_share
        Fraction of the batches that show stars of several surveys; see `CommonStars`.
    """

    surveys: tuple[SurveyStars, ...]
    weights: tuple[float, ...] = ()
    combined_share: float = 0.0

    def shares(self, combinations: int) -> np.ndarray:
        """Fraction of the batches from each survey and from each combination of surveys."""
        weights = np.array(self.weights or [1.0] * (1 + len(self.surveys)))
        combined = self.combined_share if combinations else 0.0
        alone = (1 - combined) * weights / weights.sum()
        return np.append(alone, [combined / combinations] * combinations if combinations else [])


def common_stars(surveys: Sequence[SurveyStars]) -> list[list[tuple[TrainingData, np.ndarray]]]:
    """Training stars that several surveys have seen, for each combination of surveys.

    Parameters
    ----------
    surveys
        Surveys whose `TrainingData.star_ids` are the names of the stars.

    Returns
    -------
    list
        For each two and more surveys with stars in common, the data of each and its rows (n,) of
        these stars, in the same order.
    """
    found = []
    for size in range(2, len(surveys) + 1):
        for some in itertools.combinations(surveys, size):
            names = [survey.data.star_ids[survey.training] for survey in some]
            common = names[0][np.all([np.isin(names[0], other) for other in names[1:]], axis=0)]
            rows = []
            for survey, own in zip(some, names, strict=True):
                order = np.argsort(own, kind="stable")
                place = order[np.searchsorted(own[order], common)]
                rows.append((survey.data, survey.training[place]))
            if len(common):
                found.append(rows)
    return found


class CommonStars:
    """Iterate over stars that several surveys have seen, with all of their pixels in one context.

    The labels are those of the first survey.

    Parameters
    ----------
    generators
        One of each survey, with the same stars, seed and batch size, and choice = "batch".
    """

    def __init__(self, generators: Sequence[TrainingGenerator]):
        self.generators = list(generators)
        self.rows, self.batch_size = generators[0].rows, generators[0].batch_size

    def __len__(self) -> int:
        """Batches of an epoch in this process."""
        return len(self.generators[0])

    def lengths(self, number: int = 100) -> np.ndarray:
        """`number` quantiles of the number of tokens that a star shows."""
        return np.sum([one.lengths(number) for one in self.generators], axis=0)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, from batch `start` on; see `TrainingGenerator.batches`."""
        sources = [one.batches(epoch, start) for one in self.generators]
        for parts in zip(*sources, strict=True):
            tokens = [part.tokens for part in parts]
            ids, values, encoding, conditions = (
                None
                if getattr(tokens[0], name) is None
                else torch.cat([getattr(one, name) for one in tokens], dim=-2)
                for name in ("ids", "values", "encoding", "conditions")
            )
            yield replace(parts[0], tokens=Tokens(ids, values, encoding, conditions=conditions))


class InTurns:
    """Iterate over several sets of stars; every batch shows stars of one of them.

    An epoch has as many batches as the epochs of all surveys together, of which each set has its
    share. Their order is drawn from the seed, the same in all processes. A set whose stars have all
    been seen begins anew, in another order; one whose share is small goes on in the next epoch.

    Parameters
    ----------
    sets
        Generators of the sets.
    shares
        Fraction of the batches of each set.
    total
        Number of batches of an epoch.
    seed
        Seed of the order.
    """

    def __init__(
        self,
        sets: Sequence[TrainingGenerator | MixedGenerator | CommonStars],
        shares: np.ndarray,
        total: int,
        seed: int,
    ):
        self.sets, self.seed = list(sets), seed
        self.counts = np.diff(np.rint(np.cumsum(shares) * total).astype(int), prepend=0)
        self.batch_size = max(one.batch_size for one in self.sets)
        alone = [one for one in self.sets if not isinstance(one, CommonStars)]
        self.rows = np.concatenate([one.rows for one in alone])  # each star of a survey once

    def __len__(self) -> int:
        """Batches of an epoch in this process."""
        return int(self.counts.sum())

    def lengths(self, number: int = 100) -> np.ndarray:
        """`number` quantiles of the number of tokens that a star shows, or somewhat more."""
        parts = np.ceil(number * self.counts / self.counts.sum()).astype(int)
        return np.concatenate(
            [one.lengths(part) for one, part in zip(self.sets, parts, strict=True)]
        )

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch | MixedBatch]:
        """Batches of an epoch, from batch `start` on; see `TrainingGenerator.batches`."""
        order = np.random.RandomState([self.seed, epoch]).permutation(
            np.repeat(np.arange(len(self.sets)), self.counts)
        )
        seen = epoch * self.counts + np.bincount(order[:start], minlength=len(self.sets))
        sources = [self._from(*pair) for pair in zip(self.sets, seen.tolist(), strict=True)]
        for which in order[start:]:
            yield next(sources[which])

    @staticmethod
    def _from(
        one: TrainingGenerator | MixedGenerator | CommonStars, number: int
    ) -> Iterator[Batch | MixedBatch]:
        """Batches of a set from the given one on, epoch after epoch."""
        first, start = divmod(number, len(one))
        for epoch in itertools.count(first):
            yield from one.batches(epoch, start)
            start = 0


class OneAfterAnother:
    """Iterate over several sets of stars, one after another: all validation stars of all surveys.

    Parameters
    ----------
    sets
        Generators of the sets, of which some may have no stars.
    """

    def __init__(self, sets: Sequence[TrainingGenerator]):
        self.sets, self.batch_size = list(sets), sets[0].batch_size
        self.rows = np.concatenate([one.rows for one in sets])

    def __len__(self) -> int:
        """Batches in this process."""
        return sum(map(len, self.sets))

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """All batches, from batch `start` on."""
        for one in self.sets:
            yield from one.batches(epoch, min(start, len(one)))
            start = max(0, start - len(one))
