"""Metrics, on numbers whose metrics are known, and on the paper's own predictions."""

import numpy as np
import pandas as pd
import pytest

from stellarperceptron.evaluation.metrics import (
    METRICS,
    binned_rmse,
    bootstrap_interval,
    coverage,
    label_metrics,
    subsets,
    summarize,
)


def test_metrics_of_gaussian_residuals():
    random = np.random.default_rng(0)
    actual = random.uniform(-2, 0.5, size=20_000)
    predicted = actual + random.normal(0.1, 0.05, size=20_000)
    result = label_metrics(predicted, actual, np.full(20_000, 0.05))
    assert result["bias"] == pytest.approx(0.1, abs=2e-3)
    assert result["mad_std"] == pytest.approx(0.05, rel=0.02)
    assert result["rmse"] == pytest.approx(np.hypot(0.1, 0.05), rel=0.01)
    assert result["pull_std"] == pytest.approx(1.0, rel=0.02)


def test_calibration_of_right_errors():
    random = np.random.default_rng(1)
    result = label_metrics(random.normal(size=20_000), np.zeros(20_000), np.ones(20_000))
    assert result["within_1_sigma"] == pytest.approx(0.683, abs=0.01)
    assert result["within_2_sigma"] == pytest.approx(0.954, abs=0.01)


def test_errors_of_the_catalogue_add_in_quadrature():
    """Predictions are off by 3, the catalogue by 4: only both together explain the residuals."""
    random = np.random.default_rng(3)
    truth, three, four = np.zeros(20_000), np.full(20_000, 3.0), np.full(20_000, 4.0)
    predicted, catalogue = (random.normal(truth, sigma) for sigma in (three, four))
    four[::2], predicted[::2] = np.nan, 1e3  # their errors are unknown: they do not count
    result = label_metrics(predicted, catalogue, three, four)
    assert result["total_pull_std"] == pytest.approx(1, rel=0.02)
    assert result["total_within_1_sigma"] == pytest.approx(0.683, abs=0.015)
    assert result["total_within_2_sigma"] == pytest.approx(0.954, abs=0.01)
    kept = label_metrics(predicted[1::2], catalogue[1::2], three[1::2])
    assert kept["pull_std"] == pytest.approx(5 / 3, rel=0.02) and "total_pull_std" not in kept


def test_catalogue_errors_need_predicted_ones():
    with pytest.raises(ValueError, match="label_error needs the predicted errors"):
        label_metrics([1.0], [1.0], label_error=[0.1])


def test_coverage_counts_the_stars_within():
    residual, error = np.array([0.5, -1.5, 2.5, 0.0]), np.array([1.0, 1.0, 1.0, 2.0])
    np.testing.assert_array_equal(coverage(residual, error, [0, 1, 2, 3]), [0, 0.5, 0.75, 1])
    assert np.isnan(coverage(residual[:0], error[:0], [1.0])).all()


def test_rmse_by_bins():
    actual, predicted = [-2.0, -1.6, -1.5, 0.0, np.nan, 3.0], [-1.0, -1.6, -1.7, np.nan, 0.0, 0.0]
    table = binned_rmse(predicted, actual, [-2.0, -1.5, -1.0, 0.5])
    assert table["stars"].tolist() == [2, 1, 0]
    np.testing.assert_allclose(table["rmse"], [0.5**0.5, 0.2, np.nan])


def test_missing_labels_are_left_out():
    result = label_metrics([1.0, np.nan, 3.0], [0.0, 1.0, np.nan])
    assert result["stars"] == 1 and result["rmse"] == 1.0


def test_no_stars_give_nan():
    assert np.isnan(label_metrics([], [], [])["rmse"])


def test_bootstrap_covers_the_standard_error_of_the_mean():
    residual = np.random.default_rng(2).normal(size=400)
    low, high = bootstrap_interval(residual, np.mean, draws=500)
    assert (high - low) / 2 == pytest.approx(1 / 20, rel=0.2)


def test_bias_is_the_median():
    assert label_metrics([1.0, 2.0, 30.0], [0.0, 0.0, 0.0])["bias"] == 2.0


def test_limits_of_the_subsets_are_outside():
    actual = pd.DataFrame({"LOGG": [1.0, 1.01, 3.49, 3.5], "FE_H": [-1.0, -1.01, -0.99, 0.0]})
    found = subsets(actual)
    assert found["giants"].tolist() == [False, True, True, False]
    assert found["[Fe/H] < -1"].tolist() == [False, True, False, False]


def test_subsets_are_the_papers():
    actual = pd.DataFrame({"LOGG": [0.5, 2.0, 4.5, np.nan], "FE_H": [-1.5, -0.5, -1.2, 0.0]})
    predicted = pd.DataFrame({"FE_H": actual["FE_H"] + [1.0, 2.0, 3.0, 4.0]})
    table = summarize(predicted, actual, ["FE_H"]).set_index("subset")
    assert table["stars"].to_dict() == {"all": 4, "giants": 1, "[Fe/H] < -1": 2}
    assert table.loc["giants", "rmse"] == pytest.approx(2.0)


def test_other_stars_are_refused():
    with pytest.raises(ValueError, match="2 predictions"):
        summarize(pd.DataFrame({"A": [1, 2]}), pd.DataFrame({"A": [1]}))


PUBLISHED = {
    "NN_pred_true_may28_4_987_138": (0.158, 0.763, 0.072, 1.15),
    "1_basemodel_synthetic_epoch325_fehpredictions": (0.254, 0.902, 0.206, 3.75),
    "2_realfinetune_firsthalf_epoch90_fehpredictions": (0.210, 0.510, 0.135, 2.25),
    "3_fefinetune_chunk_epoch120_fehpredictions": (0.094, 0.232, 0.056, 1.43),
}


@pytest.mark.reference
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_numbers_follow_from_its_predictions(shared, name):
    table = pd.read_csv(shared / "published" / f"{name}.csv")
    rmse, poor_rmse, scatter, pulls = PUBLISHED[name]
    predicted = table.rename(columns={"FE_H_pred": "FE_H", "FE_H_err": "FE_H_error"})
    actual = pd.DataFrame({"FE_H": table["FE_H_actual"]})
    result = summarize(predicted, actual).set_index("subset")
    assert result.loc["all", "stars"] == 25_516
    assert result.loc["[Fe/H] < -1", "stars"] == 594
    assert result.loc["all", "rmse"] == pytest.approx(rmse, abs=6e-4)
    assert result.loc["[Fe/H] < -1", "rmse"] == pytest.approx(poor_rmse, abs=6e-4)
    assert result.loc["all", "mad_std"] == pytest.approx(scatter, abs=6e-4)
    assert result.loc["all", "pull_std"] == pytest.approx(pulls, abs=6e-3)


def test_metrics_are_functions_of_residuals():
    assert {name: metric(np.array([1.0, -1.0])) for name, metric in METRICS.items()} == {
        "bias": 0.0,
        "mad_std": pytest.approx(1.4826, rel=1e-4),
        "rmse": 1.0,
    }
