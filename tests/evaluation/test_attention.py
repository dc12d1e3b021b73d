"""Attention of the decoder, sensitivity of the answers, and the scripts that look at both."""

import importlib.util
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from chain import ROOT
from conftest import make_model, make_spectra
from small_survey import N_PIXELS, write_survey

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.evaluation.attention import (
    decoder_attention,
    label_sensitivity,
    masking_test,
    star_groups,
    token_groups,
)
from stellarperceptron.labels import PUBLISHED_LABELS

FOLDER = ROOT / "results" / "attention"
NAMES = [f"syn_apogee{i}" for i in range(40)]
WAVELENGTH = APOGEE_WAVELENGTH[:40].copy()
LABELS = ["TEFF", "FE_H"]


def attention_of(model, spectra, **options):
    batches = decoder_attention(model, spectra, WAVELENGTH, LABELS, **options)
    return np.concatenate(list(batches))


@pytest.mark.parametrize("pixels_per_token", [1, 4])
def test_attention_is_what_the_model_gives_in_one_context(pixels_per_token):
    model = make_model(context_length=40, pixels_per_token=pixels_per_token)
    spectra = make_spectra(5, 40, bad=0.3)
    spectra[:, 8:12] = np.nan  # a token that is missing whole
    model.perceive(spectra, NAMES, WAVELENGTH)
    _, expected = model.request(LABELS, return_attention_scores=True)  # (N, T, Q)
    result = attention_of(model, spectra, permutations=1, batch_size=2)
    present = np.isfinite(result[:, :1]).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(
        np.nan_to_num(result), expected.transpose(0, 2, 1) * present, rtol=2e-4, atol=1e-6
    )


@pytest.mark.parametrize("pixels_per_token", [1, 4])
def test_mean_attention_of_a_star_is_one(pixels_per_token):
    """Over several patches and permutations."""
    model = make_model(context_length=5, pixels_per_token=pixels_per_token)
    result = attention_of(model, make_spectra(6, 40), permutations=3)
    np.testing.assert_allclose(np.nanmean(result, axis=2), 1, rtol=1e-5)
    assert np.nanstd(result, axis=2).min() > 0.02


def test_missing_tokens_have_no_attention(model):
    spectra = make_spectra(3, 40)
    result = attention_of(model, spectra)
    missing = np.broadcast_to(np.isnan(spectra)[:, None], result.shape)
    np.testing.assert_array_equal(np.isnan(result), missing)


def test_batches_change_nothing(model):
    spectra = make_spectra(7, 40)
    one, many = attention_of(model, spectra, batch_size=7), attention_of(model, spectra)
    np.testing.assert_allclose(one, many, rtol=1e-4)


def test_permutations_must_be_some(model):
    with pytest.raises(ValueError, match="permutations = 0"):
        attention_of(model, make_spectra(3, 40), permutations=0)


def test_tokens_know_their_pixels():
    groups = token_groups(make_model(pixels_per_token=16), WAVELENGTH)
    assert groups.pixels.shape == (3, 16)
    # Bins are counted on APOGEE's grid, whose first pixel is its 247th.
    np.testing.assert_array_equal(groups.of_pixel, (np.arange(40) + 246) // 16 - 246 // 16)


@pytest.mark.parametrize("pixels_per_token", [1, 4])
def test_sensitivity_is_the_slope_of_the_answer(pixels_per_token):
    model = make_model(context_length=5, pixels_per_token=pixels_per_token)
    spectra, pixel, step = make_spectra(4, 40, bad=0.2), 11, 0.01
    spectra[:, pixel] = 1.0
    (batch,) = label_sensitivity(model, spectra, WAVELENGTH, LABELS)
    result = batch
    np.testing.assert_array_equal(np.isnan(result[:, 0]), np.isnan(spectra))
    names, labels = model.tokenize(NAMES), model.tokenize(LABELS)
    spread = model.standardizer.inverse_standardize_error(np.ones(len(NAMES)), names)[pixel]
    moved = []
    for sign in (-1, 1):
        changed = spectra.copy()
        changed[:, pixel] += sign * step * spread
        answer = model.predict(changed, WAVELENGTH, LABELS, progress=False)[LABELS].to_numpy()
        moved.append(model.standardizer.standardize(answer, labels))
    slope = (moved[1] - moved[0]) / (2 * step)
    np.testing.assert_allclose(result[..., pixel], slope, atol=0.02 * np.abs(slope).max())


def test_sensitivity_counts_the_patches_that_a_star_is_seen_in(model):
    """A star with a single valid pixel is seen in one of the patches, as `predict` knows."""
    model = make_model(context_length=5)
    spectra = np.full((1, 40), np.nan)
    spectra[0, 7] = 1.0
    (batch,) = label_sensitivity(model, spectra, WAVELENGTH, LABELS)
    short = make_model(context_length=40)  # with the same weights
    (alone,) = label_sensitivity(short, spectra, WAVELENGTH, LABELS)
    assert np.abs(alone[0, :, 7]).min() > 0
    np.testing.assert_allclose(batch, alone, rtol=1e-4)


def test_sensitivity_leaves_the_model_as_it_was(model):
    network = model.torch_model.train()
    model.set_trainable(freeze_decoder=True)
    before = [p.requires_grad for p in network.parameters()]
    assert len(set(before)) == 2
    list(label_sensitivity(model, make_spectra(3, 40), WAVELENGTH, LABELS, batch_size=2))
    assert [p.requires_grad for p in network.parameters()] == before and network.training
    assert all(p.grad is None for p in network.parameters())


def test_stars_of_unknown_gravity_are_neither_giants_nor_dwarfs():
    groups = star_groups(np.array([2.0, 4.5, 3.7, np.nan]))
    assert groups["giants"].tolist() == [True, False, False, False]
    assert groups["dwarfs"].tolist() == [False, True, False, False]
    assert groups["all"].all()


class TwoPixels:
    """Reads [Mg/Fe] from the first pixel and [Fe/H] from the second; bad pixels count as 0."""

    def predict(self, spectra, wavelengths, labels, progress):
        flux = np.nan_to_num(spectra)
        return pd.DataFrame({"MG_FE": flux[:, 0], "FE_H": flux[:, 1]})[labels]


def test_masking_hurts_the_label_that_is_read_there():
    random = np.random.default_rng(0)
    actual = {name: random.normal(size=50) for name in ("MG_FE", "FE_H")}
    actual["FE_H"][7] = np.nan
    spectra = np.column_stack([*actual.values(), np.zeros(50)]) + 0.1
    masks = {name: np.arange(3) == i for i, name in enumerate(["MG_FE", "FE_H", "neither"])}
    table = masking_test(TwoPixels(), spectra, np.arange(3), actual, masks)
    growth = table.pivot_table("growth", "masked", "label", sort=False)
    rms = {name: np.sqrt(np.nanmean(values**2)) for name, values in actual.items()}
    for name, size in rms.items():
        assert growth.loc[name, name] == pytest.approx(10 * size)
        assert growth.loc["neither", name] == pytest.approx(1)
    assert growth.loc["MG_FE", "FE_H"] == growth.loc["FE_H", "MG_FE"] == 1
    assert table.groupby("label")["stars"].first().to_dict() == {"FE_H": 49, "MG_FE": 50}


# --- scripts --------------------------------------------------------------------------------------


def run_script(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        script.main()


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """Arguments of both scripts, after the first has run on a small survey."""
    folder = tmp_path_factory.mktemp("attention")
    survey = write_survey(folder / "survey.h5")
    model = make_model(N_PIXELS, PUBLISHED_LABELS, context_length=6, pixels_per_token=4)
    model.save(folder / "model")
    arguments = ["--checkpoint", folder / "model", "--data", survey, "--output", folder / "out"]
    options = ["--pixels", "full", "--permutations", 2, "--threads", 1]
    run_script("extract_attention", *arguments, *options)
    return dict(zip(arguments[::2], arguments[1::2], strict=True))


def as_list(arguments, **changed):
    arguments = arguments | {f"--{name}": value for name, value in changed.items()}
    return [part for pair in arguments.items() for part in pair]


def test_means_are_those_of_the_stored_stars(extracted):
    with h5py.File(extracted["--output"] / "attention.h5") as file:
        assert list(file.attrs["labels"]) == list(PUBLISHED_LABELS)
        stars, mean = file["attention"][:].astype(float), file["all/attention"][:]
        assert stars.shape == (12, 5, 13)  # 50 pixels are 13 tokens of 4
        np.testing.assert_allclose(np.nanmean(stars, axis=0), mean, rtol=2e-3)
        assert file["all/spectrum"].shape == (N_PIXELS,)
        with h5py.File(extracted["--data"]) as survey:
            giants = star_groups(survey["test/labels"][:, 1])["giants"]
        assert int(file["giants/stars"][()]) == giants.sum() > 0
    assert (extracted["--output"] / "complete").exists()


def test_table_compares_with_chance(extracted):
    table = pd.read_csv(extracted["--output"] / "attention_shares.csv")
    assert set(table.measure) == {"attention", "sensitivity"}
    assert set(table.label) == set(PUBLISHED_LABELS)
    np.testing.assert_allclose(table.ratio, table.share / table.chance, rtol=1e-3)
    assert ((table.share > 0) & (table.share < 1)).all()


def test_pixels_of_each_element_are_masked(extracted):
    table = pd.read_csv(extracted["--output"] / "masking.csv")
    assert table["masked"].unique().tolist() == ["O_FE", "MG_FE", "FE_H", "pixels at random"]
    assert (table["pixels"] == 2).all() and (table["rmse_whole"] > 0).all()  # of 50
    np.testing.assert_allclose(table["growth"], table["rmse"] / table["rmse_whole"], rtol=1e-3)


def test_figure_is_drawn(extracted):
    run_script("Figure4", *as_list(extracted))
    for name in ("Figure4", "sensitivity"):
        assert (extracted["--output"] / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (extracted["--output"] / "complete").exists()


def test_figure_of_another_checkpoint_is_refused(extracted, tmp_path):
    other = tmp_path / "other"
    make_model(N_PIXELS, PUBLISHED_LABELS, seed=2, pixels_per_token=4).save(other)
    with pytest.raises(SystemExit, match=r"does not belong to .*other"):
        run_script("Figure4", *as_list(extracted, checkpoint=other))


def test_figure_without_attention_names_the_command(extracted, tmp_path):
    with pytest.raises(SystemExit, match=r"run results/attention/extract_attention\.py"):
        run_script("Figure4", *as_list(extracted, output=tmp_path))


def test_missing_checkpoint_is_said(extracted, tmp_path):
    with pytest.raises(SystemExit, match="there is no checkpoint"):
        run_script("extract_attention", *as_list(extracted, checkpoint=tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_survey_without_abundances_is_refused(extracted, tmp_path):
    """Without any star whose labels are all known there is no response to compare with."""
    survey = tmp_path / "survey.h5"
    survey.write_bytes(extracted["--data"].read_bytes())
    with h5py.File(survey, "r+") as file:
        labels = file["test/labels"][:]
        labels[:, 2:] = np.nan
        file["test/labels"][:] = labels
    with pytest.raises(SystemExit, match=r"no star of .* with all labels"):
        changed = as_list(extracted, data=survey, output=tmp_path / "out", pixels="full")
        run_script("extract_attention", *changed)
