"""Several instruments as one: pixels, bins, and what files hold of it."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarperceptron.instruments import APOGEE, GAIA_RVS, GALAH, MOONS_H
from stellarperceptron.instruments.combined import combined, instrument_parts
from stellarperceptron.instruments.spectrograph import Instrument

ALL = combined([APOGEE, GALAH, GAIA_RVS])
SPOT = Instrument("SPOT", np.linspace(9000.0, 9100.0, 500), ranges={"middle": (100, 300)})


def test_pixels_are_those_of_all_in_ascending_order():
    assert ALL.name == "GALAH+GAIA_RVS+APOGEE"
    parts = [one.wavelength for one in (GALAH, GAIA_RVS, APOGEE)]
    np.testing.assert_array_equal(ALL.wavelength, np.concatenate(parts))
    names = ALL.pixel_names(APOGEE.wavelength[:2])
    first = len(GALAH) + len(GAIA_RVS)
    assert names.tolist() == [f"galah+gaia_rvs+apogee_{first + i}" for i in range(2)]
    assert ALL.encoding_range == (4700.0, 17_000.0)


@pytest.mark.parametrize("one", [APOGEE, GALAH, GAIA_RVS], ids=lambda one: one.name)
def test_each_part_is_a_range_with_its_chips_widths_and_resolving_power(one):
    within = ALL.pixel_range(one.name)
    np.testing.assert_array_equal(ALL.wavelength[within], one.wavelength)
    np.testing.assert_array_equal(ALL.pixel_width[within], one.pixel_width)
    np.testing.assert_array_equal(ALL.resolving_power[within], one.resolving_power)
    chips = {f"{one.name} {name}": chip for name, chip in one.chips.items()}
    assert ALL.chips_of(within) == chips


@given(pixels=st.integers(1, 5000))
def test_no_bin_mixes_two_instruments(pixels):
    bins = [set((ALL.grid_index[ALL.ranges[one.name]] // pixels).tolist()) for one in ALL.parts]
    assert sum(map(len, bins)) == len(set().union(*bins))


@pytest.mark.parametrize("pixels", [1, 3, 10, 32, 50, 100, 128, 256, 1024])
def test_bins_are_those_of_each_instrument_alone(pixels):
    for one in ALL.parts:
        bins = ALL.grid_index[ALL.ranges[one.name]] // pixels
        np.testing.assert_array_equal(
            bins - bins[0], one.grid_index // pixels - one.grid_index[0] // pixels
        )


def test_a_single_instrument_stays_what_it_is():
    assert combined([SPOT]) is SPOT and instrument_parts(SPOT) == (SPOT,)
    assert combined([combined([APOGEE, GALAH]), GAIA_RVS]) == ALL


def test_instruments_that_overlap_are_refused_by_name():
    with pytest.raises(ValueError, match=r"MOONS_H \(.* and APOGEE \(.* overlap|APOGEE.*MOONS_H"):
        combined([GALAH, MOONS_H, APOGEE])
    with pytest.raises(ValueError, match=r"SPOT .* and SPOT .* overlap"):
        combined([SPOT, SPOT])
    with pytest.raises(ValueError, match="no instrument"):
        combined([])


def test_a_resolving_power_that_one_part_lacks_is_unknown():
    assert combined([SPOT, APOGEE]).resolving_power is None


def test_files_hold_its_parts():
    one = combined([SPOT, APOGEE])
    about = one.to_dict()
    assert about["parts"] == [SPOT.to_dict(), {"name": "APOGEE", "pixels": 7514}]
    read = Instrument.from_dict(json.loads(json.dumps(about)))
    assert read == one == pickle.loads(pickle.dumps(one))
    assert read.parts == (SPOT, APOGEE) and "parts" not in SPOT.to_dict()
    assert one != combined([SPOT, GALAH])


@pytest.mark.parametrize("parts", [[], "APOGEE", [3], [{"name": "NOBODY", "pixels": 3}]])
def test_a_damaged_description_is_refused(parts):
    with pytest.raises(ValueError):
        Instrument.from_dict({"name": "A+B", "parts": parts})
