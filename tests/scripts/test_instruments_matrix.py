"""The matrix of errors: models by instruments."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from chain import load

from stellarperceptron.instruments import APOGEE, GALAH, MOONS_H


@pytest.fixture(scope="module")
def script():
    return load("results/instruments/matrix.py")


def table():
    rows = [
        {"trained on": model, "tested on": instrument, "label": label, "mad_std": s, "bias": -0.1}
        for s, (model, instrument) in enumerate(
            [("one", "APOGEE"), ("all", "APOGEE"), ("all", "R 6,300")], start=1
        )
        for label in ("TEFF", "FE_H")
    ]
    return pd.DataFrame(rows)


def test_spectra_are_interpolated_onto_pixels_but_not_across_gaps(script):
    wavelength = np.delete(MOONS_H.wavelength, slice(300, 400))
    flux, pixels = script.onto_pixels(APOGEE, wavelength, np.log(wavelength)[None])
    assert pixels[0] >= wavelength[0] and pixels[-1] <= wavelength[-1]
    gap = (pixels > wavelength[299]) & (pixels < wavelength[300])
    assert np.isnan(flux[0, gap]).all()
    np.testing.assert_allclose(flux[0, ~gap], np.log(pixels[~gap]), rtol=1e-6)


def test_table_for_readers_has_a_column_for_each_instrument(script):
    text = script.text_table(table())
    assert list(text) == ["label", "trained on", "APOGEE", "R 6,300"]
    assert text.iloc[0].tolist()[:3] == ["TEFF", "one", "1.0 (−0.1)"]
    assert text["R 6,300"].tolist().count("") == 2


def test_figure_has_a_panel_for_each_label(script):
    figure = script.draw(table())
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 2
    texts = [len(axes.texts) for axes in figure.axes if axes.get_title()]
    assert texts == [3, 3]


def test_test_instruments_lie_within_the_emulators_range(script):
    for name, instrument in script.INSTRUMENTS["APOGEE"].items():
        assert instrument.wavelength[0] > 15_141 and instrument.wavelength[-1] < 16_969, name
    for name, instrument in script.INSTRUMENTS["GALAH"].items():
        distance = np.abs(np.subtract.outer(instrument.wavelength, GALAH.wavelength)).min(axis=1)
        assert distance.max() < 5, name  # the cores of Balmer lines are left out of GALAH


def test_models_of_different_instruments_are_refused(script):
    one, other = (SimpleNamespace(instrument=i) for i in (APOGEE, GALAH))
    assert script.emulated({"one": other}) == "GALAH"
    with pytest.raises(ValueError, match="APOGEE, GALAH: give models of one"):
        script.emulated({"one": one, "other": other})
