"""The line list of GALAH: its columns, and what is left out."""

import sys

import h5py
import numpy as np
import pytest
from chain import ROOT

FOLDER = ROOT / "dataset" / "mock_survey"
sys.path.insert(0, str(FOLDER))

import galah_list  # noqa: E402
import line_lists  # noqa: E402
import synthesize_grid  # noqa: E402
from spectral_ranges import RANGES  # noqa: E402

HERMES = RANGES["hermes"]
ROWS = [  # air, log gf, E_lo, ionization, formula, gamma_rad, gamma_stark, vdW
    (5700.0, -1.0, 2.0, 1, (26, 0, 0), 8.1, -5.9, -7.5),
    (5701.0, -1.1, 3.0, 2, (26, 0, 0), 0.0, 0.0, 0.0),
    (5702.0, -1.2, 2.1, 1, (11, 0, 0), -2.5, 2.0, 407.273),
    (5703.0, -1.3, 0.1, 1, (22, 8, 0), 7.3, 0.0, 0.0),
    (5704.0, -2.3, 0.1, 1, (7, 6, 0), 7.3, 0.0, 0.0),
    (5705.0, -2.3, 0.1, 1, (40, 8, 0), 7.3, 0.0, 0.0),  # ZrO: Synspec has no code
    (6562.8, 0.7, 10.2, 1, (1, 0, 0), 8.8, 0.0, 0.0),  # Synspec makes hydrogen itself
    (5706.0, -2.3, 3.1, 1, (22, 8, 0), 7.3, 0.0, 0.0),  # too weak
    (5300.0, -1.0, 2.0, 1, (26, 0, 0), 8.1, -5.9, -7.5),  # between the windows
]


@pytest.fixture
def path(tmp_path):
    columns = [np.array(column) for column in zip(*ROWS, strict=True)]
    columns[0] = line_lists.air_to_vacuum(columns[0])
    with h5py.File(tmp_path / "lines.h5", "w") as file:
        for name, column in zip(galah_list.COLUMNS, columns, strict=True):
            file[name] = column
    return tmp_path / "lines.h5"


def test_lines_of_the_windows_are_read_and_others_left_out(path):
    lines = galah_list.read_galah(path, HERMES)
    np.testing.assert_allclose(lines.air, [5700, 5701, 5702, 5703, 5704], atol=1e-4)
    np.testing.assert_allclose(lines.species, [26.0, 26.01, 11.0, 822.0, 607.0])
    np.testing.assert_allclose(lines.vdw, [-7.5, 0.0, -7.526, 0.0, 0.0], atol=2e-3)
    np.testing.assert_allclose(lines.radiative, [8.1, 0, 0, 0, 0])
    np.testing.assert_allclose(lines.stark, [-5.9, 0, 0, 0, 0])
    assert not line_lists.isotope_weight(lines, 15.0).any()  # they are in log gf


def test_widths_are_written(path, tmp_path):
    lists = line_lists.write_lists(galah_list.read_galah(path, HERMES), tmp_path, HERMES)
    first = lists["dwarf"][1][0].read_text().splitlines()[0].split()
    assert first[-10:-7] == ["8.10", "-5.90", "-7.500"]


@pytest.mark.parametrize("content", [None, b"something else"])
def test_a_file_that_is_not_the_list_is_named_with_where_to_get_it(tmp_path, content):
    path = tmp_path / "absent.h5"
    if content:
        path.write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=r"absent\.h5.*Korg\.jl"):
        galah_list.read_galah(path, HERMES)


def test_nature_of_the_hermes_windows_needs_the_list(path):
    with pytest.raises(synthesize_grid.GridError, match=r"--line-list.*Korg\.jl"):
        synthesize_grid.settings("nature", 1, HERMES)
    assert "line_list_sha256" in synthesize_grid.settings("nature", 1, HERMES, path)
    assert "line_list_sha256" not in synthesize_grid.settings("nominal", 1, HERMES)
