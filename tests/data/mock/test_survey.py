"""The mock survey: who its stars are, what their spectra look like, and the file they go to."""

import importlib
import json
import math
import shutil
import sys

import h5py
import numpy as np
import pytest
import torch
from chain import ROOT

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock import observation, survey
from stellarperceptron.data.mock.observation import (
    broadening_index,
    broadening_velocity,
)
from stellarperceptron.data.mock.population import LabelDistribution, all_labels
from stellarperceptron.data.mock.stellar_labels import LABELS
from stellarperceptron.data.mock.survey import MockSurvey, Observation
from stellarperceptron.labels import PUBLISHED_LABELS, label
from stellarperceptron.utils import arguments

SCRIPT = ROOT / "dataset" / "create_mock_survey.py"


@pytest.fixture(scope="module")
def small_blocks():
    """Blocks of few stars and few kinds of line spread keep the tests fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "BLOCK", 48)
        patch.setattr(survey, "LSF_GROUPS", observation.LSF_GROUPS[:1])
        yield


@pytest.fixture(scope="module")
def mock(small_blocks):
    return MockSurvey(seed=3)


@pytest.fixture(scope="module")
def block(mock):
    return mock.block("train", 0, 48)


@pytest.fixture(scope="module")
def population():
    return LabelDistribution.load()


@pytest.fixture(scope="module")
def stars(population):
    return population.draw(20_000, np.random.default_rng(0))


# --- population -----------------------------------------------------------------------------------


def test_giant_branch_dwarfs_and_red_clump_are_there(stars):
    logg = stars[:, 1]
    assert 0.2 < (logg > 3.7).mean() < 0.35
    clump = (np.abs(logg - 2.45) < 0.1).mean()
    assert clump > 1.3 * (np.abs(logg - 2.0) < 0.1).mean()


def test_upper_giants_are_cool(stars):
    assert np.median(stars[stars[:, 1] < 1, 0]) < 4200 < np.median(stars[stars[:, 1] > 4, 0])


def test_there_are_two_alpha_sequences(stars):
    metal_poor_disc = stars[np.abs(stars[:, 4] + 0.4) < 0.1, 3]
    counts, _ = np.histogram(metal_poor_disc, np.linspace(-0.1, 0.45, 12))
    low, valley, high = counts[2:5].max(), counts[5:7].min(), counts[7:10].max()
    assert valley < 0.9 * min(low, high)


def test_draws_stay_within_the_narrower_range(population):
    low, high = np.array([4000, 1, -1, -1, -1.0]), np.array([5000, 3, 1, 1, 0.0])
    stars = population.draw(500, np.random.default_rng(1), low, high)
    assert ((stars >= low) & (stars <= high)).all()


def test_damaged_label_distribution_is_named(tmp_path):
    (tmp_path / "half.json").write_text('{"format_version": 1, "weights": [')
    with pytest.raises(ValueError, match=r"half\.json is damaged"):
        LabelDistribution.load(tmp_path / "half.json")


def test_giants_have_mixed_carbon_and_nitrogen(mock):
    labels = np.repeat([[4800.0, 4.5, 0, 0, 0], [4800.0, 2.5, 0, 0, 0]], 300, axis=0)
    full = all_labels(labels, np.random.default_rng(0), mock.low, mock.high)
    carbon, nitrogen = (full[:, LABELS.index(n)].reshape(2, -1).mean(1) for n in ("C_FE", "N_FE"))
    assert carbon[1] < carbon[0] - 0.1
    assert nitrogen[1] > nitrogen[0] + 0.15


def test_labels_of_all_elements_stay_within_the_emulators_range(mock, stars):
    full = all_labels(stars[:500], np.random.default_rng(0), mock.low, mock.high)
    assert np.isfinite(full).all()
    assert ((full >= mock.low) & (full <= mock.high)).all()


@pytest.mark.reference
def test_as_many_stars_lack_abundances_as_in_the_survey(shared, mock):
    real = np.load(shared / "published" / "labels_train.npy").astype(float)
    labels = mock.labels(100_000, np.random.default_rng(6))
    missing = mock.population.without_abundances(labels, np.random.default_rng(7))
    wanted = np.isnan(real[:, 4]).mean()
    assert missing.mean() == pytest.approx(wanted, abs=4 * math.sqrt(wanted / 100_000))
    cool = (labels[:, 0] < 3700) & (labels[:, 1] > 4)
    assert cool[missing].mean() > 0.85


@pytest.mark.reference
def test_label_census(shared, mock):
    real = np.load(shared / "published" / "labels_train.npy").astype(float)
    stars = mock.labels(30_000, np.random.default_rng(5))
    levels = (1, 5, 16, 50, 84, 95, 99)
    ours, theirs = (np.nanpercentile(x, levels, axis=0) for x in (stars, real))
    assert (np.abs(ours - theirs) < 0.1 * (theirs[-1] - theirs[0])).all()
    metal_poor = (stars[:, 4] < -1).mean() / np.nanmean(real[:, 4] < -1)
    assert 1 / 1.3 < metal_poor < 1.3
    complete = real[np.isfinite(real).all(1)]
    signs = [np.sign(np.corrcoef(x.T).round(2)) for x in (stars, complete)]
    assert np.array_equal(*signs)


@pytest.mark.reference
def test_label_errors_are_those_of_the_survey(shared, population, stars):
    real = np.load(shared / "published" / "label_errs_train.npy").astype(float)
    ours = population.errors(stars, np.random.default_rng(1))
    ratio = np.percentile(ours, (5, 50, 95), axis=0) / np.nanpercentile(real, (5, 50, 95), axis=0)
    assert (np.abs(ratio - 1) < 0.15).all()


# --- spectra --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_block_has_all_that_a_survey_file_needs(block):
    assert set(block) == {
        *("ids", "synthetic", "observed", "observed_errors"),
        *("labels", "label_errors", "true_labels"),
    }
    assert block["observed"].shape == block["synthetic"].shape == (48, 7514)
    assert block["observed"].dtype == block["labels"].dtype == np.float32
    assert len(set(block["ids"])) == 48


def test_spectra_have_the_scale_of_the_pipeline(block):
    for kind in ("synthetic", "observed"):
        assert np.nanmedian(block[kind]) == pytest.approx(1.012, abs=0.008)
        assert 0.05 <= np.nanmin(block[kind]) <= np.nanmax(block[kind]) <= 1.2


def test_bad_pixels_are_few_and_only_in_observed_spectra(block):
    assert np.isnan(block["synthetic"]).mean() < 2e-3  # coolest stars, above 1.2 between bands
    assert 0.001 < np.isnan(block["observed"]).mean() < 0.03


def test_observed_spectra_resemble_the_synthetic_ones(block):
    difference = block["observed"] - block["synthetic"]
    rms = np.sqrt(np.nanmean(difference**2, axis=1))
    assert 0.005 < np.median(rms) < 0.04


def test_catalogue_scatters_about_the_truth_by_its_errors(mock):
    blocks = [mock.block("train", i) for i in range(1, 3)]
    pull = np.concatenate([(b["labels"] - b["true_labels"]) / b["label_errors"] for b in blocks])
    assert np.nanstd(pull) == pytest.approx(1.0, abs=0.15)


def test_a_perfect_telescope_shows_the_star(mock):
    perfect = Observation(
        snr=(1e6, 1.0, 1e6 + 1),
        line_spread=0.0,
        sky=0.0,
        telluric=0.0,
        ripple=(0.0, 0.0),
        bad_pixel=0.0,
        dead_columns=0,
        dead_stretch=0.0,
    )
    flux = 1 - 0.3 * torch.rand(2, 7514, generator=torch.Generator().manual_seed(0))
    observed, _ = perfect(flux, np.zeros(2), np.random.default_rng(0))
    expected = survey.normalize(flux, valid_flux=None)
    inside = expected < 1.2
    assert torch.allclose(observed[inside], expected[inside], atol=1e-4)


def test_noise_follows_the_signal_to_noise_ratio():
    noisy = Observation(snr=(100.0, 1.0, 101.0), sky=0.0, telluric=0.0, ripple=(0.0, 0.0))
    observed, errors = noisy(torch.ones(4, 7514), np.zeros(4), np.random.default_rng(0))
    assert np.nanstd(observed.numpy()) == pytest.approx(0.0109, rel=0.05)
    assert np.sqrt(np.nanmean(errors.numpy() ** 2)) == pytest.approx(0.0109, rel=0.05)


def test_errors_are_those_of_the_noise():
    """Also below a continuum that is not 1, and beside the sky's lines."""
    sky = Observation(telluric=0.0, ripple=(0.0, 0.0), line_spread=0.0)
    observed, errors = sky(torch.full((16, 7514), 0.8), np.zeros(16), np.random.default_rng(0))
    assert (errors > 0)[observed.isfinite()].all()
    pulls = ((observed - 1) / errors).numpy()
    noisy = (errors > 2 * errors.nanmedian(dim=1, keepdim=True).values).numpy()
    for some in (noisy, ~noisy):
        assert np.nanstd(pulls[some]) == pytest.approx(1.0, abs=0.03)


@pytest.mark.reference
def test_pixel_medians_follow_the_published_survey(shared, mock):
    config = json.loads((shared / "published" / "epoch_325" / "config.json").read_text())
    published = np.array(config["norm_config"]["_input_mean"])[1:7515]
    correlation = {}
    for bank in (mock.nominal, mock.nature):
        rng = np.random.default_rng(1)
        stars = mock.labels(400, rng)
        full = all_labels(stars, rng, mock.low, mock.high)
        broadening = broadening_index(stars, broadening_velocity(stars, rng))
        flux = bank(bank.emulator.coefficients(full), np.zeros(400, dtype=int), broadening)
        medians = np.nanmedian(survey.normalize(flux).numpy(), axis=0)
        correlation[bank.emulator.name] = np.corrcoef(medians, published)[0, 1]
        rms = np.sqrt(np.mean((medians - published) ** 2))
    assert correlation["nominal"] < 0.96 < correlation["nature"]
    assert rms < 0.015  # of nature, the last


# --- determinism ----------------------------------------------------------------------------------


def test_the_number_of_stars_does_not_change_a_star(mock, block):
    few = mock.block("train", 0, 5)
    for name in set(few) - {"ids"}:
        assert np.array_equal(few[name], block[name][:5], equal_nan=True)


def test_threads_do_not_change_a_star(mock, block):
    threaded = list(mock.blocks("train", 60, workers=3))
    assert [len(b["ids"]) for b in threaded] == [48, 12]
    assert np.array_equal(threaded[0]["observed"], block["observed"], equal_nan=True)


def test_seed_and_split_change_the_stars(mock, small_blocks, block):
    other = MockSurvey(seed=4).labels(10, np.random.default_rng([4, 0, 0]))
    assert not np.allclose(other, block["true_labels"][:10])
    assert not np.allclose(mock.block("test", 0, 5)["labels"], block["labels"][:5], equal_nan=True)


# --- other labels ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def carbon_block(small_blocks):
    """The stars of `block` in a survey with other labels, in another order."""
    names = ("N_FE", "FE_H", "VMICRO", "C_FE", "TEFF")
    return names, MockSurvey(seed=3, label_names=names).block("train", 0, 48)


@pytest.mark.slow
def test_the_choice_of_labels_changes_neither_labels_nor_observed_spectra(block, carbon_block):
    names, other = carbon_block
    assert np.array_equal(other["observed"], block["observed"], equal_nan=True)
    for kind in ("labels", "label_errors", "true_labels"):
        for name in ("FE_H", "TEFF"):
            ours = other[kind][:, names.index(name)]
            theirs = block[kind][:, PUBLISHED_LABELS.index(name)]
            assert np.array_equal(ours, theirs, equal_nan=True)


@pytest.mark.slow
def test_a_label_does_not_depend_on_its_companions(carbon_block):
    names, other = carbon_block
    alone = MockSurvey(seed=3, label_names=["[C/Fe]"]).block("train", 0, 48)
    for kind in ("labels", "label_errors", "true_labels"):
        assert np.array_equal(
            alone[kind][:, 0], other[kind][:, names.index("C_FE")], equal_nan=True
        )


@pytest.mark.slow
def test_a_catalogue_scatters_about_the_truth_in_every_label(carbon_block):
    names, other = carbon_block
    rows = np.flatnonzero(np.isfinite(other["labels"]).all(axis=1))
    assert len(rows) > 40  # of 48: few stars lack abundances
    pull = (other["labels"] - other["true_labels"])[rows] / other["label_errors"][rows]
    assert 0.7 < np.std(pull) < 1.3 and np.abs(pull).max() < 5
    for name in ("C_FE", "N_FE", "VMICRO"):
        error = np.median(other["label_errors"][rows, names.index(name)])
        assert error == pytest.approx(label(name).typical_error, rel=0.4)


@pytest.mark.slow
def test_synthetic_spectra_have_the_catalogues_abundances(small_blocks, block, carbon_block):
    _, other = carbon_block
    assert (np.nanstd(other["synthetic"] - block["synthetic"], axis=1) > 0).all()
    exact = MockSurvey(seed=3, label_names=["C_FE", "N_FE"])
    exact.population.errors_of = lambda name, labels, rng: np.zeros(len(labels))
    same = exact.block("train", 0, 48)["synthetic"]
    assert np.array_equal(same, block["synthetic"], equal_nan=True)


@pytest.mark.slow
def test_stars_without_abundances_keep_their_other_labels(small_blocks):
    other = MockSurvey(seed=3, label_names=["FE_H", "VMICRO", "C_FE", "TEFF"])
    other.population.without_abundances = lambda labels, rng: np.ones(len(labels), dtype=bool)
    for kind in ("labels", "label_errors"):
        missing = np.isnan(other.block("train", 0, 48)[kind])
        assert missing[:, [0, 2]].all() and not missing[:, [1, 3]].any()


def test_unknown_labels_are_refused():
    with pytest.raises(ValueError, match="no label 'EU_FE'; known are TEFF"):
        MockSurvey(label_names=["TEFF", "EU_FE"])


# --- the script -----------------------------------------------------------------------------------


@pytest.fixture
def run_script(monkeypatch, small_blocks):
    """The script's main function with a command line; its exit status."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("create_mock_survey")

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["create_mock_survey.py", *map(str, options)])
        arguments.run_script(script.main)

    return run


@pytest.mark.slow
def test_script_writes_the_same_file_twice(tmp_path, run_script):
    paths = [tmp_path / name for name in ("a.h5", "b.h5")]
    for path, workers in zip(paths, (1, 2), strict=True):
        run_script(
            *("--stars", 60, "--test-stars", 8, "--seed", 5),
            *("--output", path, "--workers", workers),
        )
    assert paths[0].read_bytes() == paths[1].read_bytes()
    data = SpectraDataset.open(paths[0])
    assert (len(data.train), len(data.test)) == (60, 8)
    with h5py.File(paths[0]) as file:
        provenance = json.loads(file.attrs["provenance"])
    assert provenance["seed"] == 5
    assert provenance["numpy"] == np.__version__
    assert {"emulators_sha256", "labels_sha256", "sky_sha256"} < set(provenance)


@pytest.mark.slow
def test_script_writes_the_labels_asked_for(tmp_path, run_script):
    path = tmp_path / "a.h5"
    few = ("--stars", 5, "--test-stars", 2, "--output", path)
    run_script(*few, "--labels", "log g", "[C/Fe]", "TEFF")
    with SpectraDataset.open(path) as data:
        assert data.label_names == ("LOGG", "C_FE", "TEFF")
        assert data.provenance["arguments"]["labels"] == ["LOGG", "C_FE", "TEFF"]
        assert data.train.labels.shape == data.train.true_labels.shape == (5, 3)
    run_script(*few, "--labels", "all")
    with SpectraDataset.open(path) as data:
        assert len(data.label_names) == 20


@pytest.mark.slow
def test_script_names_the_labels_that_it_knows(run_script):
    with pytest.raises(SystemExit, match="no label 'EU_FE'; known are TEFF, LOGG"):
        run_script("--labels", "TEFF", "EU_FE")


@pytest.mark.slow
def test_script_writes_both_formats(tmp_path, run_script):
    few = ("--stars", 4, "--test-stars", 2, "--workers", 1)
    for version in (1, 2):
        run_script(*few, "--format-version", version, "--output", tmp_path / f"{version}.h5")
    with h5py.File(tmp_path / "1.h5") as old, h5py.File(tmp_path / "2.h5") as new:
        assert (old.attrs["format_version"], new.attrs["format_version"]) == (1, 2)
        assert old.attrs["provenance"] == new.attrs["provenance"]
        for name in ("wavelength", "train/observed", "test/synthetic", "train/true_labels"):
            np.testing.assert_array_equal(old[name], new[name])


@pytest.mark.slow
def test_script_without_room_says_how_much_it_needs(tmp_path, run_script):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(SystemExit, match=r"needs .* GB"):
        run_script("--stars", free // 30_000, "--output", tmp_path / "big.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [-1, 10**13, "many"])
def test_script_refuses_seeds_that_it_cannot_use(run_script, capsys, seed):
    with pytest.raises(SystemExit):
        run_script(f"--seed={seed}")
    assert "--seed" in capsys.readouterr().err


@pytest.mark.slow
def test_script_says_where_a_parent_is_no_folder(tmp_path, run_script):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"create_mock_survey\.py: .*file is no folder"):
        run_script("--stars", 5, "--output", tmp_path / "file" / "mock.h5")


@pytest.mark.slow
def test_script_names_a_damaged_table(tmp_path, run_script, monkeypatch):
    (tmp_path / "half.json").write_text("{")
    load = LabelDistribution.load
    monkeypatch.setattr(LabelDistribution, "load", lambda: load(tmp_path / "half.json"))
    with pytest.raises(SystemExit, match=r"half\.json is damaged"):
        run_script("--stars", 5, "--output", tmp_path / "mock.h5")
    assert not (tmp_path / "mock.h5").exists()


@pytest.mark.slow
def test_script_refuses_no_stars(run_script, capsys):
    with pytest.raises(SystemExit):
        run_script("--stars", 0)
    assert "at least 1" in capsys.readouterr().err
