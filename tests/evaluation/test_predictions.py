"""Tables of predictions: what is written, read and refused, and the text made of them."""

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from stellarperceptron.evaluation.predictions import (
    about_predictions,
    metrics_of_predictions,
    read_astronn,
    read_predictions,
    require_same_stars,
    write_predictions,
)
from stellarperceptron.evaluation.tables import (
    PAPER_FE_H,
    PAPER_TABLE_1,
    giants_table,
    giants_text,
    iron_table,
    iron_text,
)

LABELS = ("TEFF", "LOGG", "O_FE", "MG_FE", "FE_H")


def make_table(offset=0.1, stars=60, seed=0, labels=LABELS):
    """Predictions that are off by a constant, in units of the labels' spread."""
    random = np.random.RandomState(seed)
    table = {"ID": [f"star{i}" for i in range(stars)]}
    scale = {"TEFF": 500.0, "LOGG": 1.2, "FE_H": 0.7}
    zero = {"TEFF": 4700.0, "LOGG": 2.3, "FE_H": -0.6}
    for label in labels:
        actual = zero.get(label, 0.1) + scale.get(label, 0.1) * random.normal(size=stars)
        table[f"{label}_pred"] = actual + offset * scale.get(label, 0.1)
        table[f"{label}_err"] = np.full(stars, 0.1 * scale.get(label, 0.1))
        table[f"{label}_actual"] = actual
        table[f"{label}_actual_err"] = np.full(stars, 0.01)
    return pd.DataFrame(table)


def test_tables_survive_writing(tmp_path):
    table = make_table()
    table.loc[3, "O_FE_actual"] = np.nan
    write_predictions(table, tmp_path / "a.csv", {"epoch": 5})
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "a.csv", "make"), table, rtol=1e-6)
    assert about_predictions(tmp_path / "a.csv") == {"epoch": 5}


def test_names_stay_text(tmp_path):
    table = make_table().assign(ID=[f"{i:04d}" for i in range(60)])
    write_predictions(table, tmp_path / "a.csv", {})
    assert read_predictions(tmp_path / "a.csv", "make")["ID"][7] == "0007"


def test_missing_tables_name_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="made by: python evaluate"):
        read_predictions(tmp_path / "a.csv", "python evaluate.py")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no table of predictions"),
        ("A,B\n1,2\n", "<LABEL>_pred"),
        ("FE_H_pred,FE_H_err\n1,2\n", "FE_H_actual"),
        ("FE_H_pred,FE_H_err,FE_H_actual\n1,2,3\n1,x,3\n", "row 3: 'x' is no FE_H_err"),
    ],
)
def test_other_files_are_refused(tmp_path, text, named):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=named) as error:
        read_predictions(tmp_path / "a.csv", "make")
    assert "a.csv" in str(error.value)


def test_tables_must_predict_what_is_asked_for(tmp_path):
    write_predictions(make_table(labels=["FE_H"]), tmp_path / "a.csv", {})
    with pytest.raises(ValueError, match=r"a\.csv .* lacks LOGG_pred, LOGG_err, LOGG_actual"):
        read_predictions(tmp_path / "a.csv", "make", ["FE_H", "LOGG"])


def test_the_same_stars_are_accepted_with_and_without_names():
    table = make_table()
    require_same_stars({"a": table, "b": table.drop(columns="ID"), "c": table.round(6)})


def test_other_stars_are_refused():
    table = make_table()
    swapped = table.iloc[[1, 0, *range(2, 60)]].reset_index(drop=True)
    for other, named in ((table[:-1], "60 against 59"), (swapped, "row 2: ID"), (None, "FE_H")):
        if other is None:
            other = table.assign(FE_H_actual=table["FE_H_actual"].where(table.index != 4, 9.0))
        with pytest.raises(ValueError, match=f"a.csv and b.csv.*{named}"):
            require_same_stars({"a.csv": table, "b.csv": other})


def test_intervals_hold_the_metric():
    table = make_table(stars=400)
    table["FE_H_pred"] += 0.2 * np.random.RandomState(1).normal(size=400)
    metrics = metrics_of_predictions(table, ["FE_H"], intervals=True).set_index("subset")
    for name in ("bias", "mad_std", "rmse"):
        value, low, high = metrics.loc["all", [name, f"{name}_low", f"{name}_high"]]
        assert low < value < high
        few = metrics.loc["giants"]
        assert high - low < few[f"{name}_high"] - few[f"{name}_low"]


def test_table_1_is_of_giants_and_has_the_papers_numbers():
    before, after = make_table(0.5), make_table(0.1)
    table = giants_table({"pretrained": before, "finetuned": after})
    row = table[(table["model"] == "finetuned") & (table["label"] == "TEFF")].iloc[0]
    giants = (before["LOGG_actual"] > 1) & (before["LOGG_actual"] < 3.5)
    assert row["stars"] == giants.sum() < 60
    assert row["rmse"] == pytest.approx(50.0) and row["catalogue_error"] == pytest.approx(0.01)
    assert row["paper_rmse"] == PAPER_TABLE_1["finetuned"]["TEFF"]["rmse"]
    text = giants_text(table).set_index("")
    assert text.loc["fine-tuned, first half, here", "Teff [K]"] == "0.0 / 50.0"
    assert text.loc["fine-tuned, first half, paper", "Teff [K]"] == "19.1 / 37.7"


def test_table_1_has_the_papers_numbers_only_where_the_paper_has_them():
    before, after = (make_table(offset, labels=("LOGG", "C_FE")) for offset in (0.5, 0.1))
    text = giants_text(giants_table({"pretrained": before, "finetuned": after})).set_index("")
    assert text.columns.tolist() == ["log g [dex]", "[C/Fe] [dex]"]
    assert text.loc["fine-tuned, first half, paper"].tolist() == ["0.056 / 0.092", "–"]
    assert text.loc["fine-tuned, first half, here", "[C/Fe] [dex]"] == "0.000 / 0.010"
    new = {name: t.assign(LOGG_actual=2.0) for name, t in (("pretrained", before),)}
    new["pretrained"] = new["pretrained"].drop(columns=["LOGG_pred", "LOGG_err"])
    rows = giants_text(giants_table(new))[""].tolist()
    assert rows == ["pre-trained on synthetic, here", "median error of the labels, here"]


def test_iron_table_has_both_subsets_beside_the_paper():
    tables = {key: make_table(0.1, labels=("LOGG", "FE_H")) for key in PAPER_FE_H}
    text = iron_text(iron_table(tables))
    assert text["RMSE"].str.startswith("0.070").all()
    assert text["RMSE, paper"].tolist() == ["0.158", "0.254", "0.210", "0.094"]
    assert text["at [Fe/H] < −1, paper"].tolist() == ["0.763", "0.902", "0.510", "0.232"]


# --- astroNN ------------------------------------------------------------------------------------


def write_catalogue(path, **changes):
    names = ["TEFF", "LOGG", "FE_H", "O_H", "MG_H"]
    columns = {name: np.array([1.0, 2.0, 3.0]) for name in names}
    columns |= {f"{name}_ERR": np.array([0.3, 0.4, 0.1]) for name in names}
    columns["O_H"][1] = -9999.0
    Table({"APOGEE_ID": ["2MA ", "2MB ", "2MA "], **columns, **changes}).write(path)


def test_astronn_gives_labels_in_the_order_of_the_stars(tmp_path):
    write_catalogue(tmp_path / "a.fits", FE_H=[0.1, 0.2, 0.5])
    table = read_astronn(tmp_path / "a.fits", np.array(["2MC", "2MB", "2MA"]))
    assert table["TEFF"].tolist()[1:] == [2.0, 3.0]  # of two rows the one with the lesser error
    assert np.isnan(table["TEFF"][0]) and np.isnan(table["O_FE"][1])
    assert table["MG_FE"][2] == pytest.approx(2.5)
    assert table["MG_FE_error"][2] == pytest.approx(np.hypot(0.1, 0.1))


def test_other_catalogues_are_refused(tmp_path):
    Table({"APOGEE_ID": ["a"]}).write(tmp_path / "a.fits")
    with pytest.raises(ValueError, match=r"a\.fits is not the astroNN catalogue: it lacks TEFF"):
        read_astronn(tmp_path / "a.fits", np.array(["a"]))
    write_catalogue(tmp_path / "b.fits")
    with pytest.raises(ValueError, match="none of the 1 stars, such as 17"):
        read_astronn(tmp_path / "b.fits", np.array(["17"]))
