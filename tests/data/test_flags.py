"""Flags of answers that should not be believed, by the checkpoint that is shipped."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LABELS, make_model, make_spectra

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.apogee.continuum import normalize
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.flags import Flag, Reference, flag_names
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.mock.observation import MACROTURBULENCE, SpectraBank, correlate_noise
from stellarperceptron.data.mock.stellar_labels import standard_labels
from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT, interpolate, vacuum_to_air
from stellarperceptron.evaluation.catalogue.files import read_normalized

HALF = slice(0, 3757)
WAVELENGTH = APOGEE_WAVELENGTH[HALF]
ALL = ["TEFF", "LOGG", "O_FE", "MG_FE", "FE_H"]
TRIES = 100
ENOUGH = 95  # of a hundred are flagged

pytestmark = pytest.mark.filterwarnings("ignore:.* answers are flagged as doubtful")


@pytest.fixture(scope="module")
def shipped() -> StellarPerceptron:
    return StellarPerceptron.from_pretrained("laptop", device="cpu")


@pytest.fixture(scope="module")
def stars(survey) -> np.ndarray:
    """Observed spectra (240, 7514) of a survey that no training has seen."""
    with SpectraDataset.open(survey) as dataset:
        return dataset.train.read("observed", slice(0, 240), slice(0, 7514))


def flags_of(model, flux, part=HALF, labels=ALL) -> np.ndarray:
    """Flags of normalized spectra (N, n)."""
    return model.predict(flux, APOGEE_WAVELENGTH[part], labels, progress=False)["flags"].to_numpy()


def moved(flux, factor) -> np.ndarray:
    """First halves of spectra (N, 7514) whose wavelengths are multiplied by a factor."""
    grid = APOGEE_WAVELENGTH
    whole = [np.interp(grid, grid[np.isfinite(f)], f[np.isfinite(f)]) for f in flux]
    rest = np.clip(grid[HALF] / factor, grid[0], grid[-1])
    return np.array([interpolate(grid, f, rest) for f in whole], np.float32)


def noise(shape, snr, seed=0) -> np.ndarray:
    """Noise that correlates between neighbours, of a signal-to-noise ratio."""
    white = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return correlate_noise(white, 0.5).numpy() / snr


# --- what must be flagged -------------------------------------------------------------------------


@pytest.mark.parametrize("velocity", [60.0, -60.0])
def test_shifts_are_flagged(shipped, stars, velocity):
    flags = flags_of(shipped, moved(stars[:TRIES], 1 + velocity / SPEED_OF_LIGHT))
    assert np.count_nonzero(flags & Flag.SHIFTED) >= ENOUGH
    assert not (flags & Flag.AIR_WAVELENGTHS).any()


def test_wavelengths_in_air_are_flagged(shipped, stars):
    factor = float(np.median(vacuum_to_air(WAVELENGTH) / WAVELENGTH))
    flags = flags_of(shipped, moved(stars[:TRIES], factor))
    assert np.count_nonzero(flags & Flag.AIR_WAVELENGTHS) >= ENOUGH


def test_flux_over_its_median_is_flagged(shipped, stars):
    flux = stars[:TRIES, HALF]
    flags = flags_of(shipped, flux / np.nanmedian(flux, axis=1, keepdims=True))
    assert np.count_nonzero(flags & Flag.CONTINUUM) >= ENOUGH


def test_counts_are_flagged(shipped, stars):
    with pytest.warns(UserWarning, match="without any valid value"):
        flags = flags_of(shipped, 133 * stars[:3, HALF])
    assert (flags & (Flag.CONTINUUM | Flag.NO_MEASUREMENT)).all()


@pytest.mark.parametrize("snr", [3, 10, 30])
def test_pure_noise_is_flagged(shipped, snr):
    flags = flags_of(shipped, np.clip(1 + noise((TRIES, 3757), snr), 0.06, 1.19))
    assert np.count_nonzero(flags & Flag.UNLIKE_TRAINING) >= ENOUGH


@pytest.mark.parametrize("part", [slice(0, 3757), slice(0, 470), slice(1000, 1934)])
@pytest.mark.parametrize("snr", [3, 10])
def test_pure_noise_is_flagged_also_if_its_errors_are_known(shipped, snr, part):
    flux = 1 + noise((TRIES, 3757), snr)[:, part]
    errors = np.full_like(flux, 1 / snr)
    answers = shipped.predict(flux, WAVELENGTH[part], ALL, errors=errors, progress=False)
    share = np.mean(answers["flags"] & int(Flag.UNLIKE_TRAINING) != 0)
    assert share >= (0.9 if part.stop == 3757 else 0.7)  # about 0.8 in the windows


@pytest.mark.slow
def test_hot_stars_are_flagged(shipped):
    """F stars of 7,000 K: the emulator's coefficients, extrapolated linearly in 1 / Teff."""
    random = np.random.default_rng(3)
    bank = SpectraBank(Emulator.load("nature"))
    logg, fe_h = random.uniform(3.9, 4.4, TRIES), random.normal(-0.1, 0.2, TRIES)
    cool, hot = (
        bank.emulator.coefficients(
            standard_labels({"TEFF": np.full(TRIES, teff), "LOGG": logg, "FE_H": fe_h}), "clip"
        )
        for teff in (6600.0, 6850.0)
    )
    beyond = (1 / 7000 - 1 / 6850) / (1 / 6850 - 1 / 6600)
    rotation = len(MACROTURBULENCE) + random.choice([2, 3, 4, 5], TRIES)  # 6 to 48 km/s
    flux = bank(hot + beyond * (hot - cool), random.integers(0, 5, TRIES), rotation).numpy()
    flux = normalize(flux + noise(flux.shape, 150))
    assert np.count_nonzero(flags_of(shipped, flux[:, HALF])) >= ENOUGH


@pytest.mark.reference
def test_late_dwarfs_are_flagged(shipped, shared):
    with np.load(shared / "real" / "apogee_mdwarf" / "apogee_mdwarf.npz") as file:
        dwarf = file["star"] != "2M17334253-1654573"
        flux = normalize(file["flux"][dwarf], file["bad"][dwarf])
    assert np.mean(flags_of(shipped, flux[:, HALF]) & Flag.UNLIKE_TRAINING != 0) >= 0.9


# --- what must not be flagged ---------------------------------------------------------------------


def test_stars_of_a_survey_are_not_flagged(shipped, stars):
    # 0.8 % of 5,000 stars are flagged; of 240, more than six are with a probability of 0.2 %.
    assert np.count_nonzero(flags_of(shipped, stars[:, HALF])) <= 6


def test_training_noise_is_not_flagged(shipped, stars):
    """At the faint end of the training noise, where one in a hundred is expected."""
    faint = stars[:, HALF] + noise((len(stars), 3757), 30)
    assert np.mean(flags_of(shipped, faint) != 0) <= 0.03


@pytest.mark.parametrize("snr", [10, 20])
def test_noise_whose_errors_are_known_is_not_flagged(shipped, stars, snr):
    faint = stars[:TRIES, HALF] + noise((TRIES, 3757), snr)
    unlike = flags_of(shipped, faint) & Flag.UNLIKE_TRAINING != 0
    assert np.mean(unlike) > (0.5 if snr == 10 else 0.05)
    proportional = np.abs(faint) / snr
    for told in ({"snr": snr}, {"errors": np.full_like(faint, 1 / snr)}, {"errors": proportional}):
        answers = shipped.predict(faint, WAVELENGTH, ALL, progress=False, **told)
        doubtful = answers["flags"] & int(Flag.UNLIKE_TRAINING | Flag.CONTINUUM)
        assert np.mean(doubtful != 0) <= 0.08


@pytest.mark.parametrize("part", [slice(200, 1000), slice(2000, 2400), slice(1800, 3757)])
def test_windows_are_not_flagged(shipped, stars, part):
    flags = flags_of(shipped, stars[:TRIES, part], part, ["FE_H"])
    assert np.count_nonzero(flags) <= 3


@pytest.mark.reference
def test_giant_of_another_data_release_has_the_same_labels_from_both_files(shipped, shared):
    files = sorted((shared / "real" / "dr13_giant").glob("*.fits"))
    assert len(files) == 2
    flux = np.array([read_normalized(path, HALF)[1][HALF] for path in files], dtype=np.float32)
    answers = shipped.predict(flux, WAVELENGTH, ALL, progress=False)
    assert not answers["flags"].any()
    for label in ALL:
        one, other = answers[label]
        assert abs(one - other) < math.hypot(*answers[f"{label}_error"])


# --- bits that need no reference ------------------------------------------------------------------


def test_models_without_a_reference_find_shifts_and_scales(shipped, stars, monkeypatch):
    monkeypatch.setattr(shipped, "reference", None)
    assert not flags_of(shipped, stars[:10, HALF]).any()
    assert (flags_of(shipped, moved(stars[:10], 1 + 60 / SPEED_OF_LIGHT)) == Flag.SHIFTED).all()
    assert (flags_of(shipped, 1.15 * stars[:10, HALF]) == Flag.CONTINUUM).all()


def test_few_or_no_pixels_are_flagged(shipped, stars):
    flux = stars[:2, HALF].copy()
    flux[0], flux[1, 150:] = np.nan, np.nan
    with pytest.warns(UserWarning, match="without any valid value"):
        flags = flags_of(shipped, flux)
    assert flags[0] == Flag.NO_MEASUREMENT | Flag.FEW_PIXELS
    assert flags[1] == Flag.FEW_PIXELS


def test_answers_at_the_edge_are_flagged(shipped, stars, monkeypatch):
    answers = shipped.predict(stars[:20, HALF], WAVELENGTH, ["TEFF"], progress=False)
    teff, error = answers["TEFF"], answers["TEFF_error"]
    reference = shipped.reference
    low, high = teff.quantile([0.2, 0.8])
    ranges = np.where(
        reference.label_tokens[:, None] == shipped.tokenize(["TEFF"]), [low, high], [-99, 99]
    )
    monkeypatch.setattr(shipped, "reference", replace(reference, label_ranges=ranges))
    flags = flags_of(shipped, stars[:20, HALF], labels=["TEFF"])
    assert ((flags & Flag.EDGE != 0) == ((teff - error <= low) | (teff + error >= high))).all()
    assert not (flags_of(shipped, stars[:20, HALF], labels=["FE_H"]) & Flag.EDGE).any()


def test_many_flags_are_told_once(shipped, stars):
    shifted = moved(stars[:10], 1 + 60 / SPEED_OF_LIGHT)
    with pytest.warns(UserWarning, match="10 of 10 answers are flagged.*10 SHIFTED") as told:
        flags_of(shipped, shifted)
    assert len(told) == 1


def test_names_of_bits():
    assert flag_names(Flag.EDGE | Flag.SHIFTED) == "SHIFTED, EDGE"
    assert len({int(flag) for flag in Flag}) == len(Flag) == int(max(Flag)).bit_length()


# --- in checkpoints -------------------------------------------------------------------------------


def test_calibration_describes_the_training_and_checkpoints_keep_it(tmp_path):
    model = make_model(400, context_length=400)
    names = [f"syn_apogee{i}" for i in range(400)]
    wavelengths = APOGEE_WAVELENGTH[:400]
    spectra = make_spectra(200, 400)
    predicted = model.predict(spectra, wavelengths, LABELS, names=names, progress=False)
    labels = predicted[LABELS] + predicted[[f"{x}_error" for x in LABELS]].to_numpy()
    assert model.reference is None
    model.calibrate(spectra, wavelengths, labels, windows=(1.0,))
    assert len(model.reference.components) == 8
    model.save(tmp_path / "model")
    loaded = StellarPerceptron.load(tmp_path / "model", device="cpu")
    for grown in (loaded, StellarPerceptron.load_for_finetuning(tmp_path / "model", ["NEW"])):
        for name, array in model.reference.to_arrays().items():
            np.testing.assert_array_equal(getattr(grown.reference, name), array)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mean", lambda a: a[:-1]),
        ("components", lambda a: np.full_like(a, np.nan)),
        ("tokens", lambda a: a + 10_000),
        ("tokens", lambda a: a[::-1]),
        ("variances", lambda a: -a),
        ("limits", lambda a: a.astype("U8")),
        ("label_ranges", lambda a: a[0]),
    ],
)
def test_impossible_references_are_refused(shipped, name, change):
    arrays = shipped.reference.to_arrays()
    with pytest.raises(ValueError, match="reference"):
        Reference.from_arrays({**arrays, name: change(arrays[name])}, shipped.vocab_size)


def test_references_that_lack_something_are_refused(shipped):
    arrays = dict(shipped.reference.to_arrays())
    del arrays["mean"]
    with pytest.raises(ValueError, match="mean"):
        Reference.from_arrays(arrays, shipped.vocab_size)


def test_labels_that_no_star_has_get_no_range():
    labels = pd.DataFrame({"TEFF": np.linspace(4000, 6000, 201), "FE_H": np.full(201, np.nan)})
    spectra = make_spectra(200, 300)
    reference = Reference.fit(spectra, np.arange(1, 301), labels, np.array([301, 302]))
    assert reference.label_tokens.tolist() == [301]
    np.testing.assert_allclose(reference.label_ranges, [[4001, 5992]], atol=1)
