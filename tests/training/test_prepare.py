"""Batches: every choice valid, uniform, and the same however the work is shared."""

import numpy as np
import pytest
import torch
from conftest import LABELS, make_model, make_spectra
from hypothesis import given
from hypothesis import strategies as st
from small_training import make_data

from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.prepare import fewest_tokens, prepare_training_data, usable_stars

NAMES = [f"syn_apogee{i}" for i in range(40)]
WAVELENGTHS = 15200.0 + 0.21 * np.arange(40)


def concatenated(batches, name):
    return torch.cat([getattr(batch, name) for batch in batches])


@given(
    batch_size=st.integers(1, 40),
    context=st.integers(1, 50),
    pixels_per_token=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
)
def test_chosen_tokens_are_valid_and_different(batch_size, context, pixels_per_token, seed, epoch):
    data = make_data(pixels_per_token=pixels_per_token)
    generator = TrainingGenerator(data, np.arange(30), batch_size, context, seed=seed)
    for batch in generator.batches(epoch):
        values = batch.inputs[..., None] if pixels_per_token == 1 else batch.pixels
        for star, tokens, positions, chosen in zip(
            batch.stars, batch.tokens, batch.positions, values, strict=True
        ):
            real = tokens > 0
            assert not chosen[real].isnan().all(dim=1).any()
            valid = int((~data.values[star].isnan().all(dim=1)).sum())
            assert int(real.sum()) == min(context, valid)
            assert len(set(positions[real].tolist())) == int(real.sum())
            torch.testing.assert_close(
                chosen[real], data.values[star][positions[real]], equal_nan=True
            )
            assert torch.equal(tokens[real], data.tokens[positions[real]])


@given(seed=st.integers(0, 99), labels_per_star=st.sampled_from(["one", "all"]))
def test_labels_are_those_of_the_star(seed, labels_per_star):
    data = make_data()
    generator = TrainingGenerator(
        data, np.arange(30), 8, 10, seed=seed, labels_per_star=labels_per_star
    )
    for batch in generator:
        if labels_per_star == "all":
            assert torch.equal(batch.request_tokens, data.label_tokens)
            torch.testing.assert_close(batch.labels, data.labels[batch.stars], equal_nan=True)
            continue
        assert not batch.labels.isnan().any()
        column = (batch.request_tokens == data.label_tokens).int().argmax(dim=1)
        torch.testing.assert_close(batch.labels[:, 0], data.labels[batch.stars, column])
        torch.testing.assert_close(batch.label_errors[:, 0], data.label_errors[batch.stars, column])


def test_an_epoch_meets_every_star_once():
    generator = TrainingGenerator(make_data(), np.arange(3, 30), 8, 10)
    first, second = (concatenated(generator.batches(epoch), "stars") for epoch in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(3, 30))
    assert first.tolist() != second.tolist()


def test_epochs_and_seeds_choose_differently():
    data = make_data(bad=0)
    choices = {
        (seed, epoch): concatenated(
            TrainingGenerator(data, np.arange(30), 30, 5, seed=seed, fixed=False).batches(epoch),
            "positions",
        )
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(choice.flatten().tolist()) for choice in choices.values()}) == 4


def chi_squared(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_pixels_and_pairs_of_pixels_are_chosen_uniformly():
    data = make_data(stars=400, bad=0)
    generator = TrainingGenerator(data, np.arange(400), 400, 10, seed=5)
    chosen = torch.zeros(20 * 400, 40)
    for epoch in range(20):
        positions = concatenated(generator.batches(epoch), "positions")
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
    tokens = torch.cat([concatenated(generator.batches(e), "request_tokens") for e in range(20)])
    counts = (tokens == data.label_tokens).sum(dim=0).float()
    assert chi_squared(counts, len(tokens) / 3) < 10.6  # 99.5 % with 2 degrees of freedom


@given(
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 6),
    labels_per_star=st.sampled_from(["one", "all"]),
    padding=st.sampled_from([0, 3]),
)
def test_processes_together_make_the_same_batches(world_size, batch_size, labels_per_star, padding):
    data = make_data()
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
        for name in ("stars", "tokens", "positions", "inputs", "labels"):
            together = concatenated(parts, name)[: len(one.stars)]
            torch.testing.assert_close(together, getattr(one, name), equal_nan=True)


@pytest.mark.parametrize("start", [0, 2, 4])
def test_an_epoch_can_be_entered_anywhere(start):
    generator = TrainingGenerator(make_data(), np.arange(30), 7, 12, outputs_padding=4)
    whole = list(generator.batches(1))
    rest = list(generator.batches(1, start=start))
    assert len(rest) == len(whole) - start
    for one, other in zip(rest, whole[start:], strict=True):
        assert torch.equal(one.tokens, other.tokens)


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
        assert torch.equal(one.positions, other.positions)


@pytest.mark.parametrize("bad", [0.0, 0.3])
def test_narrow_stars_have_neighbouring_tokens(bad):
    data = make_data(stars=300, bad=bad)
    generator = TrainingGenerator(data, np.arange(300), 300, 10, narrow_share=0.5, seed=1)
    (batch,) = generator.batches(0)
    positions = batch.positions.sort(dim=1).values
    if bad == 0:
        narrow = positions[:, -1] - positions[:, 0] == 9
        assert torch.equal(narrow, batch.narrow)
        assert 0.4 < narrow.float().mean() < 0.6
        starts = positions[narrow, 0]
        assert starts.min() < 4 and starts.max() > 26
    assert all(len(set(row.tolist())) == 10 for row in positions)
    assert not batch.inputs.isnan().any()


def test_narrow_stretches_wider_than_the_context():
    data = make_data(stars=300, bad=0)
    options = {"narrow_share": 1.0, "narrow_tokens": 20}
    (batch,) = TrainingGenerator(data, np.arange(300), 300, 10, **options).batches(0)
    width = batch.positions.amax(dim=1) - batch.positions.amin(dim=1) + 1
    assert width.max() == 20 and width.min() >= 10


def test_padding_takes_the_last_tokens():
    generator = TrainingGenerator(make_data(bad=0), np.arange(30), 5, 12, outputs_padding=6)
    taken = set()
    for epoch in range(5):
        for batch in generator.batches(epoch):
            number = int((batch.tokens[0] == 0).sum())
            assert ((batch.tokens == 0).sum(dim=1) == number).all()
            assert (batch.tokens[:, 12 - number :] == 0).all()
            taken.add(number)
    assert taken == set(range(6))


@pytest.mark.parametrize("pixels_per_token", [1, 3])
def test_augmentation_meets_fluxes_in_their_order(pixels_per_token):
    seen = []

    def augment(flux, generator):
        seen.append(flux)
        return flux + 0.1 * torch.arange(40)

    data = make_data(bad=0, pixels_per_token=pixels_per_token, augment=augment)
    changed = data.augment(data.values[:4], torch.Generator())
    torch.testing.assert_close(
        seen[0], torch.from_numpy(make_spectra(4, 40, bad=0)).float(), rtol=1e-5, atol=1e-5
    )
    model = make_model()
    expected = model.standardize(
        make_spectra(4, 40, bad=0) + 0.1 * np.arange(40), model.tokenize(NAMES)
    )
    flat = changed.flatten(1)[:, :40]  # one chip: groups are in the pixels' order
    np.testing.assert_allclose(flat.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_augmentation_is_fresh_in_training_and_absent_in_validation():
    def augment(flux, generator):
        return flux + 0.01 * torch.randn(flux.shape, generator=generator)

    data = make_data(bad=0, augment=augment)
    training = TrainingGenerator(data, np.arange(30), 30, 40)
    again, fresh = (next(training.batches(e)) for e in (0, 1))
    repeated = next(training.batches(0))
    assert torch.equal(again.inputs, repeated.inputs)
    order = again.stars.argsort(), fresh.stars.argsort()
    sorted_values = [
        torch.zeros(30, 40).scatter_(1, b.positions[o], b.inputs[o])
        for b, o in zip((again, fresh), order, strict=True)
    ]
    assert (sorted_values[0] != sorted_values[1]).float().mean() > 0.9
    validation = next(TrainingGenerator(data, np.arange(30), 30, 40, fixed=True).batches())
    torch.testing.assert_close(
        validation.inputs, data.values[..., 0].gather(1, validation.positions)
    )


def test_stars_without_labels_or_pixels_are_not_usable():
    data = make_data()
    data.labels[3] = torch.nan
    data.values[5] = torch.nan
    assert usable_stars(data).tolist() == [i for i in range(30) if i not in (3, 5)]
    assert fewest_tokens(data, np.array([5, 6])) == 0


def test_half_precision_keeps_fluxes_to_a_thousandth_of_their_spread():
    single, half = make_data(), make_data(dtype=torch.float16)
    difference = (single.values - half.values.float()).nan_to_num().abs()
    assert difference.max() < 2e-3


def test_unset_standardization_comes_from_the_training_data():
    from stellarperceptron import StellarPerceptron

    model = StellarPerceptron([*NAMES, *LABELS], device="cpu", embedding_dim=16, seed=0)
    spectra, labels = make_spectra(50, 40), make_spectra(50, 3, bad=0)
    data = prepare_training_data(
        model, spectra.__getitem__, 50, NAMES, WAVELENGTHS, labels, None, LABELS, block=7
    )
    np.testing.assert_allclose(np.nanmedian(data.values[..., 0], axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(data.labels.median(dim=0).values, 0, atol=0.1)
    assert not data.label_errors.any()


@pytest.mark.parametrize(
    "options",
    [
        {"labels_per_star": "two"},
        {"outputs_padding": 13},
        {"narrow_share": 1.5},
        {"narrow_tokens": 11},
    ],
)
def test_impossible_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TrainingGenerator(make_data(), np.arange(30), 5, 12, **options)
