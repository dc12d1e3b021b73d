"""The last step of a stage: what its training spectra are like, and the factors of the errors."""

import numpy as np
import pandas as pd
import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.training.profiles import DataProfile, Profile
from stellarperceptron.training.run import calibration
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.training.stars.labelled import Stars

STEP = 1e-5
SPOT = Instrument("SPOT", 8460 * np.exp(STEP * np.arange(3000)), resolving_power=30_000.0)
SEEN = Profile(
    data=DataProfile(source="emulator", stars=150, augment=True),
    augmentation=Augmentation(snr=(25, 400)),
    instruments=DrawnInstruments(share=0.7, resolving_power=(10_000, 40_000)),
)


def test_stages_describe_the_spectra_that_they_are_trained_on(chain, survey):
    one, two, three = (
        StellarPerceptron.load(resolve_checkpoint(chain / n), device="cpu").reference for n in "123"
    )
    assert (len(one.tokens), len(two.tokens), three) == (7514, 3757, None)
    with SpectraDataset.open(survey) as dataset:
        observed = dataset.train.read("observed", pixels="first_half")
    np.testing.assert_allclose(two.mean, np.nanmean(observed, 0), atol=0.02)


def spots():
    """A model for the pixels of SPOT, and 150 stars that any instrument can see."""

    def see(coefficients, instrument):
        phase = torch.from_numpy(np.log(instrument.wavelength / 8460) * 400).float()
        return 0.9 + 0.05 * torch.sin(phase + coefficients)

    coefficients = torch.linspace(0, 3, 150)[:, None]
    stars = Stars(
        read=lambda rows: see(coefficients[rows], SPOT).numpy(),
        names=SPOT.pixel_names().tolist(),
        wavelengths=SPOT.wavelength,
        labels=1000 * coefficients.numpy(),
        label_errors=None,
        label_names=["TEFF"],
        coefficients=coefficients,
        decode=lambda some: see(some, SPOT),
        see=see,
    )
    sizes = {f"{part}_head_num": 4 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_dense_num": 32 for part in ("encoder", "decoder")}
    model = StellarPerceptron(
        [*stars.names, "TEFF"],
        device="cpu",
        seed=0,
        instrument=SPOT,
        embedding_dim=16,
        context_length=64,
        pixels_per_token=64,
        conditions=True,
        **sizes,
    )
    model.fit_standardization(stars.read(slice(None)), stars.names)
    model.fit_standardization(stars.labels, ["TEFF"])
    model.drawn = SEEN.instruments
    return model, stars


def test_errors_are_calibrated_over_drawn_instruments(monkeypatch):
    """Pixels count by their widths, and where no ratio is told there is another factor."""
    model, stars = spots()
    random, told, powers = np.random.default_rng(1), [], set()
    truth = (0.4, -0.2, -0.3, 0.5)

    def answer(spectra, wavelengths, labels, *, resolving_power, snr=None, **_):
        """Labels that are wrong by more or less than their errors of 1 K."""
        told.append(snr)
        powers.add(float(resolving_power[0]))
        step = np.median(np.diff(np.log(wavelengths)))
        pixels = np.isfinite(spectra).sum(axis=1) * step / STEP
        sigma = np.exp(truth[0]) * (pixels / 1000) ** truth[1]
        sigma = sigma * (np.exp(truth[3]) if snr is None else (snr / 100) ** truth[2])
        return pd.DataFrame({"TEFF": sigma * random.normal(size=len(spectra)), "TEFF_error": 1.0})

    stars.labels[:] = 0
    monkeypatch.setattr(model, "predict", answer)
    calibration.calibrate_over_drawn(model, stars, SEEN)
    np.testing.assert_allclose(model.calibration.factors["TEFF"], truth, atol=0.06)
    assert 0.1 < np.mean([snr is None for snr in told]) < 0.5
    assert len(powers) > 10 and SPOT.resolving_power in powers


def test_the_seed_decides_what_is_drawn(monkeypatch):
    monkeypatch.setattr(calibration, "DRAWS", 6)
    model, stars = spots()
    factors = []
    for _ in range(2):
        calibration.calibrate_over_drawn(model, stars, SEEN)
        factors.append(model.calibration.factors)
    assert factors[0] == factors[1]
    assert len(factors[0]["TEFF"]) == 4 and np.isfinite(factors[0]["TEFF"]).all()
