"""Training by `StellarPerceptron.fit`."""

import numpy as np
import pandas as pd
import pytest
import torch
from astropy import units
from conftest import LABELS, make_model, make_spectra
from train_tiny import NAMES, STARS, WAVELENGTHS

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.nn_utils import linear_warmup_cosine
from stellarperceptron.training import stages


@pytest.fixture
def table():
    spectra = make_spectra(STARS, 40, bad=0.05)
    labels = np.nanmean(spectra[:, :30].reshape(STARS, 3, 10), axis=2)
    return pd.DataFrame(np.hstack([spectra, labels]), columns=[*NAMES, *LABELS])


@pytest.mark.parametrize("each_star", [False, True])
def test_fit_on_arrays(table, each_star):
    model = make_model()
    wavelengths = np.append(WAVELENGTHS, [0, 0, 0])
    metrics = model.fit(
        table,
        outputs_name=LABELS,
        inputs_err=np.full(table.shape, 0.01),
        inputs_wavelength=np.tile(wavelengths, (STARS, 1)) if each_star else wavelengths,
        epochs=2,
        batch_size=16,
    )
    assert len(metrics) == 2 and np.isfinite(metrics["val_loss"]).all()


def test_wavelengths_of_each_star_are_those_of_all(table):
    wavelengths = np.append(WAVELENGTHS, [0, 0, 0])
    losses = [
        make_model().fit(
            table, outputs_name=LABELS, inputs_wavelength=given, epochs=1, batch_size=16
        )["loss"][0]
        for given in (wavelengths, np.tile(wavelengths, (STARS, 1)))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_fit_with_a_schedule_and_a_folder(table, tmp_path):
    model = make_model()
    model.fit(
        table,
        outputs_name=LABELS,
        inputs_wavelength=np.append(WAVELENGTHS, [0, 0, 0]),
        lr_scheduler=lambda optimizer: linear_warmup_cosine(optimizer, 2, 10),
        checkpoint_folder=tmp_path / "run",
        validation_indices=np.arange(10),
        epochs=2,
        batch_size=16,
    )
    log = (tmp_path / "run" / "training.log").read_text()
    assert "70 training and 10 validation stars" in log
    assert (tmp_path / "run" / "epoch_2" / "weights.pt").exists()


def test_fit_goes_on_with_more_epochs_and_on_the_same_stars_only(table, tmp_path):
    options = {
        "outputs_name": LABELS,
        "inputs_wavelength": np.append(WAVELENGTHS, [0, 0, 0]),
        "checkpoint_folder": tmp_path / "run",
        "resume": True,
        "batch_size": 16,
    }
    make_model().fit(table, epochs=1, **options)
    assert len(make_model().fit(table, epochs=2, **options)) == 2
    table.loc[3, "TEFF"] += 1
    with pytest.raises(ValueError, match="labels_crc32"):
        make_model().fit(table, epochs=2, **options)


def with_noise(scatter):
    return lambda flux, generator: flux + scatter * torch.randn(flux.shape, generator=generator)


@pytest.mark.slow
def test_fit_goes_on_with_the_same_schedule_and_augmentation_only(table, tmp_path):
    def fit(epochs, warmup=3, scatter=0.01):
        return make_model().fit(
            table,
            outputs_name=LABELS,
            inputs_wavelength=np.append(WAVELENGTHS, [0, 0, 0]),
            checkpoint_folder=tmp_path / "run",
            resume=True,
            batch_size=16,
            epochs=epochs,
            lr_scheduler=lambda optimizer: linear_warmup_cosine(optimizer, warmup, 100),
            augment=with_noise(scatter),
        )

    fit(1)
    with pytest.raises(ValueError, match=r"lr_scheduler\.learning_rates"):
        fit(2, warmup=4)
    with pytest.raises(ValueError, match=r"augment\.scatter"):
        fit(2, scatter=0.02)
    assert len(fit(2)) == 2


def test_fit_refuses_a_used_folder_unless_it_may_go_on(table, tmp_path):
    options = {
        "outputs_name": LABELS,
        "inputs_wavelength": np.append(WAVELENGTHS, [0, 0, 0]),
        "checkpoint_folder": tmp_path / "run",
        "batch_size": 16,
    }
    make_model().fit(table, epochs=1, **options)
    configuration = (tmp_path / "run" / "configuration.json").read_text()
    with pytest.raises(FileExistsError, match="resume=True"):
        make_model().fit(table, epochs=2, **options)
    assert (tmp_path / "run" / "configuration.json").read_text() == configuration
    assert len(make_model().fit(table, epochs=2, resume=True, **options)) == 2


def test_standardization_file_may_have_any_name(table, tmp_path):
    make_model().save(tmp_path / "old")
    (tmp_path / "old" / "config.json").rename(tmp_path / "statistics.json")
    fresh = make_model()
    expected = fresh.standardizer.center.copy()
    fresh.standardizer.center = expected + 1
    fresh.fit(
        table,
        outputs_name=LABELS,
        inputs_wavelength=np.append(WAVELENGTHS, [0, 0, 0]),
        standardization_file=tmp_path / "statistics.json",
        batch_size=16,
    )
    np.testing.assert_array_equal(fresh.standardizer.center, expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"outputs_name": ["TEFF", "VSINI"]}, "VSINI"),
        ({"outputs_name": None}, "outputs_name"),
        ({"inputs_err": np.ones((3, 3))}, "inputs_err"),
        ({"inputs_wavelength": WAVELENGTHS}, "inputs_wavelength"),
        ({"precision": "float8"}, "precision"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_gradient_norm": -1.0}, "max_gradient_norm"),
    ],
)
def test_fit_refuses(table, change, named):
    arguments = {
        "outputs_name": LABELS,
        "inputs_wavelength": np.append(WAVELENGTHS, [0, 0, 0]),
    } | change
    with pytest.raises(ValueError, match=named):
        make_model().fit(table, **arguments)


def test_stars_without_labels_are_left_out(table):
    table.loc[:, LABELS] = np.nan
    with pytest.raises(ValueError, match="no star"):
        make_model().fit(
            table, outputs_name=LABELS, inputs_wavelength=np.append(WAVELENGTHS, [0, 0, 0])
        )


def test_fit_is_told_the_errors_of_spectra(table, monkeypatch):
    flux, labels = table[NAMES].to_numpy(), table[LABELS]
    errors = np.full(flux.shape, 0.01)
    errors[:, 20:] = 0.02
    errors[0, 5] = 0.2  # too noisy to be a measurement
    kept = []
    prepare = stages.prepare_training_data

    def prepared(*arguments, **options):
        kept.append(prepare(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr(stages, "prepare_training_data", prepared)
    model = make_model(pixels_per_token=10, conditions=True)
    options = {"epochs": 1, "batch_size": 16, "progress": False}
    wavelengths = APOGEE_WAVELENGTH[:40] / 10 * units.nm
    with pytest.warns(UserWarning, match="1 of 3200 pixels count as bad, by their errors"):
        model.fit(flux, labels, wavelengths, inputs_err=errors, **options)
    noise = kept[0].noise
    assert noise.shape == (STARS, 5)  # the pixels' bins on the instrument's grid
    first, *_, last = noise.nanmedian(dim=0).values
    assert last > 1.5 * first
    assert kept[0].values[0, 5].isnan()
    with pytest.raises(ValueError, match=r"inputs_err \(80, 39\) do not match"):
        model.fit(flux, labels, APOGEE_WAVELENGTH[:40], inputs_err=errors[:, 1:], **options)
