"""What tokens are told of their observation: resolving power and signal-to-noise ratio."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LABELS, make_model, make_spectra
from small_survey import N_PIXELS, write_survey
from small_training import NAMES, make_data

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.data.standardizer import standardized_condition
from stellarperceptron.evaluation.evaluate import evaluate
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.layers import Tokens
from stellarperceptron.model_core import Calibration
from stellarperceptron.network.config import ModelConfig
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.run.calibration import calibrate_stage

WAVELENGTHS = APOGEE.wavelength[:40]
BINS = {"pixels_per_token": 8, "conditions": True}


def with_conditions(model):
    """The same model, with conditions that matter."""
    with torch.no_grad():
        model.torch_model.embedding_layer.conditions.normal_(
            generator=torch.Generator().manual_seed(0)
        )
    return model


@pytest.fixture
def told():
    return with_conditions(make_model(**BINS))


def ask(model, spectra, **options):
    table = model.predict(spectra, WAVELENGTHS, LABELS, progress=False, **options)
    return table.drop(columns="flags").to_numpy()


def test_standardized_conditions_are_logarithms_within_limits():
    snr = torch.tensor([100.0, 10**2.5, 1e9, 0.0, -5.0, math.nan])
    expected = torch.tensor([0.0, 1.0, 3.0, math.nan, math.nan, math.nan])
    torch.testing.assert_close(standardized_condition("snr", snr), expected, equal_nan=True)


def test_known_conditions_add_to_the_embedding_and_unknown_ones_add_nothing():
    layer = make_model(**BINS).torch_model.embedding_layer
    layer.activation = torch.nn.Identity()
    ids, values = torch.arange(1, 17).view(2, 8), torch.randn(3, 2, 8)
    without = layer(Tokens(ids, values))
    conditions = torch.full((3, 2, 2), math.nan)
    torch.testing.assert_close(layer(Tokens(ids, values, conditions=conditions)), without)
    conditions[1, 0, 1] = 0.5
    added = layer(Tokens(ids, values, conditions=conditions)) - without
    _, snr, _, snr_known = layer.conditions
    torch.testing.assert_close(added[1, 0], 0.5 * snr + snr_known, atol=1e-5, rtol=1e-4)
    added[1, 0] = 0
    assert added.abs().max() < 1e-5


def test_a_model_without_conditions_has_no_weights_for_them():
    plain, told = make_model(pixels_per_token=8), make_model(**BINS)
    names = set(told.torch_model.state_dict()) - set(plain.torch_model.state_dict())
    assert names == {"embedding_layer.conditions"}
    tables = [m.torch_model.embedding_layer.embeddings for m in (plain, told)]
    assert torch.equal(*tables)


@pytest.mark.parametrize("wrong", [{"conditions": True}, {"conditions": 1, "pixels_per_token": 8}])
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ValueError, match="conditions"):
        ModelConfig(**wrong)


@pytest.mark.parametrize("safetensors", [False, True])
def test_checkpoints_keep_them(told, tmp_path, spectra, safetensors):
    if safetensors:
        pytest.importorskip("safetensors")
    told.save(tmp_path / "model", safetensors=safetensors)
    if safetensors:
        (tmp_path / "model" / "weights.pt").unlink()
    again = StellarPerceptron.load(tmp_path / "model", device="cpu")
    assert again.config.conditions
    np.testing.assert_array_equal(ask(again, spectra, snr=50), ask(told, spectra, snr=50))


def test_answers_depend_on_conditions_and_default_to_the_instruments_resolving_power(told, spectra):
    plain = ask(told, spectra)
    np.testing.assert_array_equal(ask(told, spectra, resolving_power=22_500.0), plain)
    assert not np.allclose(ask(told, spectra, resolving_power=np.full(40, 5000.0)), plain)
    assert not np.allclose(ask(told, spectra, snr=50.0), plain)
    np.testing.assert_array_equal(ask(told, spectra, snr=np.full(5, np.nan)), plain)


def test_a_star_is_told_its_own_signal_to_noise_ratio(told, spectra):
    snr = np.array([20.0, 50.0, 100.0, 200.0, np.nan])
    together = ask(told, spectra, snr=snr, batch_size=2)
    alone = [ask(told, spectra[[i]], snr=snr[i]) for i in range(5)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5)


def test_resolving_powers_follow_spectra_to_other_pixels():
    """They are those of the pixels that the spectra are interpolated onto."""
    spot = Instrument("SPOT", WAVELENGTHS, resolving_power=22_500.0, pixel_prefix="syn_apogee")
    told = with_conditions(make_model(**BINS, instrument=spot))
    between = 0.5 * (WAVELENGTHS[1:] + WAVELENGTHS[:-1])
    power, spectra = np.linspace(5e3, 5e4, 39), make_spectra(2, 39, bad=0)
    reverse = slice(None, None, -1)
    with pytest.warns(UserWarning, match="interpolated onto"):
        one, other = (
            told.predict(
                spectra[:, order],
                between[order],
                LABELS,
                resolving_power=power[order],
                progress=False,
            )
            for order in (slice(None), reverse)
        )
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_errors_tell_each_token_the_median_of_its_pixels(told):
    spectra = make_spectra(3, 40, bad=0).astype(np.float32)
    same = ask(told, spectra, errors=spectra / 80)
    np.testing.assert_allclose(same, ask(told, spectra, snr=80.0), rtol=1e-4)
    noisy = spectra / 80
    noisy[:, 3] = spectra[:, 3] / 40  # one pixel of eight: the median stays
    np.testing.assert_allclose(ask(told, spectra, errors=noisy), same, rtol=1e-4)
    noisy[:, :8] = spectra[:, :8] / 40
    assert not np.allclose(ask(told, spectra, errors=noisy), same)
    np.testing.assert_allclose(
        ask(told, spectra, errors=noisy, snr=80.0), same, rtol=1e-4, err_msg="snr comes first"
    )


def test_errors_are_calibrated_for_what_the_model_is_told(told):
    spectra = make_spectra(2000, 40, bad=0).astype(np.float32)
    errors = spectra / 30
    before = told.predict(spectra, WAVELENGTHS, LABELS, errors=errors, progress=False)
    random, sigma = np.random.default_rng(4), [f"{label}_error" for label in LABELS]
    labels = before[LABELS] + 2 * before[sigma].to_numpy() * random.normal(size=(2000, len(LABELS)))
    told.calibrate(spectra, WAVELENGTHS, labels, errors=errors, windows=(1.0,))
    after = told.predict(spectra, WAVELENGTHS, LABELS, errors=errors, progress=False)
    np.testing.assert_allclose(after[sigma] / before[sigma], 2, rtol=0.1)


def test_errors_are_calibrated_with_added_noise(told, monkeypatch):
    """The factor follows the signal-to-noise ratio of the spectra with the noise."""
    random, spectra = np.random.default_rng(5), make_spectra(2000, 40, bad=0).astype(np.float32)
    ratios, correlations = [], []

    def answer(flux, wavelengths, labels, *, errors, snr, **options):
        ratios.append(np.median(flux / errors))
        scale = 3 * (ratios[-1] / 100) ** -0.4 if snr is None else 1.5
        added = (flux - spectra)[:, 3:5]
        correlations.append(np.corrcoef(added.T)[0, 1] if added.any() else 0.0)
        table = pd.DataFrame({f"{name}_error": np.ones(2000) for name in labels})
        return table.assign(**{name: scale * random.normal(size=2000) for name in labels})

    monkeypatch.setattr(told, "predict", answer)
    labels = np.zeros((2000, len(LABELS)))
    options = {"errors": spectra / 200, "windows": (1.0,), "snr": (100.0, 30.0), "correlation": 0.5}
    told.calibrate(spectra, WAVELENGTHS, pd.DataFrame(labels, columns=LABELS), **options)
    expected = [200, 1 / np.hypot(1 / 200, 1 / 100), 1 / np.hypot(1 / 200, 1 / 30)]
    np.testing.assert_allclose(ratios, [200, *expected], rtol=0.05)  # one is not told
    np.testing.assert_allclose(correlations[2:], 0.5, atol=0.1)
    for label in LABELS:
        assert told.calibration.factors[label][2] == pytest.approx(-0.4, abs=0.1)
        asked = np.array([200.0, 30.0, np.nan])
        factor = told.calibration.factor([label], np.full(3, 40), asked)
        np.testing.assert_allclose(factor[:, 0], [2.27, 4.86, 1.5], rtol=0.1)


def test_noise_is_added_only_where_the_model_is_told(told, spectra):
    labels = pd.DataFrame({"TEFF": np.ones(5)})
    for model, given in ((told, {}), (make_model(pixels_per_token=8), {"errors": spectra / 9})):
        with pytest.raises(ValueError, match="snr needs errors"):
            model.calibrate(spectra, WAVELENGTHS, labels, snr=(50.0,), **given)
    with pytest.raises(ValueError, match="no signal-to-noise ratios"):
        told.calibrate(spectra, WAVELENGTHS, labels, snr=(0.0,), errors=spectra / 9)


def test_errors_are_scaled_by_the_signal_to_noise_ratio_that_the_model_is_told(told):
    spectra = make_spectra(3, 40, bad=0).astype(np.float32)
    snr = np.array([25.0, 200.0, np.nan])  # unknown: no factor
    options = [{"snr": snr}, {"errors": spectra / 200}, {}]
    before = [ask(told, spectra, **given) for given in options]
    told.calibration = Calibration(dict.fromkeys(LABELS, (0.0, 0.0, -0.5)))
    after = [ask(told, spectra, **given) for given in options]
    factors = [np.array([[2.0], [0.5**0.5], [1.0]]), 0.5**0.5, 1.0]
    for one, other, factor in zip(before, after, factors, strict=True):
        np.testing.assert_allclose(other[:, : len(LABELS)], one[:, : len(LABELS)])
        sigma = slice(len(LABELS), None)
        np.testing.assert_allclose(other[:, sigma], one[:, sigma] * factor, rtol=1e-5)


def test_evaluation_and_calibration_tell_it_the_errors_of_a_survey(tmp_path, monkeypatch):
    told = with_conditions(make_model(N_PIXELS, **BINS))
    data = SimpleNamespace(
        kind="observed", pixels="full", labels=LABELS, label_errors=True, augment=True
    )
    profile = SimpleNamespace(
        data=data,
        training=SimpleNamespace(seed=0),
        instruments=DrawnInstruments(),
        augmentation=Augmentation(snr=(60.0, 500.0)),
    )
    given = {}
    with SpectraDataset.open(write_survey(tmp_path / "survey.h5", errors=True)) as dataset:
        found = evaluate(told, tmp_path, dataset, "observed", "full", LABELS, tmp_path / "a.csv")
        flux, errors = (dataset.test.read(kind) for kind in ("observed", "observed_errors"))
        monkeypatch.setattr(told, "calibrate", lambda *_, **options: given.update(options))
        calibrate_stage(told, dataset, profile, np.array([3, 1]))
        own = dataset.train.read("observed_errors", [1, 3])
    expected = told.predict(flux, dataset.wavelength, LABELS, errors=errors, progress=False)
    np.testing.assert_allclose(found["TEFF_err"], expected["TEFF_error"], rtol=1e-6)
    unaware = told.predict(flux, dataset.wavelength, LABELS, progress=False)
    assert not np.allclose(found["TEFF_err"], unaware["TEFF_error"], rtol=0.01)
    np.testing.assert_array_equal(given["errors"], own)
    assert list(given["snr"]) == [140, 70]  # training has shown no more noise than 1 / 60


def test_perceive_and_predict_answer_alike(told):
    spectra = make_spectra(3, 40, bad=0)
    told.perceive(spectra, NAMES, WAVELENGTHS)
    np.testing.assert_allclose(told.request(LABELS), ask(told, spectra), rtol=1e-5)


def test_wrong_conditions_are_refused(told, spectra):
    for wrong in ({"snr": [1.0, 2.0]}, {"snr": 0.0}, {"resolving_power": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ask(told, spectra, **wrong)
    with pytest.raises(ValueError, match="takes no conditions: leave snr out"):
        ask(make_model(pixels_per_token=8), spectra, snr=50.0)


def test_training_tells_what_augmentation_has_drawn_and_hides_it_in_a_third_of_the_batches():
    drawn = []

    def augment(flux, generator):
        drawn.append(1 / (20 + 100 * torch.rand(len(flux), generator=generator)))
        return flux, drawn[-1]

    data = make_data(bad=0, pixels_per_token=8, augment=augment, conditions=True)
    generator = TrainingGenerator(data, np.arange(30), 1, 16, choice="batch", window_share=0.5)
    told, hidden = [], 0
    for epoch in range(8):
        for batch in generator.batches(epoch):
            power, snr = batch.tokens.conditions.unbind(dim=-1)
            assert power.shape == batch.tokens.values.shape[:2]
            expected = standardized_condition("resolving_power", torch.tensor(22_500.0))
            assert (power == expected).all()
            told.append(snr[0, 0])
            hidden += int(snr.isnan().all())
    told, drawn = torch.stack(told), standardized_condition("snr", 1 / torch.cat(drawn))
    known = ~told.isnan()
    torch.testing.assert_close(told[known], drawn[known])
    assert hidden == (~known).sum()
    assert 0.25 < hidden / len(told) < 0.42


def test_noise_of_the_survey_and_of_augmentation_add_in_squares():
    def augment(flux, generator):
        return flux, torch.full((len(flux),), 0.03)

    data = make_data(
        bad=0, pixels_per_token=8, augment=augment, conditions=True, errors=lambda flux: 0.04 * flux
    )
    stars = torch.arange(5)
    torch.testing.assert_close(data.snr(stars, None)[:, 0], torch.full((5,), 25.0))
    added = torch.full((5, 1), 0.03)
    torch.testing.assert_close(data.snr(stars, added[:, 0]), torch.full((5, 1), 20.0))
    of_tokens = torch.cat([added, 0 * added], dim=1)
    torch.testing.assert_close(data.snr(stars, of_tokens)[:, 1], torch.full((5,), 25.0))
    validation = TrainingGenerator(data, np.arange(30), 2, 16, choice="batch", fixed=True)
    for batch in validation.batches():  # none is hidden
        snr = batch.tokens.conditions[..., 1]
        torch.testing.assert_close(snr, standardized_condition("snr", torch.full_like(snr, 25.0)))


def test_a_process_may_have_no_star_of_the_last_validation_batch():
    data = make_data(bad=0, pixels_per_token=8, conditions=True, errors=lambda flux: 0.04 * flux)
    rows = np.arange(7)
    sizes = []
    for rank in range(3):
        generator = TrainingGenerator(
            data, rows, 2, 16, choice="batch", fixed=True, rank=rank, world_size=3
        )
        sizes.append([len(batch.stars) for batch in generator.batches()])
    assert sizes == [[2, 1], [2, 0], [2, 0]]


def test_each_token_may_have_a_signal_to_noise_ratio_of_its_own():
    def slope(flux, generator):
        return flux, 0.01 * torch.arange(40.0).expand(len(flux), -1)

    data = make_data(
        bad=0,
        pixels_per_token=8,
        augment=slope,
        conditions=True,
        errors=lambda flux: 0.001 * flux * np.arange(1, 41),
        noise_of_tokens=True,
    )
    pixels = [group[group < 40] for group in data.groups]
    middle = torch.stack([group.float().median() for group in pixels])
    stars = torch.arange(3)
    seen = data.seen(data.values[:3], torch.Generator())
    assert ((100 * seen.noise - middle).abs() <= 1).all()
    told = 1 / data.snr(stars, None)
    assert ((1000 * told - 1 - middle).abs() <= 1).all()
    torch.testing.assert_close(1 / data.snr(stars, seen.noise), torch.hypot(told, seen.noise))


def test_augmentation_tells_the_noise_that_it_adds():
    flux = torch.ones(400, 7514)
    augmentation = Augmentation(snr=(30.0, 300.0), ripple=(0, 0), line_spread=0)
    changed, noise = augmentation.with_noise(flux, torch.Generator().manual_seed(1))
    torch.testing.assert_close(changed.std(dim=1), noise, rtol=0.05, atol=0)
    again = augmentation(flux, torch.Generator().manual_seed(1))
    assert torch.equal(again, changed)
