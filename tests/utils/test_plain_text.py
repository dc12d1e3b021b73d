"""Tables that others open: no text is a formula, and nothing else changes."""

import numpy as np
import pandas as pd
import pytest

from stellarperceptron.evaluation.predictions import write_predictions
from stellarperceptron.utils.data_utils import plain_text


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1"])
def test_formulas_become_texts(tmp_path, text):
    assert plain_text(text) == f"'{text}"
    table = pd.DataFrame({"ID": [text, "VESTA"], "TEFF_pred": [-1.5, np.nan]})
    write_predictions(table, tmp_path / "a.csv", {})
    read = pd.read_csv(tmp_path / "a.csv")
    assert read["ID"].tolist() == [f"'{text}", "VESTA"]
    assert read["TEFF_pred"][0] == -1.5 and np.isnan(read["TEFF_pred"][1])


@pytest.mark.parametrize("value", ["2M00000000-0000000", "-9999", "+1e3", -3.5, None, ""])
def test_all_else_stays(value):
    assert plain_text(value) == value and type(plain_text(value)) is type(value)
