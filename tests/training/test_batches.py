"""Batches: every choice valid, uniform, and the same however the work is shared."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_training import make_data

from stellarperceptron.training.batches import MixedGenerator, TrainingGenerator


def concatenated(batches, name):
    return torch.cat([getattr(batch, name) for batch in batches])


def chosen_pixels(batch):
    """(B, L) pixels of tokens of one pixel; -1 for padding. The pixels are the first names."""
    return batch.tokens.ids[..., 0] - 1


def all_chosen(batches):
    return torch.cat([chosen_pixels(batch) for batch in batches])


@given(
    batch_size=st.integers(1, 40),
    context=st.integers(1, 50),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
)
def test_chosen_tokens_are_valid_and_different(batch_size, context, seed, epoch):
    data = make_data()
    standardized = data.standardized(data.values)
    generator = TrainingGenerator(data, np.arange(30), batch_size, context, seed=seed)
    for batch in generator.batches(epoch):
        values = batch.tokens.values[..., 0]
        for star, pixels, chosen in zip(batch.stars, chosen_pixels(batch), values, strict=True):
            real = pixels >= 0
            assert not chosen[real].isnan().any()
            valid = int((~standardized[star].isnan()).sum())
            assert int(real.sum()) == min(context, valid)
            assert len(set(pixels[real].tolist())) == int(real.sum())
            torch.testing.assert_close(chosen[real], standardized[star][pixels[real]])


@given(seed=st.integers(0, 99), labels_per_star=st.sampled_from(["one", "all"]))
def test_labels_are_those_of_the_star(seed, labels_per_star):
    data = make_data()
    generator = TrainingGenerator(
        data, np.arange(30), 8, 10, seed=seed, labels_per_star=labels_per_star
    )
    for batch in generator:
        if labels_per_star == "all":
            assert torch.equal(batch.request_ids, data.label_ids)
            torch.testing.assert_close(batch.labels, data.labels[batch.stars], equal_nan=True)
            continue
        assert not batch.labels.isnan().any()
        column = (batch.request_ids == data.label_ids).int().argmax(dim=1)
        torch.testing.assert_close(batch.labels[:, 0], data.labels[batch.stars, column])
        torch.testing.assert_close(batch.label_errors[:, 0], data.label_errors[batch.stars, column])


def test_an_epoch_meets_every_star_once():
    generator = TrainingGenerator(make_data(), np.arange(3, 30), 8, 10)
    first, second = (concatenated(generator.batches(epoch), "stars") for epoch in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(3, 30))
    assert first.tolist() != second.tolist()


def in_order_of_stars(batches):
    """Stars as they come, and, sorted by star, their pixels and their requests."""
    batches = list(batches)
    stars = concatenated(batches, "stars")
    order = stars.argsort()
    return stars, all_chosen(batches)[order], concatenated(batches, "request_ids")[order]


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1)])
def test_seed_and_epoch_decide_every_choice(seed, epoch):
    """Each choice on its own: a new order of the stars would hide that their pixels are old."""

    def choices(seed, epoch):
        data = make_data(bad=0)
        return in_order_of_stars(
            TrainingGenerator(data, np.arange(30), 10, 5, seed=seed).batches(epoch)
        )

    (order, pixels, labels), again, other = choices(0, 0), choices(0, 0), choices(seed, epoch)
    assert all(map(torch.equal, (order, pixels, labels), again))
    assert (order != other[0]).float().mean() > 0.7
    assert (pixels.sort().values != other[1].sort().values).any(dim=1).all()
    assert 5 < (labels != other[2]).sum() < 29  # there are only three


def chi_squared(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_pixels_and_pairs_of_pixels_are_chosen_uniformly():
    data = make_data(stars=400, bad=0)
    generator = TrainingGenerator(data, np.arange(400), 400, 10, seed=5)
    chosen = torch.zeros(20 * 400, 40)
    for epoch in range(20):
        positions = all_chosen(generator.batches(epoch))
        chosen[400 * epoch : 400 * (epoch + 1)].scatter_(1, positions, 1.0)
    # 40 pixels, choosing 10 of 40 without replacement: variance n p (1 - p) each.
    counts = chosen.sum(dim=0)
    assert chi_squared(counts, 2000.0) / 0.75 < 66.0  # 99.5 % of chi-squared with 39 degrees
    pairs = (chosen.T @ chosen)[tuple(np.triu_indices(40, 1))]
    expected = 8000 * (10 * 9) / (40 * 39)
    # 780 pairs: mean 780, standard deviation 40; dependence between pairs is weak.
    assert 600 < chi_squared(pairs, expected) < 980


def test_labels_are_chosen_uniformly():
    data = make_data(stars=400)
    whole = ~data.labels.isnan().any(dim=1)
    generator = TrainingGenerator(data, np.flatnonzero(whole.numpy()), 400, 4, seed=2)
    tokens = torch.cat([concatenated(generator.batches(e), "request_ids") for e in range(20)])
    counts = (tokens == data.label_ids).sum(dim=0).float()
    assert chi_squared(counts, len(tokens) / 3) < 10.6  # 99.5 % with 2 degrees of freedom


def with_noise(flux, generator):
    return flux + 0.01 * torch.randn(flux.shape, generator=generator)


def test_noise_is_drawn_anew_for_every_batch_epoch_and_seed():
    noise = []

    def note(flux, generator):
        noise.append(torch.randn(3, generator=generator))
        return flux

    data = make_data(augment=note)
    for seed in (0, 1):
        for epoch in (0, 1):
            list(TrainingGenerator(data, np.arange(30), 10, 5, seed=seed).batches(epoch))
    assert len(torch.stack(noise).unique(dim=0)) == 2 * 2 * 3


@given(
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 6),
    labels_per_star=st.sampled_from(["one", "all"]),
    padding=st.sampled_from([0, 3]),
    augment=st.sampled_from([None, with_noise]),
)
def test_processes_together_make_the_same_batches(
    world_size, batch_size, labels_per_star, padding, augment
):
    data = make_data(augment=augment)
    options = {"labels_per_star": labels_per_star, "outputs_padding": padding, "seed": 3}
    alone = TrainingGenerator(data, np.arange(30), batch_size * world_size, 12, **options)
    shares = [
        TrainingGenerator(
            data, np.arange(30), batch_size, 12, rank=r, world_size=world_size, **options
        )
        for r in range(world_size)
    ]
    assert {len(share) for share in shares} == {len(alone)}
    for one, parts in zip(
        alone.batches(2), zip(*(s.batches(2) for s in shares), strict=True), strict=True
    ):
        assert len({len(part.stars) for part in parts}) == 1
        for name in ("stars", "labels"):
            together = concatenated(parts, name)[: len(one.stars)]
            torch.testing.assert_close(together, getattr(one, name), equal_nan=True)
        for name in ("ids", "values"):
            together = concatenated([part.tokens for part in parts], name)[: len(one.stars)]
            torch.testing.assert_close(together, getattr(one.tokens, name), equal_nan=True)


@pytest.mark.parametrize("start", [0, 2, 4])
def test_an_epoch_can_be_entered_anywhere(start):
    generator = TrainingGenerator(make_data(), np.arange(30), 7, 12, outputs_padding=4)
    whole = list(generator.batches(1))
    rest = list(generator.batches(1, start=start))
    assert len(rest) == len(whole) - start
    for one, other in zip(rest, whole[start:], strict=True):
        assert torch.equal(one.tokens.ids, other.tokens.ids)


def test_validation_never_changes_and_shares_every_star_once():
    data = make_data()
    shares = [
        TrainingGenerator(data, np.arange(7), 2, 12, rank=r, world_size=2, fixed=True)
        for r in range(2)
    ]
    first = [batch for share in shares for batch in share.batches(0)]
    later = [batch for share in shares for batch in share.batches(9)]
    assert sorted(concatenated(first, "stars").tolist()) == list(range(7))
    for one, other in zip(first, later, strict=True):
        assert torch.equal(one.tokens.ids, other.tokens.ids)


@pytest.mark.parametrize("bad", [0.0, 0.3])
def test_some_stars_show_windows(bad):
    data = make_data(stars=300, bad=bad)
    generator = TrainingGenerator(data, np.arange(300), 300, 10, window_share=0.5, seed=1)
    (batch,) = generator.batches(0)
    pixels = chosen_pixels(batch).sort(dim=1).values
    if bad == 0:
        window = pixels[:, -1] - pixels[:, 0] == 9
        assert 0.4 < window.float().mean() < 0.6
        starts = pixels[window, 0]
        assert starts.min() < 4 and starts.max() > 26
    assert all(len(set(row.tolist())) == 10 for row in pixels)
    assert not batch.tokens.values.isnan().any()


def test_windows_wider_than_the_context():
    data = make_data(stars=300, bad=0)
    options = {"window_share": 1.0, "window_tokens": 20}
    (batch,) = TrainingGenerator(data, np.arange(300), 300, 10, **options).batches(0)
    pixels = chosen_pixels(batch)
    width = pixels.amax(dim=1) - pixels.amin(dim=1) + 1
    assert width.max() == 20 and width.min() >= 10


# --- one choice for all stars of a batch ----------------------------------------------------------

# Bins of four pixels are counted on APOGEE's grid, whose first pixel is its 247th: 40 pixels lie
# in eleven bins, the first and the last of which are incomplete.
BINS = (np.arange(40) + 246) // 4 - 246 // 4


def shared(data, **options):
    return TrainingGenerator(data, np.arange(len(data)), 10, 40, choice="batch", **options)


def bins_of(batch):
    """Bins that each star of a batch shows."""
    shown = (~batch.tokens.values.isnan()).any(dim=2)
    return [row.nonzero()[:, 0].tolist() for row in shown]


def test_bins_hold_the_pixels_of_their_range():
    data = make_data(bad=0.2, pixels_per_token=4)
    (batch, *_) = shared(data).batches(0)
    ids, values, encoding, *_ = batch.tokens
    assert [[i - 1 for i in row if i] for row in ids.tolist()] == [
        np.flatnonzero(number == BINS).tolist() for number in range(11)
    ]
    standardized = torch.nn.functional.pad(
        data.standardized(data.values[batch.stars]), (1, 0), value=torch.nan
    )
    torch.testing.assert_close(values, standardized[:, ids], equal_nan=True)
    torch.testing.assert_close(encoding, data.encoding)


def shown_by(generator, epochs=1):
    """Bins that each star shows, in all batches of some epochs."""
    batches = (batch for epoch in range(epochs) for batch in generator.batches(epoch))
    return [bins for batch in batches for bins in bins_of(batch)]


def test_stars_show_windows_subsets_and_everything():
    data = make_data(stars=600, bad=0, pixels_per_token=4)
    options = {"window_share": 0.4, "subset_share": 0.3, "window_tokens": 2}
    shown = shown_by(shared(data, **options))
    # A window or a subset of all bins shows everything, too: log-uniform lengths rarely are 11.
    assert 0.25 < np.mean([len(bins) == 11 for bins in shown]) < 0.5
    windows = [b for b in shown if len(b) < 11 and b == list(range(b[0], b[0] + len(b)))]
    assert 0.25 < len(windows) / len(shown) < 0.6
    assert {len(b) for b in shown} == set(range(2, 12))
    assert min(b[0] for b in windows) == 0 and max(b[-1] for b in windows) == 10


def test_hidden_values_are_all_that_changes():
    data = make_data(stars=60, bad=0.2, pixels_per_token=4)
    whole, parts = shared(data), shared(data, window_share=0.5, subset_share=0.4)
    for everything, some in zip(whole.batches(1), parts.batches(1), strict=True):
        assert torch.equal(everything.tokens.ids, some.tokens.ids)
        hidden = some.tokens.values.isnan()
        expected = everything.tokens.values.masked_fill(hidden, torch.nan)
        assert torch.equal(expected.nan_to_num(), some.tokens.values.nan_to_num())


def test_windows_begin_and_end_at_any_pixel():
    data = make_data(stars=600, bad=0, pixels_per_token=4)
    starts, widths = set(), []
    for batch in shared(data, window_share=1.0, window_tokens=2).batches(0):
        for values in batch.tokens.values:
            seen = batch.tokens.ids[~values.isnan()] - 1
            assert torch.equal(seen, torch.arange(seen.min(), seen.max() + 1))
            if seen.min() > 0 and seen.max() < 39:  # within the spectrum: as many as bins hold
                assert len(seen) % 4 == 0
            starts.add(int(seen.min()) % 4)
            widths.append(len(seen))
    assert starts == {0, 1, 2, 3}
    assert min(widths) >= 6 and max(widths) > 20  # at least two bins, but at the ends


def test_windows_between_two_chips_are_not_empty():
    data = make_data(stars=600, bad=0, pixels_per_token=4)
    gap = torch.zeros(data.ids.shape, dtype=torch.bool)
    gap[4, 1:], gap[5, :3] = True, True
    data = dataclasses.replace(
        data, ids=data.ids.masked_fill(gap, 0), groups=data.groups.masked_fill(gap, 40)
    )
    generator = shared(data, window_share=1.0)
    for epoch in range(20):  # two in a hundred windows of one bin fall between the chips
        for batch in generator.batches(epoch):
            assert all(bins_of(batch))


def test_a_filled_batch_repeats_its_stars():
    data = make_data(bad=0, pixels_per_token=4)
    (batch, *_) = shared(data, labels_per_star="one").batches(0)
    filled, rows = batch.filled(25), torch.arange(25) % 10
    for name in ("stars", "request_ids", "labels", "label_errors"):
        torch.testing.assert_close(
            getattr(filled, name), getattr(batch, name)[rows], equal_nan=True
        )
    values = filled.tokens.values, batch.tokens.values[rows]
    torch.testing.assert_close(*values, equal_nan=True)
    assert filled.tokens.ids is batch.tokens.ids


@pytest.mark.parametrize("kind", ["window_share", "subset_share"])
def test_lengths_are_uniform_in_their_logarithm(kind):
    data = make_data(stars=1000, bad=0)
    shown = [len(bins) for bins in shown_by(shared(data, window_tokens=2, **{kind: 1.0}))]
    assert np.mean(shown) == pytest.approx(38 / np.log(20), rel=0.05)  # uniform: 21
    assert np.median(shown) == pytest.approx(80**0.5, abs=1)


def test_every_epoch_and_every_copy_shows_another_window():
    data = make_data(stars=10, bad=0)
    generator = TrainingGenerator(
        data, np.arange(10).repeat(8), 4, 40, choice="batch", window_share=1.0
    )
    first, second, again = (
        [tuple(bins) for batch in generator.batches(epoch) for bins in bins_of(batch)]
        for epoch in (0, 1, 0)
    )
    assert first == again and len(set(first)) > 50
    assert len(set(first) & set(second)) < 20


def test_every_copy_shows_another_subset():
    data, options = make_data(stars=10, bad=0), {"subset_share": 1.0, "window_tokens": 39}
    generator = TrainingGenerator(data, np.arange(10).repeat(16), 4, 40, choice="batch", **options)
    # All tokens or all but one, which is not the same for all copies of a star.
    assert len(set(map(tuple, shown_by(generator)))) > 25


def test_validation_shows_whole_spectra():
    data = make_data(bad=0, pixels_per_token=4)
    for batch in shared(data, window_share=1.0, fixed=True).batches(3):
        assert all(len(bins) == 11 for bins in bins_of(batch))


def test_processes_together_show_what_one_would():
    data = make_data(bad=0, pixels_per_token=4)
    options = {"window_share": 0.5, "subset_share": 0.5, "choice": "batch", "seed": 4}
    (one,) = TrainingGenerator(data, np.arange(30), 30, 11, **options).batches(1)
    shares = [
        next(
            TrainingGenerator(data, np.arange(30), 15, 11, rank=r, world_size=2, **options).batches(
                1
            )
        )
        for r in range(2)
    ]
    together = torch.cat([share.tokens.values for share in shares])
    torch.testing.assert_close(together, one.tokens.values, equal_nan=True)


def test_seeds_show_different_bins():
    data = make_data(bad=0, pixels_per_token=4)
    one, other = (
        [bins_of(batch) for batch in shared(data, window_share=1.0, seed=seed).batches(0)]
        for seed in (0, 1)
    )
    assert one != other


def test_padding_takes_the_last_tokens():
    generator = TrainingGenerator(make_data(bad=0), np.arange(30), 5, 12, outputs_padding=6)
    taken = set()
    for epoch in range(5):
        for batch in generator.batches(epoch):
            padding = batch.tokens.ids[..., 0] == 0
            number = int(padding[0].sum())
            assert (padding.sum(dim=1) == number).all()
            assert padding[:, 12 - number :].all()
            taken.add(number)
    assert taken == set(range(6))


@pytest.mark.parametrize(
    "options",
    [
        {"labels_per_star": "two"},
        {"outputs_padding": 13},
        {"window_share": 1.5},
        {"window_tokens": 11},
        {"subset_share": 0.5},
        {"choice": "nobody"},
        {"choice": "batch"},
    ],
)
def test_impossible_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TrainingGenerator(make_data(), np.arange(30), 5, 12, **options)


def test_bins_need_one_choice_for_all_stars():
    with pytest.raises(ValueError, match="tokens of several pixels"):
        TrainingGenerator(make_data(pixels_per_token=4), np.arange(30), 5, 12)


def mixed(first=4, second=1):
    """A mixture of 20 stars and of 10 others, told apart by their rows."""
    data, sets = make_data(), (np.arange(20), np.arange(20, 30))
    sizes = zip(sets, (first, second), strict=True)
    return MixedGenerator(*(TrainingGenerator(data, rows, size, 10) for rows, size in sizes))


def test_every_batch_of_a_mixture_has_stars_of_both_sets():
    generator = mixed()
    batches = list(generator.batches(3))
    assert len(batches) == len(generator) == 5
    for batch in batches:
        assert [len(part.stars) for part in batch.parts] == [4, 1]
        assert (batch.stars >= 20).tolist() == [False] * 4 + [True]
    assert sorted(concatenated(batches, "stars").tolist())[:20] == list(range(20))


def test_a_mixture_goes_on_where_it_stopped():
    generator = mixed()
    epochs = [concatenated(generator.batches(epoch), "stars").tolist() for epoch in (0, 1)]
    for rows in (range(20), range(20, 30)):  # of either set
        assert len({tuple(row for row in epoch if row in rows) for epoch in epochs}) == 2
    assert concatenated(generator.batches(1, start=2), "stars").tolist() == epochs[1][10:]


def test_a_second_set_with_too_few_batches_is_refused():
    with pytest.raises(ValueError, match="2 batches, fewer than the 5"):
        mixed(second=5)
