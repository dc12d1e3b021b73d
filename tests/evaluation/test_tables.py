"""Tables of the report, on predictions made up for it."""

import numpy as np
import pandas as pd

from stellarperceptron.evaluation.tables import comparison_text, iron_bins_text


def test_iron_by_bins_marks_the_least():
    actual = np.array([-2.2, -2.3, -0.7, 0.2, 0.9])
    offsets = {"scratch": [0.5, 0.5, 0.1, 0.1, 9], "hundred": [0.2, 0.2, 0.3, 0.1, 9]}
    tables = {
        model: pd.DataFrame({"FE_H_actual": actual, "FE_H_pred": actual + offset})
        for model, offset in offsets.items()
    }
    text = iron_bins_text(tables)
    assert text["[Fe/H]"].iloc[[0, -1]].tolist() == ["−2.5 to −2.0", "+0.0 to +0.5"]
    assert text["stars"].tolist() == [2, 0, 0, 1, 0, 1]  # one star is richer than all bins
    scratch = text["network from scratch, 100 stars"]
    assert scratch.iloc[[0, 1, 3]].tolist() == ["0.500", "–", "**0.100**"]
    assert text["fine-tuned on 100 stars"].iloc[[0, 3]].tolist() == ["**0.200**", "0.300"]


def test_wall_time_is_called_so():
    values = {"label": "FE_H", "mad_std": 0.1, "rmse": 0.2, "best_mad_std": True}
    seconds = {"stage 2": 700.4, "regression": 13.0, "unknown": np.nan}
    rows = [
        {"method": name, "cpu_seconds": value, **values, "best_rmse": False}
        for name, value in seconds.items()
    ]
    text = comparison_text(pd.DataFrame(rows), wall=["stage 2", "unknown"])
    assert text["CPU s"].tolist() == ["700 (wall)", "13", "–"]
    assert text["[Fe/H] [dex]"].iloc[0] == "**0.100** / 0.200"
