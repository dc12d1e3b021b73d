"""The baselines: a truth that each can learn, bad pixels, missing labels, seeds, errors."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import PolynomialFeatures

from stellarperceptron.evaluation.baselines import (
    BASELINES,
    Baseline,
    ConvolutionalNetwork,
    PixelNetwork,
    QuadraticRegression,
)
from stellarperceptron.evaluation.tables import compare_predictions, comparison_text

NAMES = ["TEFF", "FE_H"]
QUICK = {"least_steps": 200, "epochs": 1, "learning_rate": 5e-3, "progress": False}
SMALL = {
    "quadratic_regression": lambda: QuadraticRegression(sizes=((5, 0), (5, 3), (8, 5))),
    "pixel_network": lambda: PixelNetwork(widths=(32, 32), **QUICK),
    "convolutional_network": lambda: ConvolutionalNetwork(filters=(2, 4), widths=(32, 16), **QUICK),
}


def quadratic_stars(stars: int, noise: float = 0.0, seed: int = 0, pixels: int = 40):
    """Fluxes in three directions, and two labels that are quadratic in where the stars lie."""
    directions = np.random.default_rng(99).normal(size=(3, pixels)) / np.sqrt(pixels)
    random = np.random.default_rng(seed)
    place = random.normal(size=(stars, 3))
    flux = 1 + 0.1 * place @ directions + 1e-4 * random.normal(size=(stars, pixels))
    a, b, c = place.T
    labels = np.stack([4500 + 300 * a + 100 * a * b, -0.3 + 0.4 * b - 0.1 * c**2], axis=1)
    errors = noise * np.broadcast_to([300.0, 0.4], labels.shape)
    return flux, labels + errors * random.normal(size=labels.shape), errors


@pytest.fixture(params=list(SMALL))
def baseline(request) -> Baseline:
    return SMALL[request.param]()


def scatter(predicted: pd.DataFrame, labels: np.ndarray) -> np.ndarray:
    """RMSE of each label over its own scatter."""
    return (predicted[NAMES].to_numpy() - labels).std(axis=0) / labels.std(axis=0)


def test_all_baselines_are_tested():
    assert set(SMALL) == set(BASELINES)


def test_a_quadratic_truth_is_learned(baseline):
    flux, labels, errors = quadratic_stars(400)
    test, truth, _ = quadratic_stars(300, seed=1)
    baseline.fit(flux, labels, errors, NAMES)
    predicted = baseline.predict(test)
    assert predicted.columns.tolist() == [*NAMES, "TEFF_error", "FE_H_error"]
    exact = isinstance(baseline, QuadraticRegression)
    assert (scatter(predicted, truth) < (0.01 if exact else 0.25)).all()
    assert baseline.fit_seconds > 0 and baseline.predict_seconds > 0


def test_quadratic_regression_is_as_good_as_the_true_regression():
    flux, labels, errors = quadratic_stars(1500, noise=0.1)
    test, truth, _ = quadratic_stars(500, seed=1)
    found = scatter(
        SMALL["quadratic_regression"]().fit(flux, labels, errors, NAMES).predict(test), truth
    )
    # The same features without a choice to make: the three directions and their products.
    axes = np.linalg.svd(flux - flux.mean(axis=0), full_matrices=False)[2][:3].T
    features = PolynomialFeatures(2)
    ideal = LinearRegression().fit(features.fit_transform((flux - 1) @ axes), labels)
    answers = ideal.predict(features.transform((test - 1) @ axes))
    best = scatter(pd.DataFrame(answers, columns=NAMES), truth)
    assert (found < 2 * best).all() and (found < 0.03).all()


def test_bad_pixels_are_bridged(baseline):
    flux, labels, errors = quadratic_stars(400)
    random = np.random.default_rng(5)
    flux[random.random(flux.shape) < 0.02] = np.nan
    flux[:, 7] = np.nan  # a pixel that no star has
    flux[3] = np.nan  # a star without a pixel
    baseline.fit(flux, labels, errors, NAMES)
    test, truth, _ = quadratic_stars(200, seed=1)
    test[:, 7] = np.nan
    test[5] = np.nan
    predicted = baseline.predict(test)
    assert predicted.loc[5].isna().all() and predicted.drop(5).notna().all(axis=None)
    rest = np.delete(np.arange(200), 5)
    assert (scatter(predicted.loc[rest], truth[rest]) < 0.4).all()


def test_missing_labels_are_left_out(baseline):
    flux, labels, errors = quadratic_stars(400)
    random = np.random.default_rng(5)
    labels[random.random(400) < 0.3, 1] = np.nan
    errors = np.where(np.isnan(labels), np.nan, errors)
    labels[4] = np.nan
    baseline.fit(flux, labels, errors, NAMES)
    test, truth, _ = quadratic_stars(200, seed=1)
    assert (scatter(baseline.predict(test), truth) < 0.3).all()


def test_a_label_that_hardly_any_star_has_is_refused(baseline):
    flux, labels, errors = quadratic_stars(60)
    labels[9:, 1] = np.nan
    with pytest.raises(ValueError, match="9 stars with a good pixel have FE_H"):
        baseline.fit(flux, labels, errors, NAMES)


def test_shapes_are_checked(baseline):
    flux, labels, errors = quadratic_stars(60)
    with pytest.raises(ValueError, match="do not match"):
        baseline.fit(flux, labels[:, :1], errors, NAMES)
    with pytest.raises(ValueError, match="do not match"):
        baseline.fit(flux, labels, errors[:5], NAMES)
    baseline.fit(flux, labels, None, NAMES)
    with pytest.raises(ValueError, match="40 pixels"):
        baseline.predict(flux[:, :30])
    assert len(baseline.predict(flux[:0])) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALL))
def test_the_seed_makes_it_repeatable(name):
    flux, labels, errors = quadratic_stars(200, noise=0.1)
    one, two, other = (
        SMALL[name]().fit(flux, labels, errors, NAMES, seed).predict(flux) for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("name", ["quadratic_regression", "pixel_network"])
def test_predicted_errors_are_those_of_unseen_stars(name):
    flux, labels, _ = quadratic_stars(1200, noise=0.5)  # noise of which nothing is said
    test, truth, _ = quadratic_stars(600, noise=0.5, seed=1)
    predicted = SMALL[name]().fit(flux, labels, None, NAMES).predict(test)
    errors = predicted[["TEFF_error", "FE_H_error"]].to_numpy()
    pulls = (predicted[NAMES].to_numpy() - truth) / errors
    assert (np.abs(pulls.std(axis=0) - 1) < 0.15).all()


@pytest.mark.parametrize("name", ["pixel_network", "convolutional_network"])
def test_held_out_stars_choose_the_weights_and_are_not_learned(name):
    """Labels are noise: who learns stars by heart fits them, but not those held out."""
    random = np.random.default_rng(4)
    flux, labels = 1 + 0.1 * random.normal(size=(200, 40)), random.normal(size=(200, 2))
    model = SMALL[name]().fit(flux, labels, None, NAMES, seed=3)
    held = np.random.RandomState(3).permutation(200)[:20]
    predicted = model.predict(flux[held])
    value = (predicted[NAMES].to_numpy() - labels.mean(axis=0)) / labels.std(axis=0)
    error = predicted[["TEFF_error", "FE_H_error"]].to_numpy() / labels.std(axis=0)
    variance = np.square(error / model._error_scale.numpy())
    truth = ((labels - labels.mean(axis=0)) / labels.std(axis=0))[held]
    loss = 0.5 * (np.square(value - truth) / variance + np.log(variance)).sum(axis=1).mean()
    assert loss == pytest.approx(model.validation_loss, rel=1e-3)
    assert loss > 0.5 * np.square(truth).sum(axis=1).mean() - 0.3  # what a constant answer gives


def test_held_out_stars_choose_the_strength_of_the_ridge():
    """Labels are noise: any weights would only fit the stars that they were learned from."""
    random = np.random.default_rng(4)
    flux, labels = 1 + 0.1 * random.normal(size=(200, 40)), random.normal(size=(200, 2))
    model = SMALL["quadratic_regression"]().fit(flux, labels, None, NAMES)
    assert all(strength >= 100 for _, strength in model.chosen.values())


def test_known_label_errors_are_not_part_of_the_predicted_ones():
    flux, labels, errors = quadratic_stars(1200, noise=0.5)
    model = SMALL["pixel_network"]()
    told = model.fit(flux, labels, errors, NAMES).predict(flux)["TEFF_error"].median()
    untold = model.fit(flux, labels, None, NAMES).predict(flux)["TEFF_error"].median()
    assert told < 0.7 * untold


# --- comparison -----------------------------------------------------------------------------------


def write_table(path, scatter, seconds=None, labels=NAMES, stars=50, missing=()):
    """A table of predictions with so much scatter."""
    random = np.random.default_rng(int(1e4 * scatter))
    table = {"ID": [f"star{i}" for i in range(stars)]}
    for label in labels:
        table[f"{label}_actual"] = np.linspace(0, 1, stars)
        table[f"{label}_pred"] = table[f"{label}_actual"] + scatter * random.normal(size=stars)
        table[f"{label}_pred"][list(missing)] = np.nan
        table[f"{label}_err"] = np.full(stars, scatter)
    pd.DataFrame(table).to_csv(path, index=False)
    if seconds is not None:
        path.with_suffix(".json").write_text(f'{{"cpu_seconds": {{"fit": {seconds}}}}}')
    return path


def test_methods_are_compared_on_the_stars_that_all_have(tmp_path):
    files = {
        "good": write_table(tmp_path / "good.csv", 0.01, seconds=12),
        "poor": write_table(tmp_path / "poor.csv", 0.1, missing=[0, 1]),
    }
    result = compare_predictions(files, {"poor": 3.0})
    assert (result["stars"] == 48).all()
    assert result.loc[result["best_rmse"], "method"].unique().tolist() == ["good"]
    assert result.groupby("method")["cpu_seconds"].first().to_dict() == {"good": 12, "poor": 3}
    text = comparison_text(result)
    assert text.iloc[0]["[Fe/H] [dex]"].count("**") == 4
    assert "**" not in text.iloc[1].str.cat()


def test_tables_without_a_common_label_are_refused(tmp_path):
    files = {
        "one": write_table(tmp_path / "one.csv", 0.01, labels=["TEFF"]),
        "two": write_table(tmp_path / "two.csv", 0.1, labels=["FE_H"]),
    }
    with pytest.raises(ValueError, match="no label in common"):
        compare_predictions(files)
    with pytest.raises(ValueError, match="no subset 'dwarfs'"):
        compare_predictions({"one": files["one"]}, subset="dwarfs")
