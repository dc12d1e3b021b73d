"""What each stage trains on, calibrates on and selects by: stars and spectra of a survey."""

from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from chain import STAGES, TRAINING, run_here

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.survey_file import SurveyWriter
from stellarperceptron.model_core import Calibration
from stellarperceptron.network.baselines.published import BaselineNetwork
from stellarperceptron.training import stages, tasks
from stellarperceptron.training.prepare import fit_standardization
from stellarperceptron.training.profiles import read_profile

STARS = 200
SMOKE = TRAINING / "profiles" / "smoke.toml"


class Started(Exception):
    """A stage has begun to train; its arguments are those of the training."""


def training_of(which, survey, folder, *arguments):
    """What a stage trains on; the training itself does not take place."""

    def start(*given, **_):
        raise Started(*given)

    common = ("--profile", "smoke", "--data", survey, "--output", folder, *arguments)
    with (
        mock.patch.object(stages, "train_stage", start),
        mock.patch.object(tasks, "train_baseline", start),
        pytest.raises(Started) as started,
    ):
        run_here(f"training/{STAGES[which]}", *common)
    return started.value.args


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Random spectra of 200 + 12 stars: nothing of one kind, star or pixel is that of another."""
    path, random = tmp_path_factory.mktemp("survey") / "survey.h5", np.random.default_rng(0)
    counts = {"train": STARS, "test": 12}
    with SurveyWriter(path, counts=counts, provenance={"seed": 0}) as writer:
        for split, number in counts.items():
            spectra = random.normal(0.9, 0.05, (2, number, 7514)).astype(np.float32)
            spectra[random.random(spectra.shape) < 0.02] = np.nan
            labels = random.normal([4800, 2, 0, 0, -0.5], [300, 1, 0.2, 0.2, 0.6], (number, 5))
            writer.append(
                split,
                ids=[f"{split}{i}" for i in range(number)],
                synthetic=spectra[0],
                observed=spectra[1],
                labels=labels,
                label_errors=random.uniform(0.01, 0.05, labels.shape),
            )
    return path


@pytest.fixture(scope="module")
def dataset(survey):
    with SpectraDataset.open(survey) as dataset:
        yield dataset


@pytest.fixture(scope="module")
def start(dataset, tmp_path_factory):
    """A checkpoint to begin stages 2 and 3 with: fresh weights, fitted standardization."""
    profile = read_profile(SMOKE, "stage_1")
    model = stages.new_model(dataset, profile, torch.device("cpu"))
    fit_standardization(model, stages.read_stars(dataset, profile))
    folder = tmp_path_factory.mktemp("start") / "epoch_1"
    model.save(folder)
    return "--checkpoint", folder


def assert_spectra(data, expected):
    """Training data are these fluxes; some may be beyond the limit and therefore missing."""
    flux = (data.values.float() + data.center).numpy()
    assert flux.shape == expected.shape
    known = np.isfinite(flux)
    assert known.mean() > 0.9 * np.isfinite(expected).mean() > 0.5
    np.testing.assert_allclose(flux[known], expected[known], atol=3e-4)  # half precision


def assert_pixels(model, data, dataset, range_name):
    """Tokens hold the pixels of a range, with their mean wavelengths."""
    part = dataset.train.pixel_range(range_name)
    assert data.ids[data.ids > 0].tolist() == list(range(part.start + 1, part.stop + 1))
    pixels = np.append(np.nan, dataset.wavelength)[data.ids]  # token 1 is the first pixel
    layer = model.torch_model.embedding_layer
    expected = layer.encode_wavelength(torch.from_numpy(np.nanmean(pixels, axis=1)))
    torch.testing.assert_close(data.encoding, expected)


def assert_labels(model, data, dataset, rows, columns, errors=True):
    """Labels and errors of training data are those of these stars."""
    tokens = data.label_ids.numpy()
    assert model.detokenize(tokens).tolist() == [dataset.label_names[i] for i in columns]
    labels = model.standardizer.inverse_standardize(data.labels.double().numpy(), tokens)
    expected = dataset.train.labels[rows][:, columns]
    np.testing.assert_allclose(labels, expected, rtol=1e-5, atol=1e-5)
    found = model.standardizer.inverse_standardize_error(data.label_errors.double(), tokens)
    expected = np.nan_to_num(dataset.train.label_errors[rows][:, columns]) * errors
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_stage_1_trains_on_all_synthetic_spectra(survey, dataset, tmp_path):
    model, data, training, validation, *_ = training_of(1, survey, tmp_path / "1")
    assert_spectra(data, dataset.train.read("synthetic"))
    assert_pixels(model, data, dataset, "full")
    assert data.augment.func.__self__.snr == (100, 600)
    assert_labels(model, data, dataset, slice(None), range(5), errors=False)
    assert (len(training), len(validation)) == (180, 20)
    assert sorted([*training, *validation]) == list(range(STARS))


@pytest.mark.parametrize("pixels_per_token", [1, 64])
def test_stage_1_shares_rows_of_the_embedding_as_published(survey, tmp_path, pixels_per_token):
    """One pixel a token: all pixels share a row, but no label does. Bins: nothing is shared."""
    tokens = ("--set", f"model.pixels_per_token={pixels_per_token}")
    tokens += ("--set", "model.conditions=false")  # one pixel a token is told nothing
    model, *_ = training_of(1, survey, tmp_path / "1", *tokens)
    rows = model.torch_model.embedding_layer.embed_map.tolist()
    pixels = [1] * 7514 if pixels_per_token == 1 else list(range(1, 7515))
    assert rows == [0, *pixels, *range(7515, 7520)] == model.embed_map.tolist()


def test_stage_2_trains_on_the_first_half_of_observed_spectra(survey, dataset, start, tmp_path):
    model, data, training, validation, *_ = training_of(2, survey, tmp_path / "2", *start)
    assert_pixels(model, data, dataset, "first_half")
    augmentation, options = data.augment.func.__self__, data.augment.keywords
    assert (augmentation.snr, options["pixels"]) == ((50, 500), slice(0, 3757))
    assert_spectra(data, dataset.train.read("observed", pixels="first_half"))
    assert_labels(model, data, dataset, slice(None), range(5))
    assert sorted([*training, *validation]) == list(range(STARS)) and len(validation) == 20


def test_stage_3_trains_on_a_chunk_of_a_hundred_iron_rich_stars(survey, dataset, start, tmp_path):
    model, data, training, validation, *_ = training_of(3, survey, tmp_path / "3", *start)
    rows = dataset.train.iron_rich_stars()
    assert (dataset.train.labels[rows, 4] > -1).all() and len(rows) == 100
    assert_spectra(data, dataset.train.read("observed", rows, "fe_chunk"))
    assert_labels(model, data, dataset, rows, [4])
    assert (training.tolist(), validation.tolist()) == (list(range(100)), [])
    assert_pixels(model, data, dataset, "fe_chunk")
    assert data.augment is None


def test_folds_of_stage_3_validate_on_some_of_the_hundred(survey, start, tmp_path):
    folds = ("--set", "selection.name=folds")
    _, data, training, validation, *_ = training_of(3, survey, tmp_path / "3", *start, *folds)
    assert (len(data), len(training), len(validation)) == (100, 80, 20)
    assert sorted([*training, *validation]) == list(range(100))


def test_the_published_stage_3_validates_on_metal_poor_stars(survey, dataset, start, tmp_path):
    published = ("--set", "selection.name=published")
    model, data, training, validation, *_ = training_of(
        3, survey, tmp_path / "3", *start, *published
    )
    iron = dataset.train.labels[:, 4]
    poor = np.flatnonzero(iron < -1)
    assert 1 <= len(poor) < 500 and (len(training), len(validation)) == (100, len(poor))
    rows = np.concatenate([dataset.train.iron_rich_stars(), poor])
    assert_labels(model, data, dataset, rows, [4])
    assert (iron[rows[training]] > -1).all() and (iron[rows[validation]] < -1).all()
    assert_spectra(data, dataset.train.read("observed", rows, "fe_chunk"))


@pytest.mark.parametrize("selection", ["fixed", "folds", "published"])
def test_the_baseline_trains_on_the_stars_of_stage_3(survey, dataset, tmp_path, selection):
    rows = dataset.train.iron_rich_stars()
    seen = []

    def note(network, *given, validation, epochs, **options):
        seen.append((given, validation))
        raise Started

    choice = ("--set", f"selection.name={selection}")
    with mock.patch.object(tasks, "train_baseline", note), pytest.raises(Started):
        common = ("--profile", "smoke", "--data", survey, "--output", tmp_path / "nn", *choice)
        run_here(f"training/{STAGES['baseline']}", *common)
    ((flux, labels, errors), validation), *_ = seen
    chunk = dataset.train.read("observed", rows, "fe_chunk")
    part = slice(None)
    if selection == "folds":
        part, others = stages.five_folds(100, seed=0)[0]
        np.testing.assert_array_equal(validation[0], chunk[others])
    elif selection == "published":
        np.testing.assert_array_equal(
            validation[0], dataset.test.read("observed", None, "fe_chunk")
        )
    else:
        assert validation is None
    np.testing.assert_array_equal(flux, chunk[part])
    np.testing.assert_array_equal(labels, dataset.train.labels[rows, 4][part])
    np.testing.assert_array_equal(errors, dataset.train.label_errors[rows, 4][part])


@pytest.mark.parametrize(
    ("options", "kind"), [({}, "observed"), ({"kind": "synthetic"}, "synthetic")]
)
def test_fit_reads_observed_spectra_unless_told_otherwise(dataset, start, options, kind):
    model = StellarPerceptron.load(start[1], device="cpu")

    def begin(model, stars, *_, **__):
        raise Started(stars)

    with mock.patch.object(stages, "fit_model", begin), pytest.raises(Started) as started:
        model.fit(dataset, pixels="fe_chunk", **options)
    (stars,) = started.value.args
    expected = dataset.train.read(kind, slice(0, 9), "fe_chunk")
    np.testing.assert_array_equal(stars.read(slice(0, 9)), expected)
    assert (len(stars), list(stars.label_names)) == (STARS, list(dataset.label_names))


# --- after the training ---------------------------------------------------------------------------


@pytest.mark.parametrize("which", [1, 2])
def test_errors_are_calibrated_on_validation_stars(survey, dataset, start, tmp_path, which):
    given = {}

    def note(model, spectra, wavelengths, labels, label_errors, **_):
        given.update(spectra=spectra, labels=labels, errors=label_errors)
        raise Started

    arguments = ("--profile", "smoke", "--data", survey, "--output", tmp_path / "out")
    with (
        mock.patch.object(stages, "train_stage"),
        mock.patch.object(StellarPerceptron, "calibrate", note),
        pytest.raises(Started),
    ):
        run_here(f"training/{STAGES[which]}", *arguments, *(start if which == 2 else ()))
    profile = read_profile(SMOKE, f"stage_{which}")
    rows = stages.split_rows(dataset, profile)[1]
    spectra = dataset.train.read(profile.data.kind, rows, profile.data.pixels)
    np.testing.assert_array_equal(given["spectra"], spectra)
    np.testing.assert_array_equal(given["labels"], dataset.train.labels[rows])
    if which == 2:
        np.testing.assert_array_equal(given["errors"], dataset.train.label_errors[rows])
    else:  # synthetic spectra have exactly these labels
        assert given["errors"] is None


def test_stage_2_rehearses_what_stage_1_has_shown(survey, dataset, start, tmp_path):
    common = ("--profile", "smoke", "--data", survey, "--output", tmp_path / "2", *start)
    with (
        mock.patch.object(stages, "train_stage", side_effect=Started) as train,
        pytest.raises(Started),
    ):
        run_here(f"training/{STAGES[2]}", *common)
    model, data = train.call_args.args[0], train.call_args.kwargs["rehearsal"]
    assert_spectra(data, dataset.train.read("synthetic"))
    assert_pixels(model, data, dataset, "full")
    assert_labels(model, data, dataset, slice(None), range(5), errors=False)


def test_only_stage_2_rehearses(survey, tmp_path):
    given = ("--profile", "smoke", "--data", survey, "--output", tmp_path / "1")
    kind = ("--set", "data.kind=observed", "--set", "data.synthetic_share=0.1")
    assert "synthetic_share is for stage 2 only" in run_here(f"training/{STAGES[1]}", *given, *kind)


def test_a_stage_forgets_the_calibration_of_the_stage_before(survey, dataset, start, tmp_path):
    model, data, training, validation, profile, process, output = training_of(
        2, survey, tmp_path / "2", *start
    )
    model.calibration = Calibration({"TEFF": (1.0, 0.0)})
    model.epoch = 7
    with mock.patch.object(stages, "train") as train:
        stages.train_stage(
            *(model, data, training, validation, profile, process, output),
            inputs={},
            rehearsal=data,
        )
    assert train.called and not model.calibration.factors and model.epoch == 0


# Mean losses of the folds by epoch: two of them differ only if they are not rounded.
LOSSES = np.array([0.9, 0.5, 0.4999999, 0.7])


@pytest.mark.parametrize(
    ("selection", "epoch", "factor"), [("folds", 3, 3.0), ("last", 4, 4.0), ("fixed", 4, 1.0)]
)
def test_stage_3_takes_the_epoch_of_the_least_mean_loss_or_the_last(
    survey, start, tmp_path, selection, epoch, factor
):
    epochs = []

    def train(model, data, training, validation, profile, *_, **__):
        model.epoch = profile.training.epochs
        epochs.append((len(training), model.epoch))
        losses = LOSSES + 0.1 * (len(epochs) - 3)
        pulls = [1.0, 4.0, 9.0, 16.0]  # their scatter is another matter
        columns = zip(losses, pulls, strict=True)
        return [{"val_loss": loss, "val_squared_pull": pull} for loss, pull in columns]

    arguments = ("--profile", "smoke", "--data", survey, "--output", tmp_path / "3", *start)
    choice = ("--set", f"selection.name={selection}", "--set", "training.epochs=4")
    with mock.patch.object(stages, "train_stage", train):
        assert not run_here(f"training/{STAGES[3]}", *arguments, *choice)
    assert epochs == [(80, 4)] * (5 if selection != "fixed" else 0) + [(100, epoch)]
    model = StellarPerceptron.load(tmp_path / "3" / "selected", device="cpu")
    assert model.epoch == epoch
    assert model.calibration.factor(["FE_H"], np.array([500])).item() == pytest.approx(factor)


def test_the_baseline_takes_the_epoch_of_the_least_mean_error(survey, tmp_path):
    epochs = []

    def train(network, flux, *_, **options):
        network.epoch = options["epochs"]
        epochs.append((len(flux), network.epoch))
        return pd.DataFrame({"val_rmse": LOSSES * (1 + 0.1 * len(epochs))})

    arguments = ("--profile", "smoke", "--data", survey, "--output", tmp_path / "nn")
    folds = ("--set", "selection.name=folds", "--set", "training.epochs=4")
    with mock.patch.object(tasks, "train_baseline", train):
        assert not run_here(f"training/{STAGES['baseline']}", *arguments, *folds)
    assert epochs == [(80, 4)] * 5 + [(100, 3)]
    assert BaselineNetwork.load(tmp_path / "nn" / "selected").epoch == 3
