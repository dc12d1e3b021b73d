"""What the report says about errors, masks and baselines, on tables made up for it."""

import numpy as np
import pandas as pd
import pytest

from stellarperceptron.data.flags import Flag
from stellarperceptron.evaluation.summary import (
    comparison_sentence,
    errors_text,
    masking_text,
    real_stars_text,
)


def make_errors(catalogue: float) -> pd.DataFrame:
    """[Fe/H] of 4,000 stars, off by 0.03 dex in the prediction and by 0.04 dex in the catalogue."""
    random = np.random.default_rng(0)
    table = {
        "FE_H_pred": random.normal(0, 0.03, 4000),
        "FE_H_err": np.full(4000, 0.03),
        "FE_H_actual": random.normal(0, 0.04, 4000),
        "FE_H_actual_err": np.full(4000, catalogue),
    }
    return pd.DataFrame(table)


def test_errors_are_shown_with_and_without_the_catalogues():
    (row,) = errors_text(make_errors(0.04)).to_dict("records")
    assert (row["median error, predicted"], row["of the catalogue"]) == ("0.030", "0.040")
    assert float(row["std of pulls, predicted error alone"]) == pytest.approx(5 / 3, rel=0.03)
    assert float(row["std of pulls, with the catalogue's"]) == pytest.approx(1, rel=0.03)
    share = float(row["within 2σ, with the catalogue's"].removesuffix(" %"))
    assert share == pytest.approx(95.4, abs=1.5)


def test_published_tables_have_no_errors_of_the_catalogue():
    (row,) = errors_text(make_errors(0.04).drop(columns="FE_H_actual_err")).to_dict("records")
    assert row["std of pulls, with the catalogue's"] == row["of the catalogue"] == "–"
    assert float(row["std of pulls, predicted error alone"]) > 1.5


def make_masking(growth: dict[str, list[float]]) -> pd.DataFrame:
    """Growth of the errors of [Mg/Fe] and [Fe/H] by mask."""
    rows = [
        {"masked": masked, "label": label, "growth": value}
        for masked, values in growth.items()
        for label, value in zip(("MG_FE", "FE_H"), values, strict=True)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [(1.5, 1.2, "yes"), (1.2, 1.5, "no"), (0.99, 0.9, "no"), (1.001, 1.0, "no")],
)
def test_an_element_is_measured_in_its_lines_or_not(own, other, expected):
    table = make_masking({"MG_FE": [own, other], "pixels at random": [1.0, 1.01]})
    text = masking_text(table).set_index("without pixels of")
    assert text["own grows most"].tolist() == [expected, "–"]
    assert text.loc["[Mg/Fe]", "[Mg/Fe]"] == f"× {own:.2f}"


def test_the_sentence_counts_the_labels():
    values = {"stage 2": [1.0, 3.0], "regression": [2.0, 2.0], "network": [3.0, 4.0]}
    rows = [
        {"method": method, "label": label, "mad_std": value, "rmse": 1.0}
        for method, pair in values.items()
        for label, value in zip(("TEFF", "FE_H"), pair, strict=True)
    ]
    sentence = comparison_sentence(pd.DataFrame(rows), "stage 2", ["regression", "network"])
    # Equal is not better.
    assert "in 1 of 2 labels by mad_std and in 0 of 2 labels by RMSE" in sentence


def test_real_stars_are_told_with_their_flags():
    row = {"star": "2M0", "kind": "apStar", "snr": 150.0, "TEFF": 3900.0, "TEFF_error": 80.0}
    row |= {"class": "giant", "rv_class": np.nan}
    stars = pd.DataFrame([row | {"flags": 0}, row | {"flags": int(Flag.SHIFTED | Flag.EDGE)}])
    assert real_stars_text(stars)["flags"].tolist() == ["–", "SHIFTED, EDGE"]
