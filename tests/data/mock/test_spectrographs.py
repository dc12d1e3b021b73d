"""The mock survey's stars, observed by other instruments than APOGEE."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from chain import run_here

from stellarperceptron.data.apogee.continuum import normalize_as
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock import observation, spectrographs, survey
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.mock.spectrographs import SPECTROGRAPHS
from stellarperceptron.data.mock.stellar_labels import LABELS
from stellarperceptron.data.mock.survey import MockSurvey, create_survey
from stellarperceptron.instruments import (
    GAIA_RVS,
    GALAH,
    IGRINS_H,
    INSTRUMENTS,
    LOW_RESOLUTION,
    MOONS_H,
)
from stellarperceptron.instruments.spectrograph import Instrument

pytestmark = pytest.mark.slow

BLOCK = 24


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Blocks of few stars and few kinds of line spread keep the tests fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "BLOCK", BLOCK)
        patch.setattr(survey, "LSF_GROUPS", observation.LSF_GROUPS[:1])
        quick = {
            name: dataclasses.replace(one, fibres=one.fibres[:1])
            for name, one in SPECTROGRAPHS.items()
        }
        patch.setattr(survey, "SPECTROGRAPHS", quick)
        yield


@pytest.fixture(scope="module")
def moons():
    return MockSurvey(seed=3, instrument=MOONS_H)


@pytest.fixture(scope="module")
def block(moons):
    return moons.block("train", 0, BLOCK)


def test_every_instrument_of_the_table_has_a_row():
    assert {"APOGEE", *SPECTROGRAPHS} == set(INSTRUMENTS)


def test_all_instruments_observe_the_same_stars(block):
    apogee = MockSurvey(seed=3).block("train", 0, BLOCK)
    assert block["ids"] == apogee["ids"]
    for name in ("labels", "label_errors", "true_labels"):
        np.testing.assert_array_equal(block[name], apogee[name])
    assert block["observed"].shape == (BLOCK, len(MOONS_H))
    assert block["observed"].dtype == np.float32


def test_a_block_is_repeatable_and_its_first_stars_do_not_depend_on_its_size(moons, block):
    again = moons.block("train", 0, 5)
    for name, values in again.items():
        np.testing.assert_array_equal(values, block[name][:5])


def test_synthetic_spectra_are_the_emulators_at_the_instruments_resolution(moons, block):
    stars = moons.stars("train", 0)
    velocity = (*observation.MACROTURBULENCE, *observation.ROTATION)
    giants = stars.broadening < len(observation.MACROTURBULENCE)
    star = int(np.flatnonzero(giants)[0])
    macro = velocity[stars.broadening[star]] / 299792.458
    fibre = moons.spectrograph.fibres[0]
    power = 1 / np.sqrt((19_700 * fibre) ** -2.0 + macro**2)
    flux = moons.nominal.emulator.flux(stars.theory[star], MOONS_H.wavelength, power)
    expected = normalize_as(MOONS_H, flux.float().clamp(max=1.0))
    np.testing.assert_allclose(block["synthetic"][star], expected[0], atol=1e-5)


def test_noise_is_the_instruments_own(moons):
    """Without defects, what is observed differs from the emulator's by noise of the right size."""
    quiet = dataclasses.replace(
        SPECTROGRAPHS["MOONS_H"],
        snr=(100.0, 1.0, 101.0),
        ripple=(0.0, 0.0),
        line_spread=0.0,
        sky=0.0,
        edge=0.0,
        bad_pixel=0.0,
        dead_stretch=0.0,
    )
    flux = torch.full((8, len(MOONS_H)), 0.9)
    rng = np.random.default_rng(1)
    parts = quiet.observe(flux, np.zeros(8), rng, slice(0, len(MOONS_H)))
    observed, errors = (part.numpy() for part in parts)
    noise = observed - observed.mean(axis=1, keepdims=True)
    assert noise.std() * 0.9 == pytest.approx(0.01, rel=0.03)
    np.testing.assert_allclose(errors * 0.9, 0.01, rtol=0.03)
    neighbours = np.mean([np.corrcoef(row[:-1], row[1:])[0, 1] for row in noise])
    assert neighbours == pytest.approx(quiet.correlation, abs=0.03)


def test_sky_lines_stay_in_the_observatorys_frame():
    velocity = np.array([0.0, 200.0])
    oh = observation.sky_at_rest(MOONS_H, velocity)["OH"].numpy()
    strongest = MOONS_H.wavelength[oh.argmax(axis=1)]
    moved = (strongest[0] / strongest[1] - 1) * 299792.458  # the star's frame moves with it
    assert abs(moved) == pytest.approx(200.0, abs=6.0)


def test_defects_are_those_of_the_instrument():
    rng = np.random.default_rng(2)
    galah, rvs = SPECTROGRAPHS["GALAH"], SPECTROGRAPHS["GAIA_RVS"]
    lost = galah.lost(3000, rng, slice(0, len(GALAH))).numpy()
    cameras = np.array([lost[:, chip].all(axis=1) for chip in GALAH.chips.values()])
    assert cameras.sum() / 3000 == pytest.approx(galah.dead_chip, abs=0.008)
    lost = rvs.lost(400, rng, slice(0, len(GAIA_RVS))).numpy()
    assert lost[:, 0].mean() > 0.9 and not lost[:, 25:-25].any()


def test_nominal_observes_where_there_is_no_nature():
    one = MockSurvey(seed=3, instrument=LOW_RESOLUTION)
    assert one.nature.emulator is one.nominal.emulator
    found = one.block("train", 0, BLOCK)
    flux = found["observed"]
    assert flux.shape[1] == len(LOW_RESOLUTION) and np.isfinite(flux).mean() > 0.98
    difference = np.nanstd(flux - found["synthetic"])
    assert 0.01 < difference < 0.1  # noise, and the catalogue's errors


def test_only_pixels_that_the_emulators_reach_are_in_the_file(tmp_path):
    path = tmp_path / "igrins.h5"
    assert create_survey(path, 5, 2, seed=3, instrument=IGRINS_H) == {"train": 5, "test": 2}
    with SpectraDataset.open(path) as dataset:
        assert dataset.instrument == IGRINS_H
        assert 15_140 < dataset.wavelength[0] < 15_150 < 16_960 < dataset.wavelength[-1] < 16_970
        IGRINS_H.pixels_at(dataset.wavelength)
        flux = dataset.train.read("observed")
        assert np.isfinite(flux).mean() > 0.98
        assert dataset.train.ids.tolist() == [f"mock-3-train-{i:07d}" for i in range(5)]
        made = dataset.provenance
    assert made["arguments"] == {"stars": 5, "test_stars": 2, "instrument": "IGRINS_H"}
    assert made["observation"]["emulators"] == "apogee"
    json.dumps(made)


def test_stars_beyond_the_emulators_are_left_out_and_the_others_keep_their_names(moons, block):
    narrow = MockSurvey(seed=3, instrument=MOONS_H)
    teff = LABELS.index("TEFF")
    low, high = narrow._reached
    low = low.copy()
    low[teff] = np.median(block["true_labels"][:, 0])
    narrow._reached = low, high
    left = narrow.block("train", 0, 20)
    warm = np.flatnonzero(block["true_labels"][:20, 0] >= low[teff] - 1e-3)
    assert 0 < len(warm) < 20 and narrow.count("train", 20) == len(warm)
    assert left["ids"] == [block["ids"][i] for i in warm]
    np.testing.assert_array_equal(left["true_labels"], block["true_labels"][warm])
    np.testing.assert_array_equal(left["observed"], block["observed"][warm])


# --- what is refused ------------------------------------------------------------------------------


def test_missing_emulators_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(spectrographs, "CHECKOUT", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "survey.h5"
    said = run_here(
        "dataset/create_mock_survey.py", "--instrument", "GALAH", "--stars", 5, "--output", out
    )
    for part in ("no emulators of GALAH's", "hermes.npz", "mock_survey/README.md", "--emulators"):
        assert part in said
    assert not out.exists()


def test_emulators_of_other_wavelengths_are_refused():
    with pytest.raises(ValueError, match="do not reach the pixels of GALAH"):
        SPECTROGRAPHS["GALAH"].pixels(Emulator.load("nominal"))


def test_an_instrument_that_nobody_described_is_refused():
    spot = Instrument("SPOT", np.linspace(8460.0, 8700.0, 2401))
    with pytest.raises(
        ValueError, match=r"not known how SPOT \(.* observes: known are APOGEE, GALAH"
    ):
        MockSurvey(instrument=spot)


def test_unknown_instruments_are_refused_by_name(tmp_path):
    said = run_here(
        *("dataset/create_mock_survey.py", "--instrument", "GALA", "--output", tmp_path / "a.h5")
    )
    assert "unknown instrument 'GALA'" in said and "GALAH" in said


def has_both_emulators(path):
    """Whether a checkout has a file with both emulators."""
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as file:
        return "difference/mean" in file


@pytest.mark.skipif(
    not has_both_emulators(spectrographs.CHECKOUT / "rvs.npz"), reason="no emulators of RVS here"
)
def test_gaia_observes_the_warm_stars():
    rvs = MockSurvey(seed=3, instrument=GAIA_RVS).block("train", 0, BLOCK)
    apogee = MockSurvey(seed=3).block("train", 0, BLOCK)
    rows = np.flatnonzero(np.isin(apogee["ids"], rvs["ids"]))
    assert 0 < len(rows) == len(rvs["ids"])
    np.testing.assert_array_equal(rvs["labels"], apogee["labels"][rows])
    triplet = np.abs(GAIA_RVS.wavelength - 8544.4) < 0.5  # Ca II, in vacuum
    assert np.nanmedian(rvs["observed"][:, triplet]) < 0.6
    assert 1.0 < np.nanmedian(rvs["observed"]) < 1.12
