"""What an emulator refuses before it computes anything."""

import io
import zipfile

import numpy as np
import pytest
from astropy import units as u

from stellarperceptron.data.mock.emulator import Emulator


def test_a_file_that_declares_too_much_is_refused_by_its_header(tmp_path):
    header = io.BytesIO()
    about = {"descr": "<f8", "fortran_order": False, "shape": (10**5, 10**5)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(tmp_path / "large.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("nominal/mean.npy", header.getvalue() + bytes(1000))
    with pytest.raises(ValueError, match=r"large\.npz .* declares 10000000000 values .* at most 1"):
        Emulator.load("nominal", tmp_path / "large.npz")


@pytest.mark.parametrize("resolution", [0.0, -22500.0, np.nan, np.ma.masked])
def test_impossible_resolutions_are_refused(resolution):
    nominal = Emulator.load("nominal")
    with pytest.raises(ValueError, match="not above zero"):
        nominal.project(nominal.wavelength[:3], resolution)


@pytest.mark.parametrize(
    "missing",
    [np.ma.array([4600.0, -9999.0], mask=[0, 1]), [4600, None], [4600, -9999], [4600, 9999]],
)
@pytest.mark.parametrize("extrapolate", ["error", "clip"])
def test_missing_label_is_refused_by_name(missing, extrapolate):
    nominal = Emulator.load("nominal")
    labels = {"TEFF": missing, "LOGG": 2.5, "FE_H": 0.0}
    with pytest.raises(ValueError, match="TEFF"):
        nominal.labels(labels, extrapolate)


def test_label_in_another_unit_is_refused_by_name():
    with pytest.raises(ValueError, match="TEFF has the unit 'm'"):
        Emulator.load("nominal").labels({"TEFF": 4600 * u.m, "LOGG": 2.5, "FE_H": 0.0})


def test_unknown_emulator_is_refused():
    with pytest.raises(ValueError, match="nominal"):
        Emulator.load("martian")
