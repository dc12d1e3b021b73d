"""Batches of several surveys: turns, shares, order, and stars that several have seen."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_training import make_data

from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.stars.surveys import (
    CommonStars,
    InTurns,
    OneAfterAnother,
    OtherSurveys,
    SurveyStars,
    common_stars,
)

NAMES = np.array([f"star-{i:02d}" for i in range(50)])


def survey(first, stars, seed):
    """Stars with neighbouring names, in an order of their own."""
    order = np.random.default_rng(seed).permutation(np.arange(first, first + stars))
    data = make_data(stars=stars, seed=seed, pixels_per_token=4, bad=0.02)
    return dataclasses.replace(data, star_ids=NAMES[order])


DATA = [survey(0, 30, 1), survey(10, 20, 2), survey(25, 25, 3)]
ROWS = [np.arange(27), np.arange(2, 20), np.arange(24)]
SURVEYS = [SurveyStars(data, rows, np.arange(2)) for data, rows in zip(DATA, ROWS, strict=True)]


def generator(number, rows=None, size=4, **options):
    rows = ROWS[number] if rows is None else rows
    return TrainingGenerator(DATA[number], rows, size, 50, choice="batch", seed=7, **options)


def turns(shares=(0.5, 0.25, 0.25), total=16, seed=3):
    return InTurns([generator(i) for i in range(3)], np.array(shares), total, seed)


def same(one, other):
    return all(
        torch.equal(a.stars, b.stars)
        and torch.equal(a.tokens.values.nan_to_num(), b.tokens.values.nan_to_num())
        for a, b in zip(one, other, strict=True)
    )


@given(epoch=st.integers(0, 5), start=st.integers(0, 16))
def test_it_continues_at_any_batch(epoch, start):
    whole = list(turns().batches(epoch))
    assert len(whole) == len(turns()) == 16
    assert same(whole[start:], list(turns().batches(epoch, start)))


def test_the_order_is_drawn_from_seed_and_epoch():
    one = list(turns().batches(0))
    assert same(one, list(turns().batches(0)))
    assert not same(one, list(turns().batches(1)))
    assert not same(one, list(turns(seed=4).batches(0)))


@pytest.mark.parametrize(
    ("weights", "shares", "counts"),
    [
        ((), [1 / 3] * 3, [5, 6, 5]),
        ((2.0, 1.0, 1.0), [0.5, 0.25, 0.25], [8, 4, 4]),
        ((0.0, 3.0, 1.0), [0, 0.75, 0.25], [0, 12, 4]),
    ],
)
def test_every_epoch_has_the_shares_of_the_weights(weights, shares, counts):
    others = OtherSurveys(tuple(SURVEYS[1:]), weights)
    np.testing.assert_allclose(others.shares(0), shares)
    assert turns(others.shares(0)).counts.tolist() == counts


def test_combinations_share_their_part_of_the_batches():
    others = OtherSurveys(tuple(SURVEYS[1:]), (2.0, 1.0, 1.0), combined_share=0.2)
    np.testing.assert_allclose(others.shares(4), [0.4, 0.2, 0.2, 0.05, 0.05, 0.05, 0.05])
    np.testing.assert_allclose(others.shares(0), [0.5, 0.25, 0.25])  # no star in common


def test_a_set_begins_anew_when_all_of_its_stars_have_been_seen():
    several = InTurns([generator(1)], np.ones(1), 12, 0)  # 5 batches have all of its stars
    stars = [batch.stars for epoch in range(2) for batch in several.batches(epoch)]
    for first in (0, 5, 10, 15):
        assert sorted(torch.cat(stars[first : first + 5]).tolist()) == ROWS[1].tolist()
    assert not torch.equal(torch.cat(stars[:5]), torch.cat(stars[5:10]))


def test_processes_share_every_batch():
    thirds = np.ones(3) / 3
    halves = [
        InTurns([generator(i, rank=rank, world_size=2) for i in range(3)], thirds, 8, 3)
        for rank in range(2)
    ]
    whole = InTurns([generator(i, size=8) for i in range(3)], thirds, 8, 3)
    for *parts, batch in zip(*(one.batches() for one in halves), whole.batches(), strict=True):
        assert torch.equal(torch.cat([part.stars for part in parts]), batch.stars)


def test_common_stars_are_the_same_in_all_surveys():
    found = common_stars(SURVEYS)
    assert [[part[0] is DATA[0] for part in parts] for parts in found] == [
        [True, False],
        [True, False],
        [False, False],
        [True, False, False],
    ]
    for parts in found:
        names = [data.star_ids[rows] for data, rows in parts]
        assert len(names[0]) and all((other == names[0]).all() for other in names[1:])
    known = [set(data.star_ids[rows]) for data, rows in zip(DATA, ROWS, strict=True)]
    assert set(DATA[0].star_ids[found[0][0][1]]) == known[0] & known[1]


def test_copies_of_a_star_are_kept():
    copies = dataclasses.replace(SURVEYS[0], training=np.append(ROWS[0], ROWS[0]))
    once, twice = common_stars(SURVEYS[:2])[0], common_stars([copies, SURVEYS[1]])[0]
    assert len(twice[0][1]) == 2 * len(once[0][1]) == len(twice[1][1])


def test_common_stars_show_the_pixels_of_both():
    first, second = common_stars(SURVEYS)[0]
    both = CommonStars([generator(0, first[1]), generator(1, second[1])])
    alone = [generator(0, first[1]), generator(1, second[1])]
    assert (both.lengths(5) == 22).all() and len(both) == len(alone[0])
    for batch, *parts in zip(
        both.batches(2, 1), *(one.batches(2, 1) for one in alone), strict=True
    ):
        names = [data.star_ids[part.stars] for data, part in zip(DATA, parts, strict=False)]
        assert (names[0] == names[1]).all()
        values = torch.cat([part.tokens.values for part in parts], dim=1)
        assert torch.equal(batch.tokens.values.nan_to_num(), values.nan_to_num())
        assert batch.tokens.ids.shape == values.shape[1:] == (22, 4)
        assert torch.equal(batch.labels.nan_to_num(), parts[0].labels.nan_to_num())


@given(start=st.integers(0, 18))
def test_validation_has_all_stars_of_all_surveys(start):
    every = [generator(i, fixed=True) for i in range(3)]
    chain = OneAfterAnother(every)
    batches = list(chain.batches())
    assert len(chain) == len(batches) == sum(map(len, every)) == 18
    assert len(chain.rows) == sum(len(batch.stars) for batch in batches) == 69
    assert same(batches[start:], list(chain.batches(0, start)))
