"""Spectra that are made when they are read, beside those of the survey."""

import numpy as np
import pytest
import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.apogee.continuum import normalize_as
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock.emulated import (
    FINE_COMPONENTS,
    EmulatedSpectra,
    emulated_source,
)
from stellarperceptron.data.mock.line_spread import Bank, FineGrid
from stellarperceptron.data.mock.observation import SpectraBank
from stellarperceptron.data.mock.survey import BLOCK, MockSurvey
from stellarperceptron.instruments import APOGEE, GALAH, LOW_RESOLUTION
from stellarperceptron.instruments.spectrograph import Continuum, Instrument
from stellarperceptron.training.prepare import fit_standardization, prepare_training_data
from stellarperceptron.training.stars.labelled import survey_stars

pytestmark = pytest.mark.slow

STARS = BLOCK + 100


@pytest.fixture(scope="module")
def emulated() -> SpectraDataset:
    return SpectraDataset(emulated_source(STARS, seed=5))


@pytest.fixture(scope="module")
def block() -> dict:
    """The second block of the survey of this seed."""
    return MockSurvey(5).block("train", 1, 100)


def test_stars_are_those_of_the_survey(emulated, block):
    rows = slice(BLOCK, STARS)
    assert len(emulated.train) == STARS and len(emulated.test) == 0
    assert emulated.train.ids[rows].tolist() == block["ids"]
    np.testing.assert_array_equal(emulated.train.labels[rows], block["labels"])
    np.testing.assert_array_equal(emulated.train.label_errors[rows], block["label_errors"])
    np.testing.assert_array_equal(emulated.train.true_labels[rows], block["true_labels"])


def test_spectra_are_those_of_the_survey(emulated, block):
    spectra = emulated.train.read("synthetic", slice(BLOCK, STARS))
    difference = spectra - block["synthetic"]
    assert np.nanmax(np.abs(difference)) < 1e-3
    assert np.sqrt(np.nanmean(difference**2)) < 2e-5
    # Flux at the limit of what counts as a measurement may fall on either side.
    assert (np.isnan(spectra) != np.isnan(block["synthetic"])).mean() < 1e-5


def test_parts_are_parts_of_the_whole(emulated):
    rows = np.array([1100, 3, 700])
    part = emulated.train.read("synthetic", rows, slice(100, 300))
    whole = emulated.train.read("synthetic")[rows, 100:300]
    np.testing.assert_allclose(part, whole, rtol=0, atol=2e-6)


def test_lines_only_absorb_and_what_is_no_flux_is_missing():
    """Stars of one flux in all pixels, over another continuum."""
    flux = torch.tensor([[0.5], [1.3], [0.02], [1.0]])
    continuum = torch.tensor([[1.0], [1.0], [1.0], [0.8]])
    constant = torch.eye(1, APOGEE.continuum.order + 1).repeat(1, len(APOGEE.chips))
    coefficients = torch.hstack([flux, continuum * constant])
    spectra = EmulatedSpectra(coefficients, torch.ones(1, len(APOGEE)))
    expected = torch.tensor([[0.5], [1.0], [torch.nan], [torch.nan]]).expand(4, len(APOGEE))
    torch.testing.assert_close(spectra.flux(coefficients), expected, equal_nan=True)


def test_other_instruments_see_no_emission_either():
    bank = Bank(torch.ones(1, 2000), FineGrid((4.18,), (2000,), 1e-6, 300_000.0))
    instrument = Instrument("TEST", 10 ** np.linspace(4.1805, 4.1815, 100), resolving_power=20_000)
    seen = bank(torch.tensor([[0.5], [1.3]]), instrument)
    torch.testing.assert_close(seen, torch.tensor([[0.5], [1.0]]).expand(2, 100))


def test_the_seed_makes_them_repeatable(emulated):
    again = emulated_source(50, seed=5).splits["train"]["synthetic"]
    mine = emulated.train.recipe("synthetic")
    assert torch.equal(again.coefficients, mine.coefficients[:50])
    fluxes = again.flux(again.coefficients), mine.flux(mine.coefficients[:50])
    torch.testing.assert_close(*fluxes, rtol=0, atol=0, equal_nan=True)


def test_training_data_hold_coefficients_and_make_the_same_values(emulated):
    rows = np.arange(0, STARS, 9)
    stars = survey_stars(emulated, "synthetic", "first_half", rows=rows)
    model = StellarPerceptron([*stars.names, *stars.label_names], device="cpu")
    fit_standardization(model, stars)
    data = prepare_training_data(model, stars)
    coefficients = emulated.train.recipe("synthetic").coefficients[rows]
    assert torch.equal(data.values, coefficients)
    stored = stars.read(slice(0, len(stars)))
    expected = model.standardizer.standardize(stored, model.tokenize(stars.names))
    torch.testing.assert_close(
        data.standardized(data.values),
        torch.from_numpy(expected).float(),
        rtol=1e-3,
        atol=2e-3,
        equal_nan=True,
    )


def test_no_stars_are_refused():
    with pytest.raises(ValueError, match="stars = 0: say how many"):
        emulated_source(0)


def test_other_instruments_see_what_their_line_spread_leaves():
    source = emulated_source(8, any_instrument=True)
    spectra = source.splits["train"]["synthetic"]
    assert spectra[0:8, :].shape == (8, 7514)
    stars = MockSurvey(1).stars("train", 0)
    bank = MockSurvey(0).nominal
    for power in (5_000.0, 40_000.0):
        instrument = Instrument(
            "TEST",
            15_200 * np.exp(np.arange(3000) / (2.3 * 40_000)),
            resolving_power=power,
            continuum=Continuum(order=0),
        )
        exact = SpectraBank(bank.emulator, instrument.wavelength, power, groups=(1.0,))
        expected = exact(
            bank.emulator.coefficients(stars.theory[:8]), np.zeros(8, int), stars.broadening[:8]
        )
        seen = spectra.bank(spectra.coefficients[:, -FINE_COMPONENTS:], instrument)
        assert (seen - expected).std() < 2e-4
        assert (seen - expected).abs().max() < 4e-3
        normalized = spectra.seen_by(spectra.coefficients, instrument)
        torch.testing.assert_close(normalized.mean(dim=1), torch.ones(8), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def mixed() -> dict:
    """Stars of GALAH whose lines lie between two lists."""
    source = emulated_source(40, seed=5, instrument=GALAH, line_lists="mixed")
    return {"source": source, **source.splits["train"]}


def test_stars_of_another_instrument_are_those_that_its_emulators_reach(mixed):
    block = MockSurvey(5, instrument=GALAH)
    stars = block.stars("train", 0)
    numbers = np.flatnonzero(block.reached(stars.theory))[:40]
    assert mixed["ids"].tolist() == [f"mock-5-train-{number:07d}" for number in numbers]
    np.testing.assert_array_equal(mixed["labels"], block.catalogue(stars)[0][numbers])
    assert mixed["source"].instrument == GALAH
    assert mixed["source"].provenance["arguments"]["line_lists"] == "mixed"
    assert mixed["labels"][:, 0].min() > 4200


def test_mixed_lines_lie_between_both_lists(mixed):
    survey = MockSurvey(5, instrument=GALAH)
    stars = survey.stars("train", 0)
    rows = np.flatnonzero(survey.reached(stars.theory))[:40]
    nominal, nature = (
        normalize_as(
            GALAH,
            SpectraBank(bank.emulator, GALAH.wavelength, GALAH.resolving_power, groups=(1.0,))(
                bank.emulator.coefficients(stars.theory[rows]),
                np.zeros(40, int),
                stars.broadening[rows],
            ),
        )
        for bank in (survey.nominal, survey.nature)
    )
    step = (nature - nominal).nan_to_num(0)
    flux = torch.from_numpy(mixed["synthetic"][0:40, :])
    weight = ((flux - nominal).nan_to_num(0) * step).sum(dim=1) / step.square().sum(dim=1)
    assert 0.3 < float(weight.mean()) < 0.7
    assert 0.1 < float(weight.std()) < 0.5
    assert float(weight.min()) > -0.6 and float(weight.max()) < 1.6


def test_only_wavelengths_that_the_emulator_reaches_are_seen(mixed):
    spectra = mixed["synthetic"]
    windows = spectra.bank.windows(GALAH)
    ends = [GALAH.wavelength[chip][[0, -1]].tolist() for chip in GALAH.chips.values()]
    np.testing.assert_allclose(windows, ends)
    between = Instrument("BETWEEN", np.linspace(5700, 6000, 3000), resolving_power=5_000.0)
    with pytest.raises(ValueError, match="does not reach all pixels of BETWEEN"):
        spectra.bank(spectra.coefficients, between)


def test_line_lists_are_those_of_the_emulators():
    with pytest.raises(ValueError, match="one line list"):
        emulated_source(5, instrument=LOW_RESOLUTION, line_lists="mixed")


def test_unknown_line_lists_are_refused():
    with pytest.raises(ValueError, match="nominal, mixed"):
        emulated_source(5, line_lists="both")
