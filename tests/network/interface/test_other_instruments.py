"""Spectra of instruments that a model reads between its pixels."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LABELS

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.flags import Flag
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.network.interface.other_instruments import OtherInstrument
from stellarperceptron.training.stars.drawn import OtherSpectra

POWER = 10_000.0


def star(wavelength, seed):
    """Flux of a made-up star at a resolving power of `POWER`."""
    random = np.random.default_rng(seed)
    centers, depths = random.uniform(15_150, 16_960, 400), random.uniform(0, 0.4, 400)
    order = np.argsort(centers)
    flux = np.ones(len(wavelength))
    for center, depth in zip(centers[order], depths[order], strict=True):
        sigma = center / POWER / 2.3548
        near = slice(*np.searchsorted(wavelength, [center - 6 * sigma, center + 6 * sigma]))
        flux[near] -= depth * np.exp(-0.5 * ((wavelength[near] - center) / sigma) ** 2)
    return flux


def grid(sampling, low=15_152.3, high=16_943.0, start=0.0):
    step = 1 / (POWER * sampling)
    return low * np.exp(step * (start + np.arange(int(np.log(high / low) / step))))


GRIDS = {"fine": grid(3.4), "coarse": grid(2.2, start=0.3), "part": grid(2.8, 15_400, 16_300)}


@pytest.fixture(scope="module")
def model():
    """A model of the H band, whose rows of E and V are smooth, as after training."""
    names = APOGEE.pixel_names().tolist()
    model = StellarPerceptron(
        [*names, *LABELS],
        device="cpu",
        seed=1,
        context_length=64,
        embedding_dim=16,
        encoder_head_num=4,
        encoder_dense_num=32,
        decoder_head_num=4,
        decoder_dense_num=32,
        pixels_per_token=128,
        conditions=True,
    )
    model.drawn = DrawnInstruments(share=0.5)
    spectra = np.stack([star(APOGEE.wavelength, seed) for seed in range(30)])
    values = np.hstack([spectra, np.random.default_rng(0).normal(size=(30, 3))])
    # All pixels alike: with a star's lines anywhere, the scale of a pixel says nothing.
    model.fit_standardization(values, [*names, *LABELS])
    center, scale = model.standardizer.center, model.standardizer.scale
    center[1:7515], scale[1:7515] = np.median(spectra), spectra.std()
    phase = 2 * np.pi * APOGEE.grid_index[:, None] / 300 * np.linspace(0.1, 1, 16)
    layer = model.torch_model.embedding_layer
    with torch.no_grad():
        for table, wave in ((layer.embeddings, np.cos), (layer.bias, np.sin)):
            table[1:7515] = torch.from_numpy(wave(phase)) / 20
    return model


def tokens_of(model, wavelength, seed):
    """What the embedding layer makes of a star's spectrum, before the activation."""
    power = np.full(len(wavelength), POWER)
    other = OtherInstrument(APOGEE, model.drawn, wavelength, power)
    rows = np.arange(1, 7515)
    flux = star(wavelength, seed)[None].astype(np.float32)
    values, weights = other.spread(flux, model.standardizer, rows, torch.zeros(1))
    patches = model._patches(APOGEE.pixel_names(), APOGEE.wavelength, 0)[1]
    padded = [
        torch.nn.functional.pad(
            torch.nn.functional.pad(part, (int(other.pixels[0]), 7513 - int(other.pixels[-1]))),
            (0, 1),
        )
        for part in (values, weights)
    ]
    padded[0][padded[1] == 0] = torch.nan
    layer = model.torch_model.embedding_layer
    with torch.no_grad():
        patch = patches[0]
        tokens = patch.tokens(padded[0], weights=padded[1])
        return layer._sum_of_pixels(layer.embed_map[tokens.ids], tokens)[0]


def test_a_star_has_nearly_the_same_tokens_on_any_grid(model):
    fine, coarse = (tokens_of(model, GRIDS[name], 0) for name in ("fine", "coarse"))
    other = tokens_of(model, GRIDS["fine"], 1)
    inner = slice(1, -1)  # the grids end at different pixels
    between = (other - fine)[inner].std()
    assert (coarse - fine)[inner].std() < 0.1 * between
    part = tokens_of(model, GRIDS["part"], 0)
    covered = slice(15, 36)
    assert (part - fine)[covered].std() < 0.1 * between


def ask(model, wavelength, seeds=(0, 1), **options):
    flux = np.stack([star(wavelength, seed) for seed in seeds])
    options = {"resolving_power": POWER, **options}
    return model.predict(flux, wavelength, LABELS, progress=False, **options)


def test_answers_hardly_depend_on_the_grid(model):
    fine, coarse = (ask(model, GRIDS[name], range(6)) for name in ("fine", "coarse"))
    difference = (fine[LABELS] - coarse[LABELS]).std()
    assert (difference < 0.2 * fine[LABELS].std()).all()
    assert (fine["flags"].to_numpy() & int(Flag.OTHER_INSTRUMENT)).all()


def test_order_of_pixels_and_size_of_batches_do_not_matter(model):
    wavelength = GRIDS["part"]
    expected = ask(model, wavelength, range(3))
    flux = np.stack([star(wavelength, seed) for seed in range(3)])
    turned = model.predict(
        flux[:, ::-1], wavelength[::-1], LABELS, resolving_power=POWER, progress=False, batch_size=2
    )
    np.testing.assert_allclose(turned, expected, rtol=1e-4)


def test_checkpoints_keep_what_a_model_can_read(model, tmp_path):
    model.save(tmp_path / "model")
    again = StellarPerceptron.load(tmp_path / "model", device="cpu")
    assert again.drawn == model.drawn
    np.testing.assert_array_equal(ask(again, GRIDS["part"]), ask(model, GRIDS["part"]))


def test_bad_pixels_and_errors_are_left_out(model):
    wavelength = GRIDS["part"]
    flux = np.stack([star(wavelength, seed) for seed in (0, 1)])
    flux[0, 100:200], flux[1, 7] = 0.0, np.nan
    options = {"resolving_power": POWER, "progress": False}
    bad = model.predict(flux, wavelength, LABELS, **options)
    assert np.isfinite(bad).to_numpy().all()
    errors = np.full_like(flux, 0.01)
    with_errors = model.predict(flux, wavelength, LABELS, errors=errors, **options)
    told = model.predict(flux, wavelength, LABELS, snr=100.0, **options)
    assert not np.allclose(with_errors[LABELS], bad[LABELS], rtol=1e-6)
    np.testing.assert_allclose(with_errors[LABELS], told[LABELS], rtol=2e-2)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.2])
def test_flux_that_is_no_measurement_has_no_labels(model, value):
    wavelength = GRIDS["fine"]
    flux = np.stack([star(wavelength, seed) for seed in (0, 1, 2)])
    flux[1] = value
    dead = np.isin(APOGEE.nearest_pixels(wavelength), np.r_[APOGEE.chips["green"]])
    flux[2, dead] = value
    options = {"resolving_power": POWER, "progress": False}
    with pytest.warns(UserWarning, match="index 1"):
        found = model.predict(flux, wavelength, LABELS, **options)
    assert found[LABELS].isna().all(axis=1).tolist() == [False, True, False]
    flux[2, dead] = np.nan
    expected = model.predict(flux[2:], wavelength, LABELS, **options)
    np.testing.assert_allclose(found[2:][LABELS], expected[LABELS], rtol=1e-4)


def test_instruments_that_training_has_not_seen_are_refused(model):
    wavelength = GRIDS["part"]
    with pytest.raises(ValueError, match=r"resolving_power=\.\.\."):
        ask(model, wavelength, resolving_power=None)
    with pytest.raises(ValueError, match="resolving power of 500 is outside of 4000 to 50000"):
        ask(model, wavelength, resolving_power=500.0)
    with pytest.raises(ValueError, match="pixels a resolution element"):
        ask(model, wavelength[::2])
    with pytest.raises(ValueError, match="lie outside those that the model was trained on"):
        ask(model, wavelength - 7000)
    with pytest.warns(UserWarning, match="pixels are left out"):
        ask(model, grid(2.8, 15_000, 16_000))
    with pytest.raises(ValueError, match="not those of APOGEE pixels"):
        model.embed(star(wavelength, 0), wavelength)


def test_the_models_own_pixels_are_read_as_before(model):
    flux = np.stack([star(APOGEE.wavelength, seed) for seed in (0, 1)])
    plain = model.predict(flux, APOGEE.wavelength, LABELS, progress=False)
    assert not (plain["flags"].to_numpy() & int(Flag.OTHER_INSTRUMENT)).any()


def test_the_models_own_pixels_at_a_resolving_power_that_it_never_saw(model, monkeypatch):
    flux = star(APOGEE.wavelength, 0)[None]

    def flags(**options):
        return model.predict(flux, APOGEE.wavelength, LABELS, progress=False, **options)["flags"]

    other = int(Flag.OTHER_INSTRUMENT)
    assert not (flags(resolving_power=22_000.0) & other).any()
    assert (flags(resolving_power=30_000.0) & other).all()
    with pytest.raises(ValueError, match="resolving power of 2000 is outside of 4000 to 50000"):
        flags(resolving_power=2_000.0)
    monkeypatch.setattr(model, "drawn", DrawnInstruments(share=1.0))
    assert (flags() & other).all()
    monkeypatch.setattr(model, "drawn", DrawnInstruments(1.0, (6_300.0, 6_300.0)))
    with pytest.raises(ValueError, match="resolving power of 22500 is outside of 6300 to 6300"):
        flags()


def test_fit_learns_from_spectra_of_another_instrument(model):
    pupil = copy.deepcopy(model)
    wavelength, seeds = GRIDS["part"], range(24)
    flux = np.stack([star(wavelength, seed) for seed in seeds])
    labels = pd.DataFrame({LABELS[0]: np.linspace(-1, 1, 24)})
    history = pupil.fit(
        flux,
        labels,
        wavelength,
        resolving_power=POWER,
        augment=lambda some, generator: some + 0.001 * torch.randn(some.shape, generator=generator),
        epochs=80,
        batch_size=8,
        learning_rate=5e-3,
        labels_per_star="all",
        validation_split=0.25,
        progress=False,
    )
    assert history["mse_loss"].iloc[-1] < 0.3 * history["mse_loss"].iloc[0]
    assert np.isfinite(history["val_loss"]).all()
    before, after = (
        abs(
            one.predict(flux, wavelength, [LABELS[0]], resolving_power=POWER, progress=False)[
                LABELS[0]
            ]
            - labels[LABELS[0]]
        ).mean()
        for one in (model, pupil)
    )
    assert after < 0.7 * before  # a quarter of the stars was not shown


def test_training_shows_the_tokens_that_predict_sees(model):
    wavelength = GRIDS["coarse"]
    flux = star(wavelength, 3)[None].astype(np.float32)
    other = OtherInstrument(APOGEE, model.drawn, wavelength, np.full(len(wavelength), POWER))
    values, weights = other.spread(flux, model.standardizer, np.arange(1, 7515), torch.zeros(1))
    statistics = model.standardizer.statistics(np.arange(1, 7515), torch.zeros(1))
    groups = np.arange(7514)[:, None]
    shown = OtherSpectra(APOGEE, wavelength, np.full(len(wavelength), POWER))(
        torch.from_numpy(flux), statistics, groups, None, None
    )
    part = slice(int(other.pixels[0]), int(other.pixels[-1]) + 1)
    torch.testing.assert_close(shown.values[:, part], values, equal_nan=True)
    torch.testing.assert_close(shown.weights[:, part], weights)


def test_fit_refuses_what_predict_refuses(model):
    wavelength = GRIDS["part"]
    flux, labels = np.ones((3, len(wavelength))), pd.DataFrame({LABELS[0]: [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="say which resolving power"):
        model.fit(flux, labels, wavelength)
    with pytest.raises(ValueError, match="outside of 4000 to 50000"):
        model.fit(flux, labels, wavelength, resolving_power=500.0)
    own = np.ones((3, 7514))
    with pytest.raises(ValueError, match="of another instrument than the model's"):
        model.fit(own, labels, APOGEE.wavelength, resolving_power=POWER)
