"""Emulators of ranges beside the H band: from a grid to a file."""

import sys

import h5py
import numpy as np
import pytest
from chain import ROOT

FOLDER = ROOT / "dataset" / "mock_survey"
sys.path.insert(0, str(FOLDER))

import fit_emulator  # noqa: E402
import synthesize_grid  # noqa: E402
from spectral_ranges import RANGES  # noqa: E402

from stellarperceptron.data.mock.emulator import Emulator, read_emulators  # noqa: E402

HERMES = RANGES["hermes"]


def fake_spectrum(labels):
    """Lines whose depth depends on metallicity and temperature."""
    depth = 0.3 * 10 ** (0.3 * labels["FE_H"]) * (5000.0 / labels["TEFF"]) ** 2
    return (1 - depth * np.sin(np.arange(HERMES.pixels) / 40) ** 20).astype(np.float32)


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesize_grid, "prepare", lambda *a: fake_spectrum)
    path = tmp_path / "hermes_nominal.h5"
    options = ["--range", "hermes", "--spectra", "60", "--processes", "1", "--nice", "0"]
    synthesize_grid.main([*options, "--output", str(path)])
    return path


def run(monkeypatch, tmp_path, *options):
    output = ["--output", str(tmp_path / "e.npz"), "--figure", str(tmp_path / "e.png")]
    size = ["--components", "4", "--steps", "8"]
    monkeypatch.setattr(sys, "argv", ["fit_emulator.py", *options, *output, *size])
    fit_emulator.main()


def test_a_range_has_an_emulator_of_its_own(grid, tmp_path, monkeypatch):
    run(monkeypatch, tmp_path, "--range", "hermes", "--nominal", str(grid))
    emulator = Emulator.load("nominal", tmp_path / "e.npz")
    np.testing.assert_allclose(emulator.wavelength, HERMES.wavelength, rtol=1e-12)
    assert emulator.low[0] >= HERMES.least_teff and (tmp_path / "e.png").exists()
    labels = {"TEFF": 5000.0, "LOGG": 3.0, "FE_H": 0.0}
    wanted = fake_spectrum({"TEFF": 5000.0, "FE_H": 0.0})
    assert np.abs(emulator.flux(labels)[0].numpy() - wanted).max() < 0.05
    errors = emulator.parts[0].info["errors"]
    assert errors["all"]["spectra"] > 0 and errors["all"]["median"] < 0.02
    with pytest.raises(ValueError, match="no emulator 'nature'"):
        Emulator.load("nature", tmp_path / "e.npz")
    both = read_emulators(tmp_path / "e.npz")  # nominal serves as nature
    assert both["nature"] is both["nominal"]


def test_a_grid_of_another_range_is_refused(grid, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--range", "rvs", "--nominal", str(grid))
    assert "no grid of the range rvs" in capsys.readouterr().err
    assert not (tmp_path / "e.npz").exists()


def test_a_grid_of_an_unknown_range_is_named(grid):
    with h5py.File(grid, "a") as file:
        file.attrs["range"] = "ultraviolet"
    with pytest.raises(synthesize_grid.GridError, match="unknown range, 'ultraviolet'"):
        synthesize_grid.read_grid(grid)
