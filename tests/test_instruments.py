"""Instruments: their grids, the names of their pixels, and what files hold of them."""

import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from astropy import units as u

from stellarperceptron.data.apogee.continuum import normalize_as
from stellarperceptron.data.wavelengths import vacuum_to_air
from stellarperceptron.instruments import (
    APOGEE,
    GAIA_RVS,
    GALAH,
    IGRINS_H,
    INSTRUMENTS,
    LOW_RESOLUTION,
    MOONS_H,
    instrument,
)
from stellarperceptron.instruments.spectrograph import Continuum, Instrument, some_chips

GRID = np.linspace(8460.0, 8700.0, 2401)


def spot(**changes):
    """An optical instrument of two arms that nobody has built."""
    parts = {
        "chips": {"low": (0, 1200), "high": (1200, 2401)},
        "ranges": {"triplet": (300, 2100)},
        "resolving_power": np.linspace(18_000.0, 22_000.0, 2401),
        "continuum": Continuum(order=2, clip_low=3.0),
        "valid_flux": (0.0, 1.5),
    }
    return Instrument("SPOT", GRID, **(parts | changes))


# --- pixels ---------------------------------------------------------------------------------------


def test_apogee_is_the_survey():
    assert len(APOGEE) == 7514
    assert {name: chip.stop for name, chip in APOGEE.chips.items()} == {
        "blue": 3028,
        "green": 5523,
        "red": 7514,
    }
    assert APOGEE.log_step == 6e-6
    log = np.log10(APOGEE.wavelength)
    np.testing.assert_allclose(log, 4.179 + 6e-6 * APOGEE.grid_index, rtol=1e-14)


@pytest.mark.parametrize("offset", [-0.05, 0.05])
def test_pixel_names_by_wavelength(offset):
    names = APOGEE.pixel_names(APOGEE.wavelength[[0, 3027, 3028, 7513]] + offset)
    assert names.tolist() == ["syn_apogee0", "syn_apogee3027", "syn_apogee3028", "syn_apogee7513"]


def test_all_pixels_have_names():
    assert APOGEE.pixel_names().tolist() == [f"syn_apogee{i}" for i in range(7514)]
    assert spot().pixel_names()[-1] == "spot_2400"


@pytest.mark.parametrize("wavelength", [15000.0, 15820.0, 17100.0, np.nan])
def test_wavelengths_off_the_grid(wavelength):
    with pytest.raises(ValueError, match=r"on no APOGEE pixel: resample"):
        APOGEE.pixel_names(np.array([16000.0, wavelength]))


@pytest.mark.parametrize("one", [APOGEE, spot()], ids=lambda one: one.name)
def test_every_wavelength_of_a_chip_is_on_a_pixel(one):
    for chip in one.chips.values():
        grid = one.wavelength[chip]
        middle = (grid[1:] + grid[:-1]) / 2
        pixels = one.pixels_at(middle) - chip.start
        assert np.isin(pixels - np.arange(len(middle)), [0, 1]).all()


def test_pixel_ranges():
    assert APOGEE.pixel_range("fe_chunk") == slice(4107, 4619)
    assert spot().pixel_range("triplet") == slice(300, 2100)
    assert spot().pixel_range("high") == slice(1200, 2401)
    assert spot().pixel_range("full", 50) == slice(0, 50)


def test_unknown_pixel_range_names_the_known():
    with pytest.raises(ValueError, match=r"SPOT pixel range 'first_half': known are low, high, tr"):
        spot().pixel_range("first_half")


def test_named_pixel_range_belongs_to_the_whole_grid():
    with pytest.raises(ValueError, match="of SPOT belongs to 2401 pixels, not to 50"):
        spot().pixel_range("triplet", 50)


def test_chips_of_a_part_of_the_pixels():
    assert spot().chips_of(slice(1000, 1500)) == {"low": slice(0, 200), "high": slice(200, 500)}
    assert spot().chips_of(slice(2000, 2401)) == {"high": slice(0, 401)}
    assert spot().chips_of() == dict(spot().chips)


def test_encoding_spans_the_grid():
    assert spot().encoding_range == (8400.0, 8700.0)
    assert APOGEE.encoding_range == (15_000.0, 17_000.0)


def test_only_a_logarithmic_grid_has_a_step():
    assert spot().log_step is None
    assert Instrument("LOG", 10.0 ** (3.9 + 1e-5 * np.arange(300))).log_step == 1e-5


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", INSTRUMENTS.values(), ids=str)
def test_every_row_samples_its_lines_at_least_twice(one):
    width = one.wavelength / one.resolving_power / one.pixel_width
    assert (width > 2).all() and (width < 8).all()
    assert one.continuum is not None and one.valid_flux is not None
    assert Instrument.from_dict(one.to_dict()) is one


def test_galah_has_the_windows_of_hermes():
    ends = [vacuum_to_air(GALAH.wavelength[chip][[0, -1]]) for chip in GALAH.chips.values()]
    windows = [(4713, 4903), (5648, 5873), (6478, 6737), (7700, 7887)]
    np.testing.assert_allclose(ends, windows, atol=0.1)


def test_cores_of_balmer_lines_are_no_pixels_and_widen_none():
    air = vacuum_to_air(GALAH.wavelength)
    for core, half in ((4861.35, 1.2), (6562.79, 2.0)):
        off = np.abs(air - core)
        assert half - 0.05 < off.min() < half + 0.1
    np.testing.assert_allclose(GALAH.pixel_width / GALAH.wavelength, 9.67e-6, rtol=2e-3)
    with pytest.raises(ValueError, match="on no GALAH pixel"):
        GALAH.pixels_at([6564.6])


def test_pixels_that_a_chip_lacks_do_not_bend_its_continuum():
    slope = (LOW_RESOLUTION.wavelength / 5000.0) ** np.where(LOW_RESOLUTION.wavelength < 5900, 4, 1)
    level = 1 + 1e-3 * np.sin(LOW_RESOLUTION.wavelength)  # constant flux is no measurement
    flux = normalize_as(LOW_RESOLUTION, slope * level)
    np.testing.assert_allclose(flux, normalize_as(LOW_RESOLUTION, level), atol=1e-3)


def test_rvs_has_the_samples_of_the_archive():
    assert len(GAIA_RVS) == 2401
    assert GAIA_RVS.wavelength[[0, 1, -1]].round(6).tolist() == [8460.0, 8460.1, 8700.0]


def test_low_resolution_has_the_pixels_of_lamost_and_boss():
    lamost = 10 ** (3.5682 + 1e-4 * np.arange(3904))
    cores = np.array([3934.8, 3969.6, 4102.9, 4341.7, 4862.7, 6564.6])
    pixels = LOW_RESOLUTION.nearest_pixels(lamost)
    same = np.isclose(LOW_RESOLUTION.wavelength[pixels], lamost, rtol=1e-9)
    assert same.sum() == len(LOW_RESOLUTION) > 2700
    assert (np.abs(LOW_RESOLUTION.wavelength[:, None] - cores).min(axis=0) > 2.9).all()
    assert LOW_RESOLUTION.log_step == pytest.approx(1e-4)
    assert LOW_RESOLUTION.wavelength[[0, -1]].round().tolist() == [3850.0, 8690.0]


def test_instruments_of_the_h_band():
    assert MOONS_H.wavelength[[0, -1]].round().tolist() == [15_210.0, 16_410.0]
    assert IGRINS_H.wavelength[[0, -1]].round().tolist() == [14_900.0, 18_000.0]
    assert (np.diff(IGRINS_H.grid_index) == 1).all()  # no pixel is lost between two orders
    for order, chip in IGRINS_H.chips.items():
        middle = IGRINS_H.wavelength[chip].mean()
        assert order in ("order_120", "order_100") or order == f"order_{round(1.794e6 / middle)}"


# --- identity and files ---------------------------------------------------------------------------


def test_instruments_are_compared_by_value():
    assert spot() == spot() and hash(spot()) == hash(spot())
    assert spot() != APOGEE != "APOGEE"
    for change in (
        {"resolving_power": 20_000.0},
        {"continuum": None},
        {"pixel_prefix": "other"},
        {"ranges": {}},
        {"grid_index": np.arange(2401) + 7},
    ):
        assert spot() != spot(**change)


def test_a_grid_computed_elsewhere_is_the_same():
    rounded = np.nextafter(APOGEE.wavelength, np.inf)
    assert dataclasses.replace(APOGEE, wavelength=rounded) == APOGEE
    assert dataclasses.replace(APOGEE, wavelength=APOGEE.wavelength + 0.001) != APOGEE


@pytest.mark.parametrize("one", [APOGEE, spot(), Instrument("BARE", [1.0, 2.0, 4.0])], ids=str)
def test_files_hold_the_whole_instrument(one):
    assert Instrument.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one
    assert pickle.loads(pickle.dumps(one)) == one


def test_known_instruments_are_stored_by_name():
    assert APOGEE.to_dict() == {"name": "APOGEE", "pixels": 7514}


def test_nothing_can_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        APOGEE.wavelength[0] = 1
    with pytest.raises(TypeError):
        APOGEE.chips["blue"] = slice(0, 1)


def test_unknown_instrument_names_the_known():
    assert instrument("APOGEE") is INSTRUMENTS["APOGEE"] is APOGEE
    with pytest.raises(ValueError, match=r"unknown instrument 'APOGE' \(.*known are APOGEE"):
        instrument("APOGE")


def test_pytorch_is_not_needed():
    code = "import sys, stellarperceptron.instruments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "  ", None, 5])
def test_an_instrument_has_a_name(name):
    with pytest.raises(ValueError, match="needs a name"):
        Instrument(name, GRID)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"wavelength": GRID[::-1]}, "ascending"),
        ({"wavelength": np.repeat(GRID, 2)}, "ascending, each once"),
        ({"wavelength": np.append(GRID, np.nan)}, "finite"),
        ({"wavelength": GRID - 9000}, "positive"),
        ({"wavelength": [8460.0]}, "wavelengths"),
        ({"wavelength": GRID[None]}, "list of numbers"),
        ({"wavelength": "8460"}, "list of numbers"),
        ({"chips": {"low": (0, 1200)}}, "chips must follow one another from pixel 0 to 2401"),
        ({"chips": {"low": (0, 1200), "high": (1201, 2401)}}, "chips must follow"),
        ({"chips": {"low": (0, 2400), "high": (2400, 2401)}}, "two or more pixels"),
        ({"chips": {"low": (0, 2402)}}, "chip low 0:2402 does not lie within 0:2401"),
        ({"ranges": {"half": (5, 5)}}, "range half 5:5"),
        ({"ranges": {"half": 5}}, "iterable"),
        ({"resolving_power": 0.0}, "resolving_power"),
        ({"resolving_power": [20_000.0] * 5}, "resolving_power"),
        ({"encoding_range": (8700, 8400)}, "ascending"),
        ({"valid_flux": (0.0, np.inf)}, "ascending"),
        ({"grid_index": np.zeros(2401)}, "grid_index"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(ValueError, match=f"instrument SPOT: .*{message}"):
        Instrument("SPOT", **({"wavelength": GRID} | parts))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ([], "describes no instrument"),
        ({"name": "SPOT", "pixels": 2401}, "unknown instrument 'SPOT'"),
        ({"name": "APOGEE", "pixels": 8575}, "APOGEE .*has 8575 pixels"),
        ({"name": "SPOT"}, "a name and wavelengths are needed"),
        ({"name": "SPOT", "wavelength": [1.0, 2.0], "colour": 1}, "colour unknown"),
        ({"name": "SPOT", "wavelength": [1.0, 2.0], "continuum": {"degree": 1}}, "SPOT.*degree"),
        ({"name": "SPOT", "wavelength": [1.0, 2.0], "continuum": 4}, "SPOT"),
    ],
)
def test_descriptions_that_cannot_be_read(about, message):
    with pytest.raises(ValueError, match=message):
        Instrument.from_dict(about)


def test_wavelengths_may_have_any_unit_of_length():
    wavelength = np.linspace(8460.0, 8700.0, 2401)
    spot = Instrument("SPOT", (wavelength * u.AA).to(u.nm))
    np.testing.assert_allclose(spot.wavelength, wavelength, rtol=1e-12)
    few = (wavelength[[3, 7]] * u.AA).to(u.micron)
    assert spot.pixel_names(few).tolist() == ["spot_3", "spot_7"]


def test_some_chips_are_sampled_anew_or_stay_as_they_are():
    part = some_chips(GALAH, ("blue", "green"), "part", 28_000.0)
    assert list(part.chips) == ["blue", "green"]
    for chip in part.chips.values():
        assert np.median(np.diff(np.log(part.wavelength[chip]))) == pytest.approx(1 / 70_000)
    assert part.wavelength[0] > GALAH.wavelength[0]
    assert part.wavelength[-1] < GALAH.wavelength[GALAH.chips["green"]][-1]
    red = some_chips(GALAH, ("red",), "red")
    np.testing.assert_array_equal(red.wavelength, GALAH.wavelength[GALAH.chips["red"]])
    assert red.chips == {"red": slice(0, len(red))} and red.continuum == GALAH.continuum
