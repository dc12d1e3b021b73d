"""The spectral emulators: labels, convolution, derivatives, physics, files."""

import argparse
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from astropy import units as u
from chain import ROOT
from hypothesis import given
from hypothesis import strategies as st

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.mock.emulator import EMULATOR_FILE, Emulator, Part, write_emulators
from stellarperceptron.data.mock.gaussian_process import GaussianProcess
from stellarperceptron.data.mock.line_spread import (
    FWHM,
    FineGrid,
    convolve,
    lsf_matrix,
    rotation_profile,
)
from stellarperceptron.data.mock.stellar_labels import (
    LABELS,
    LEAST_MICROTURBULENCE,
    standard_labels,
)

FOLDER = ROOT / "dataset" / "mock_survey"
sys.path.insert(0, str(FOLDER))

GIANT = {"TEFF": 4600.0, "LOGG": 2.3, "FE_H": -0.2}
NAMES = ("nominal", "nature")


@pytest.fixture(scope="module", params=NAMES)
def emulator(request):
    return Emulator.load(request.param)


@pytest.fixture(scope="module")
def nominal():
    return Emulator.load("nominal")


def small_part(n_labels=20, n_grid=5, components=3, pixels=400):
    """A part with random numbers, its wavelength grid that of the shipped emulators' beginning."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    process = GaussianProcess(
        normal(2, n_labels).abs(),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        normal(n_grid, n_labels).float().double(),
        normal(n_labels + 1, components),
        normal(n_grid, components).float().double(),
    )
    edge = torch.ones(n_labels, dtype=torch.float64)
    mean = normal(pixels).float().double()
    return Part(mean, normal(components, pixels), [process], -edge, edge, -edge, edge)


# --- labels ---------------------------------------------------------------------------------------


def test_labels_outside_the_range_are_named(emulator):
    high = emulator.high[LABELS.index("TEFF")].item()
    with pytest.raises(ValueError, match=rf"TEFF = {high + 100:g}.*{high:g}.*clip"):
        emulator.flux({**GIANT, "TEFF": high + 100})


def test_clip_moves_labels_to_the_edge(emulator):
    high = emulator.high[LABELS.index("LOGG")].item()
    far, edge = (
        emulator.flux({**GIANT, "LOGG": g, "VMICRO": 1.0}, extrapolate="clip")
        for g in (high + 3, high)
    )
    assert torch.equal(far, edge)


def test_labels_that_are_not_finite_are_named(nominal):
    with pytest.raises(ValueError, match="MG_FE"):
        nominal.flux({**GIANT, "MG_FE": math.nan})


def test_unknown_and_missing_labels_are_named():
    with pytest.raises(ValueError, match="XE_FE"):
        standard_labels({**GIANT, "XE_FE": 0.0})
    with pytest.raises(ValueError, match="LOGG"):
        standard_labels({"TEFF": 5000.0, "FE_H": 0.0})


def test_standard_labels_fill_in_what_follows_from_the_others():
    labels = dict(
        zip(LABELS, standard_labels({**GIANT, "O_FE": 0.1, "MG_FE": 0.3})[0], strict=True)
    )
    assert labels["SI_FE"] == pytest.approx(0.2)
    assert labels["NI_FE"] == 0
    assert 1.2 < labels["VMICRO"] < 1.8


@pytest.mark.parametrize("logg", [4.95, 4.99])
def test_the_usual_microturbulence_stays_within_the_grids(emulator, logg):
    dwarf = {"TEFF": 5000.0, "LOGG": logg, "FE_H": 0.0}
    assert torch.equal(emulator.flux(dwarf), emulator.flux({**dwarf, "VMICRO": 0.3}))
    assert emulator.low[LABELS.index("VMICRO")].item() == pytest.approx(LEAST_MICROTURBULENCE)


def test_gravities_beyond_five_have_a_usual_microturbulence(nominal):
    assert torch.isfinite(nominal.flux({"TEFF": 5000.0, "LOGG": 5.15, "FE_H": 0.0})).all()


# --- spectra --------------------------------------------------------------------------------------


def test_spectra_are_normalized_fluxes(emulator):
    flux = emulator.flux({"TEFF": [4200.0, 5600.0], "LOGG": [1.8, 4.3], "FE_H": [0.1, -0.5]})
    assert flux.shape == (2, len(emulator.wavelength))
    assert flux.min() > 0.0
    assert flux.max() < 1.03
    assert flux.median() > 0.93


@pytest.mark.parametrize(
    ("line", "label"),
    [
        (15339.0, "TI_FE"),
        (15770.1, "MG_FE"),
        (15929.2, "V_FE"),
        (16315.0, "NI_FE"),
        (16393.3, "NA_FE"),
        (16491.2, "FE_H"),
        (16685.3, "SI_FE"),
        (16723.5, "AL_FE"),
        (16895.0, "C_FE"),
    ],
)
def test_lines_answer_to_their_elements(emulator, line, label):
    """More of an element deepens its line (vacuum, A); more of any other hardly moves it."""
    near = (np.abs(APOGEE_WAVELENGTH - line) < 1.0).nonzero()[0]
    others = [name for name in LABELS if name.endswith("_FE") and name != label]
    labels = standard_labels(GIANT).repeat(2 + len(others), 1)
    for row, name in enumerate([label, *others], start=1):
        labels[row, LABELS.index(name)] += 0.2
    flux = emulator.flux(labels, APOGEE_WAVELENGTH, 22_500)[:, near]
    own, *foreign = flux[1:] - flux[0]
    assert own.min() < -0.01
    assert own.max() < 0.003
    assert max(change.abs().max() for change in foreign) < -0.3 * own.min()


@pytest.mark.parametrize(
    ("line", "label", "change"),
    [
        (15426.0, "FE_H", 0.3),
        (15282.0, "TEFF", -300.0),  # OH
        (15282.0, "O_FE", 0.3),
    ],
)
def test_lines_of_metals_and_molecules_grow(emulator, line, label, change):
    near = (np.abs(APOGEE_WAVELENGTH - line) < 1.0).nonzero()[0]
    labels = standard_labels(GIANT).repeat(2, 1)
    labels[1, LABELS.index(label)] += change
    before, after = emulator.flux(labels, APOGEE_WAVELENGTH, 22_500)[:, near].sum(1)
    assert after < before


def test_hydrogen_grows_with_temperature(emulator):
    near = np.abs(APOGEE_WAVELENGTH - 16811.1) < 12.0  # Br 11
    labels = {"TEFF": [4800.0, 6300.0], "LOGG": [4.3, 4.3], "FE_H": [-0.5, -0.5]}
    cool, hot = emulator.flux(labels, APOGEE_WAVELENGTH, 22_500)[:, near]
    assert hot.mean() < cool.mean() - 0.02


def test_derivatives_are_those_of_the_flux(emulator):
    labels, step = standard_labels(GIANT), 1e-4
    for name in ("FE_H", "O_FE", "LOGG", "VMICRO"):
        moved = labels.repeat(2, 1)
        moved[:, LABELS.index(name)] += torch.tensor([-step, step])
        low, high = emulator.flux(moved, APOGEE_WAVELENGTH, 22_500)
        found = emulator.derivatives(labels, [name], APOGEE_WAVELENGTH, 22_500)[0, 0]
        assert torch.allclose(found, (high - low) / (2 * step), atol=1e-5)


def test_smoothing_keeps_equivalent_widths(nominal):
    fine = nominal.flux(GIANT)[0, 2000:14000].mean()
    coarse = nominal.flux(GIANT, nominal.wavelength[2000:14000], 15_000).mean()
    assert coarse == pytest.approx(fine.item(), abs=2e-4)


def test_lower_resolution_makes_lines_shallower(nominal):
    depth = [nominal.flux(GIANT, APOGEE_WAVELENGTH, r).min() for r in (50_000, 22_500, 10_000)]
    assert depth[0] < depth[1] < depth[2]


def test_wavelengths_outside_the_grid_are_refused(nominal):
    with pytest.raises(ValueError, match="Angstrom"):
        nominal.flux(GIANT, [14000.0, 15500.0])


def test_nature_differs_from_nominal_but_not_much():
    flux = [Emulator.load(name).flux(GIANT, APOGEE_WAVELENGTH, 22_500) for name in NAMES]
    rms = (flux[0] - flux[1]).square().mean().sqrt().item()
    assert 0.002 < rms < 0.05


# --- convolution ----------------------------------------------------------------------------------


@given(st.floats(0.7, 6.0))
def test_line_spread_of_a_line_has_its_width(width):
    step, size = 3e-6, 801
    target = torch.arange(100, 700, dtype=torch.float64) * step
    matrix = lsf_matrix(target, 0.0, step, size, torch.full((600,), width * step).double())
    spike = torch.zeros(size, 1, dtype=torch.float64)
    spike[400] = 1.0
    response = (matrix @ spike)[:, 0]
    x = torch.arange(-300, 300)
    assert response.sum() == pytest.approx(1.0, abs=0.01)
    assert math.sqrt((response * x**2).sum()) == pytest.approx(width, rel=0.03)


@given(st.floats(6.0, 100.0))
def test_rotation_profile_is_symmetric_and_has_the_right_width(velocity):
    profile = rotation_profile(velocity, 2.0).numpy()
    x = 2.0 * (np.arange(len(profile)) - len(profile) // 2)
    assert profile.sum() == pytest.approx(1.0)
    assert np.allclose(profile, profile[::-1])
    # Second moment of the profile for a limb-darkening of 0.6, and of a pixel.
    variance = velocity**2 * (0.25 * 0.4 + 0.6 * 2 / 15) / (1 - 0.6 / 3) + 4.0 / 12
    assert (profile * x**2).sum() == pytest.approx(variance, rel=0.02)


def test_convolution_is_the_sum_it_stands_for():
    g = torch.Generator().manual_seed(0)
    spectrum = torch.rand(60, 2, generator=g, dtype=torch.float64)
    profile = rotation_profile(9.0, 2.0)
    half = len(profile) // 2
    padded = np.pad(spectrum[:, 1].numpy(), half, mode="edge")
    expected = np.convolve(padded, profile.numpy(), mode="valid")
    assert np.allclose(convolve(spectrum, profile)[:, 1], expected)


def test_full_width_of_a_gaussian():
    assert math.exp(-0.5 * (FWHM / 2) ** 2) == pytest.approx(0.5)


# --- Gaussian processes ---------------------------------------------------------------------------


def test_jacobian_of_a_process_is_its_derivative():
    process = small_part().processes[0]
    x = torch.full((2, len(LABELS)), 0.1, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda v: process(v).sum(0), x)
    assert torch.allclose(process.jacobian(x), expected.permute(1, 2, 0), atol=1e-10)


def test_a_fitted_process_goes_through_its_targets():
    fit_emulator = pytest.importorskip("fit_emulator", reason="needs the folder's other scripts")
    g = torch.Generator().manual_seed(1)
    x = torch.rand(80, len(LABELS), generator=g, dtype=torch.float64) * 2 - 1
    y = torch.stack([torch.sin(2 * x[:, 0]) + x[:, 1], x[:, 0] * x[:, 2]], dim=1)
    process = fit_emulator.fit_process(x, y, steps=60, subset=60, seed=0, name="test")
    assert (process(x) - y).abs().max() < 0.05


@pytest.mark.slow
def test_a_fitted_emulator_predicts_spectra_that_it_has_not_seen():
    fit_emulator = pytest.importorskip("fit_emulator", reason="needs the folder's other scripts")
    rng = np.random.default_rng(0)
    labels = standard_labels(
        {
            "TEFF": rng.uniform(4000, 6000, 90),
            "LOGG": rng.uniform(1, 4.5, 90),
            "FE_H": rng.uniform(-1, 0.3, 90),
        }
    ).numpy()
    wavelengths = FineGrid((4.18015,), (16510,), 3e-6, 60_000.0)
    x = np.arange(16510)
    depth = 0.3 * 10 ** (0.4 * labels[:, 2]) * (5000 / labels[:, 0]) ** 2
    flux = 1 - depth[:, None] * np.sin(x / 40) ** 20 - 0.02 * labels[:, 1:2] * np.sin(x / 90) ** 20
    held_out = np.arange(90) % 6 == 0
    grid = fit_emulator.Grid(flux.astype(np.float32), labels, held_out, wavelengths, {})
    spread = labels + 0.1 * rng.standard_normal(
        labels.shape
    )  # nuisance labels must not be constant
    grid.labels[:, 3:] = np.abs(spread[:, 3:])
    args = argparse.Namespace(steps=40, subset=80, seed=0)
    part = fit_emulator.fit_part(grid, grid.flux, 8, (2,), None, args, "test")
    emulator = Emulator("nominal", [part], grid.wavelengths)
    assert np.sqrt(np.mean(fit_emulator.held_out_errors(emulator, grid) ** 2)) < 0.002


# --- files ----------------------------------------------------------------------------------------


def test_emulators_come_back_from_a_file(tmp_path):
    parts = {"nominal": small_part(), "difference": small_part()}
    path = tmp_path / "emulators.npz"
    write_emulators(path, parts, FineGrid((4.18,), (400,), 3e-6, 60_000))
    back = Emulator.load("nature", path)
    assert back.grid == FineGrid((4.18,), (400,), 3e-6, 60_000)
    x = torch.zeros(1, len(LABELS), dtype=torch.float64)
    for part, written in zip(back.parts, parts.values(), strict=True):
        assert torch.equal(part.processes[0](x), written.processes[0](x))
        assert torch.allclose(part.components, written.components, atol=1e-4)


def test_windows_come_back_from_a_file(tmp_path):
    path = tmp_path / "emulators.npz"
    grid = FineGrid((3.70, 3.75), (150, 250), 3e-6, 60_000)
    write_emulators(path, {"nominal": small_part()}, grid)
    back = Emulator.load("nominal", path)
    assert back.grid == grid
    assert back.wavelength[[0, 150]] == pytest.approx([10**3.70, 10**3.75])
    with pytest.raises(ValueError, match=r"emulators\.npz .*holds no emulator 'nature'"):
        Emulator.load("nature", path)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "half.npz"
    path.write_bytes(EMULATOR_FILE.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"half\.npz is damaged"):
        Emulator.load("nominal", path)


def test_a_damaged_array_is_noticed(tmp_path):
    content = bytearray(EMULATOR_FILE.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "flipped.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.npz is damaged"):
        Emulator.load("nature", path)


def write_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def write_text(path):
    path.write_text("Teff,logg\n5000,4.5\n")


def write_another_archive(path):
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(3))


@pytest.mark.parametrize("write", [write_array, write_text, write_another_archive])
def test_a_file_of_another_kind_is_named(tmp_path, write):
    path = tmp_path / "other.npz"
    write(path)
    with pytest.raises(ValueError, match=r"other\.npz is damaged or no emulator file") as error:
        Emulator.load("nominal", path)
    assert "pickle" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("labels", lambda a: a[::-1], "its labels are"),
        ("labels", lambda a: a[:-1], "its labels are"),
        ("format_version", lambda a: a + 1, "format 2"),
        ("grid", lambda a: a[:2], "unpack"),
        ("nominal/mean", lambda a: a[:-1], r"nominal/components has shape \(3, 400\), not"),
        ("nominal/components", lambda a: a[:-1], r"nominal/components has shape \(2, 400\)"),
        ("nominal/component_factor", lambda a: a[:-1], "nominal/component_factor has shape"),
        ("nominal/inputs", lambda a: a[:, 1:], r"nominal/inputs has shape \(5, 19\)"),
        ("nominal/low", lambda a: a[None], r"nominal/low has shape \(1, 20\), not \(20\)"),
        ("nominal/0/alpha", lambda a: a[:-1], r"nominal/0/alpha .* not \(5, any\)"),
        ("nominal/0/linear", lambda a: a.T, "nominal/0/linear has shape"),
        ("nominal/0/scale", lambda a: a[:1], "nominal/0/scale has shape"),
        ("nominal/0/amplitude", lambda a: a[:1], "nominal/0/amplitude has shape"),
        ("nominal/info", lambda a: np.array("[1]"), "indices"),
        ("nominal/info", lambda a: np.array("{"), "property name"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, key, change, message):
    path = tmp_path / "changed.npz"
    write_emulators(path, {"nominal": small_part()}, FineGrid((4.18,), (400,), 3e-6, 60_000))
    Emulator.load("nominal", path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays[key] = change(arrays[key])
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(ValueError, match=rf"changed\.npz is damaged.*{message}"):
        Emulator.load("nominal", path)


def test_parts_of_different_lengths_are_refused(tmp_path):
    path = tmp_path / "unequal.npz"
    parts = {"nominal": small_part(), "difference": small_part(pixels=300)}
    write_emulators(path, parts, FineGrid((4.18,), (400,), 3e-6, 60_000))
    with pytest.raises(ValueError, match="different numbers of pixels"):
        Emulator.load("nature", path)
    write_emulators(path, parts, FineGrid((3.70, 3.75), (150, 200), 3e-6, 60_000))
    with pytest.raises(ValueError, match="different numbers of pixels"):
        Emulator.load("nominal", path)


def test_shipped_file_is_small_and_says_how_good_it_is(emulator):
    assert EMULATOR_FILE.stat().st_size < 8_000_000
    assert emulator.parts[-1].info["errors"]["all"]["median"] < 0.002
    assert emulator.parts[-1].info["errors"]["all"]["percentile 95"] < 0.008


# --- containers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.astype(">f4"),
        lambda v: v[::-1].copy()[::-1],
        lambda v: np.ma.array(v, mask=False),
        lambda v: pd.Series(v).astype("Float64"),
        list,
        torch.tensor,
    ],
)
def test_labels_come_in_any_container(nominal, change):
    labels = {"TEFF": [4600.0, 5200.0], "LOGG": [2.5, 4.5], "FE_H": [0.0, -0.5]}
    wavelength = APOGEE_WAVELENGTH[:50]
    wanted = nominal.flux(labels, wavelength, 22_500)
    given = {name: change(np.array(values)) for name, values in labels.items()}
    torch.testing.assert_close(nominal.flux(given, wavelength, 22_500), wanted)


@pytest.mark.parametrize(
    "wavelength",
    [
        APOGEE_WAVELENGTH[:50].astype(">f8"),
        APOGEE_WAVELENGTH[:50][::-1].copy()[::-1],
        (APOGEE_WAVELENGTH[:50] * u.AA).to(u.micron),
        APOGEE_WAVELENGTH[:50].tolist(),
    ],
)
def test_wavelengths_come_in_any_container(nominal, wavelength):
    star = {"TEFF": 4600 * u.K, "LOGG": 2.5, "FE_H": 0.0}
    wanted = nominal.flux(star, APOGEE_WAVELENGTH[:50], 22_500)
    for resolution in (22_500, np.full(50, 22_500, ">f4")):
        flux = nominal.flux(star, wavelength, resolution)
        torch.testing.assert_close(flux, wanted, rtol=0, atol=1e-9)
