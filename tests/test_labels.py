"""The table of labels, and names as people write them."""

import dataclasses
import math

import pytest
from matplotlib.figure import Figure

from stellarperceptron.data.mock.stellar_labels import LABELS as EMULATOR_LABELS
from stellarperceptron.labels import (
    ALL_LABELS,
    LABELS,
    PUBLISHED_LABELS,
    Label,
    label,
    resolve_label_names,
)


def test_published_labels_come_first_in_their_order():
    assert PUBLISHED_LABELS == ("TEFF", "LOGG", "O_FE", "MG_FE", "FE_H") == ALL_LABELS[:5]


def test_the_table_holds_the_labels_of_the_emulators():
    assert set(ALL_LABELS) == set(EMULATOR_LABELS) and len(ALL_LABELS) == 20


@pytest.mark.parametrize("name", ALL_LABELS)
def test_every_label_is_complete(name):
    entry = LABELS[name]
    assert entry.name == name and entry.unit in ("K", "dex", "km/s")
    assert 0 < entry.typical_error < entry.range[1] - entry.range[0] < math.inf
    # The plain symbol is one of the ways in which people write the name.
    assert resolve_label_names([entry.plain], ALL_LABELS) == (name,)


def test_a_label_that_is_not_in_the_table_is_shown_under_its_name():
    entry = label("R_$PROCESS")
    assert (entry.plain, entry.unit, entry.digits) == ("R_$PROCESS", "", 3)
    figure = Figure()
    figure.text(0, 0, f"{entry.symbol} and {entry.symbol}")
    figure.canvas.draw()  # raises if the symbol were taken for broken mathtext


def test_numbers_have_the_digits_of_their_label():
    assert label("TEFF").format_residual(-12.345) == "−12.3"
    assert label("C_FE").format_residual(0.01234, "+") == "+0.012"
    assert label("TEFF").format_value(4567.8, 12.3) == "4568 ± 12"
    assert label("LOGG").format_value(2.346) == "2.35"
    assert label("FE_H").format_value(0.217, 0.0234) == "+0.22 ± 0.02"
    assert label("FE_H").format_value(math.nan) == label("TEFF").format_residual(None) == "–"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": " "}, "needs a name"),
        ({"range": (1.0, 1.0)}, "range .* of label X does not ascend"),
        ({"digits": -1}, "label X has -1 digits"),
    ],
)
def test_impossible_labels_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(Label("X", "X", "X"), **changes)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Teff", "TEFF"),
        ("T_eff", "TEFF"),
        ("logg", "LOGG"),
        ("log g", "LOGG"),
        ("log(g)", "LOGG"),
        ("[Fe/H]", "FE_H"),
        ("fe_h", "FE_H"),
        ("FE_H", "FE_H"),
        ("[Mg / Fe]", "MG_FE"),
    ],
)
def test_names_as_people_write_them(written, name):
    assert resolve_label_names([written], ALL_LABELS) == (name,)


def test_all_is_every_known_label():
    known = ("FE_H", "S_Y")
    assert resolve_label_names("all", known) == resolve_label_names(["all"], known) == known


def test_the_order_asked_for_is_kept():
    assert resolve_label_names(["fe_h", "Teff"], ALL_LABELS) == ("FE_H", "TEFF")


def test_an_exact_name_wins_over_one_that_is_alike():
    assert resolve_label_names(["FEH"], ("FE_H", "FEH")) == ("FEH",)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["TEFF", "Eu_Fe"], r"no label 'Eu_Fe'; known are FE_H, FEH, TEFF"),
        (["Teff", "TEFF"], "label TEFF is given twice"),
        (["Fe/H"], r"'Fe/H' could be FE_H or FEH"),
    ],
)
def test_unknown_names_list_the_known(names, words):
    with pytest.raises(ValueError, match=words):
        resolve_label_names(names, ("FE_H", "FEH", "TEFF"))
