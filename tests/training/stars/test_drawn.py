"""Batches that drawn instruments see."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.data.standardizer import MAXIMUM_DEVIATION, standardized_condition
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.prepare import fit_standardization, prepare_training_data
from stellarperceptron.training.stars.drawn import DrawnSpectra, OtherSpectra, at_all_powers
from stellarperceptron.training.stars.labelled import Stars

SPOT = Instrument("SPOT", 8460 * np.exp(1e-5 * np.arange(2000)), resolving_power=30_000.0)
DRAWN = DrawnInstruments(share=0.6, resolving_power=(10_000, 40_000))
STARS = 24


def flux(coefficients, instrument):
    """Stars with waves of their own; the lower the resolving power, the weaker."""
    phase = torch.from_numpy(np.log(instrument.wavelength / 8460) * 400).float()
    depth = 0.2 * float(np.mean(instrument.resolving_power)) / 40_000
    return 0.9 + depth * torch.sin(phase + coefficients)


@pytest.fixture(scope="module")
def made():
    """Model, training data and stars."""
    names = SPOT.pixel_names().tolist()
    model = StellarPerceptron(
        [*names, "TEFF"],
        device="cpu",
        seed=0,
        instrument=SPOT,
        embedding_dim=16,
        encoder_head_num=4,
        encoder_dense_num=32,
        decoder_head_num=4,
        decoder_dense_num=32,
        context_length=32,
        pixels_per_token=64,
        conditions=True,
    )
    coefficients = torch.linspace(0, 3, STARS)[:, None]
    stars = Stars(
        read=lambda rows: flux(coefficients[rows], SPOT).numpy(),
        names=names,
        wavelengths=SPOT.wavelength,
        labels=coefficients.numpy() * 1000,
        label_errors=None,
        label_names=["TEFF"],
        coefficients=coefficients,
        decode=lambda some: flux(some, SPOT),
        see=flux,
    )
    fit_standardization(model, at_all_powers(stars, SPOT, DRAWN))
    data = prepare_training_data(model, stars)
    draw = DrawnSpectra(DRAWN, SPOT, stars, Augmentation(snr=(50, 500)))
    return model, dataclasses.replace(data, draw=draw), stars


def batches(data, epochs=(0,), batch_size=6, start=0, **options):
    generator = TrainingGenerator(data, np.arange(STARS), batch_size, 32, choice="batch", **options)
    return [batch for epoch in epochs for batch in generator.batches(epoch, start)]


def equal(one, other):
    return all(
        (a is None and b is None) or torch.equal(a.nan_to_num(9), b.nan_to_num(9))
        for a, b in zip(one.tokens, other.tokens, strict=True)
        if not isinstance(a, bool)
    )


def test_share_of_drawn_batches_and_their_conditions(made):
    _, data, _ = made
    drawn = [b for b in batches(data, range(30)) if b.tokens.weights is not None]
    assert 0.5 < len(drawn) / 120 < 0.7
    powers = {round(float(b.tokens.conditions[0, 0, 0]), 4) for b in drawn}
    known = standardized_condition("resolving_power", torch.from_numpy(DRAWN.powers))
    assert powers <= {round(float(x), 4) for x in known}
    assert len(powers) > 12
    told = [b.tokens.conditions[..., 1].isnan().all() for b in drawn]
    assert 0.15 < np.mean(told) < 0.5


def test_values_are_spread_onto_the_rows(made):
    _, data, _ = made
    for batch in batches(data, range(5)):
        ids, values, _, _, _, weights = batch.tokens
        if weights is None:
            continue
        empty = values.isnan()
        assert not weights[empty].any() and (weights[~empty] > 0).all()
        total = weights.sum(dim=(1, 2)) / (ids != 0).sum()
        assert ((total > 0.7) & (total < 1.01)).all()
        mean = values.nan_to_num(0).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))
        assert mean.abs().max() < 3


def test_batches_are_the_same_again_from_any_batch_on_and_in_any_number_of_processes(made):
    _, data, _ = made
    options = {"window_share": 0.3, "subset_share": 0.2, "seed": 4}
    alone = batches(data, (3,), **options)
    assert all(map(equal, alone, batches(data, (3,), **options)))
    assert all(map(equal, alone[2:], batches(data, (3,), start=2, **options)))
    shares = [
        batches(data, (3,), batch_size=3, rank=rank, world_size=2, **options) for rank in (0, 1)
    ]
    for one, *parts in zip(alone, *shares, strict=True):
        values = torch.cat([part.tokens.values for part in parts])
        assert torch.equal(values.nan_to_num(9), one.tokens.values.nan_to_num(9))


def test_two_instruments_share_a_context(made):
    _, data, stars = made
    drawn = dataclasses.replace(DRAWN, share=1.0, combined_share=1.0, gaps=0, bad=0.0)
    draw = DrawnSpectra(drawn, SPOT, stars, Augmentation(snr=(50, 500)))
    one = dataclasses.replace(data, draw=draw)
    for batch in batches(one, range(3)):
        told = batch.tokens.conditions
        powers, counts = told[0, :, 0].unique_consecutive(return_counts=True)
        # One power on either side of the border, and their mean in a token that has both.
        assert len(powers) in (2, 3) and (len(powers) == 2 or counts[1] == 1)
        ratios = told[..., 1]
        assert ratios.isnan().all() or (ratios[:, 0] != ratios[:, -1]).all()
        assert (batch.tokens.weights.sum(dim=2) > 0).all()


def test_tokens_are_told_that_one_end_is_noisier(made):
    _, data, stars = made
    augmentation = Augmentation(snr=(50, 500), snr_slope=(2.0, 9.0))
    drawn = dataclasses.replace(DRAWN, share=1.0, gaps=0)
    one = dataclasses.replace(data, draw=DrawnSpectra(drawn, SPOT, stars, augmentation))
    told = [batch.tokens.conditions[..., 1] for batch in batches(one, range(3))]
    told = [ratios for ratios in told if not ratios.isnan().any()]
    assert told and all((ratios.diff(dim=1) > 0).all() for ratios in told)


def test_measured_spectra_of_another_instrument_may_be_noisier_at_one_end(made):
    _, data, _ = made
    seen_by = Instrument("OTHER", SPOT.wavelength[::3].copy(), resolving_power=10_000.0)
    slope = Augmentation(snr=(50, 50), snr_slope=(4.0, 4.0)).with_noise
    other = OtherSpectra(
        SPOT,
        seen_by.wavelength,
        np.full(len(seen_by), 1e4),
        functools.partial(slope, instrument=seen_by),
    )
    statistics, groups = (data.center, data.scale, data.limit), data.groups.numpy()
    flux, generator = torch.ones(3, len(seen_by)), torch.Generator().manual_seed(0)
    noise = other(flux, statistics, groups, None, generator).noise
    assert noise.shape == (3, len(groups)) and (noise.diff(dim=1) < 0).all()
    torch.testing.assert_close(noise[:, 0] / noise[:, -1], torch.full((3,), 4.0), rtol=0.1, atol=0)


def test_what_noise_has_moved_out_of_the_valid_range_is_bad(made):
    _, _, stars = made
    drawn = dataclasses.replace(DRAWN, bad=0.0)
    draw = DrawnSpectra(drawn, SPOT, stars, Augmentation(snr=(3, 3), ripple=(0, 0)))
    seen_by = dataclasses.replace(SPOT, valid_flux=(0.5, 1.2))
    given = torch.full((4, len(SPOT)), 0.9)
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    flux, _ = draw.with_errors(given, seen_by, random, generator)
    assert 0.2 < flux.isnan().float().mean() < 0.4
    assert flux.nan_to_num(1).min() >= 0.5 and flux.nan_to_num(1).max() <= 1.2


def test_validation_shows_the_models_own_instrument(made):
    _, data, _ = made
    (batch,) = batches(data, batch_size=STARS, fixed=True)
    assert batch.tokens.weights is None
    holds = batch.tokens.ids.expand_as(batch.tokens.values) > 0
    assert not batch.tokens.values[holds].isnan().any()


def test_standardization_holds_at_all_resolving_powers(made):
    _, data, stars = made
    coefficients = data.values
    for power in DRAWN.powers[[0, -1]]:
        seen_by = Instrument("SPOT", SPOT.wavelength, resolving_power=power)
        z = (stars.see(coefficients, seen_by) - data.center) / data.scale
        assert z.abs().max() < MAXIMUM_DEVIATION


def test_stars_that_no_other_instrument_can_see_are_refused(made):
    _, _, stars = made
    blind = dataclasses.replace(stars, see=None)
    with pytest.raises(ValueError, match="need emulated stars"):
        DrawnSpectra(DRAWN, SPOT, blind, None)
