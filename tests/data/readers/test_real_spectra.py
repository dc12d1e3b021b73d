"""Real spectra of GALAH and LAMOST, in files of the surveys' formats."""

import numpy as np
import pytest
from astropy.io import fits

from stellarperceptron.data.readers.conversion import Arm, on_pixels
from stellarperceptron.data.readers.files import read_spectrum_file
from stellarperceptron.data.wavelengths import air_to_vacuum, line_shift
from stellarperceptron.instruments import GALAH, LOW_RESOLUTION

pytestmark = pytest.mark.reference


def minimum(spectrum, line, within):
    """Wavelength of the deepest pixel near a line [A, vacuum], by a parabola."""
    near = np.flatnonzero(np.abs(spectrum.wavelength - line) < within)
    deepest = near[np.nanargmin(spectrum.flux[near])]
    around = slice(deepest - 2, deepest + 3)
    offset = spectrum.wavelength[around] - spectrum.wavelength[deepest]
    square, slope, _ = np.polyfit(offset, spectrum.flux[around], 2)
    return spectrum.wavelength[deepest] - slope / (2 * square)


@pytest.fixture(scope="module")
def galah(shared, tmp_path_factory):
    """The six spectra of the sample, written as data release 4 has them; their labels."""
    folder, stars = tmp_path_factory.mktemp("galah"), {}
    with np.load(shared / "real" / "galah_sample" / "galah_sample.npz") as sample:
        labels = dict(zip(sample["id"].astype(str), sample["labels"], strict=True))
        for row, star in enumerate(labels):
            for camera in range(4):
                wavelength = sample["wavelength"][row, camera]
                header = fits.Header()
                header["CRVAL1"], header["CRPIX1"] = wavelength[0], 1
                header["CDELT1"] = wavelength[1] - wavelength[0]
                header["RVCOM"] = labels[star][4]
                error = sample["relative_error"][row, camera]
                fits.HDUList(
                    [
                        fits.PrimaryHDU(sample["flux"][row, camera], header),
                        fits.ImageHDU(error, name="relative_error"),
                    ]
                ).writeto(folder / f"{star}{camera + 1}.fits")
            stars[star] = read_spectrum_file(folder / f"{star}1.fits")
    return stars, labels


def test_lines_of_the_sun_are_at_rest_in_vacuum(galah):
    sun = galah[0]["210115002201239"]
    assert (~sun.bad()).mean() > 0.99
    for air in (5682.63, 5701.54, 6643.63, 6677.99, 6717.69, 7748.27):  # Na, Fe, Ni, Fe, Ca, Fe
        line = float(air_to_vacuum(np.array(air)))
        velocity = (minimum(sun, line, 0.5) / line - 1) * 299792.458
        assert abs(velocity) < 3.0


def test_stars_of_galah_have_the_lines_of_a_benchmark_star(shared, galah):
    stars, _ = galah
    with np.load(shared / "real" / "gaia_benchmarks_hermes" / "spectra.npz") as real:
        arms = []
        for arm in ("blue", "green", "red", "ir"):
            flux = real[f"18Sco_{arm}_flux"].astype(np.float64)
            start, step = real[f"18Sco_{arm}_wavelength_start_step"]
            wavelength = air_to_vacuum(start + step * np.arange(len(flux)))
            arms.append(Arm(wavelength, flux, 0.01 * flux, np.zeros(len(flux), dtype=bool)))
    benchmark = on_pixels(GALAH, arms, star_id="18Sco", kind="NARVAL").normalized()
    sun = stars["210115002201239"].normalized()
    velocity, significance = line_shift(sun, benchmark, GALAH.wavelength)
    assert abs(velocity[0]) < 1.0 and significance[0] > 20
    both = np.isfinite(sun) & np.isfinite(benchmark)
    for chip in GALAH.chips.values():
        seen = both[chip]
        correlation = np.corrcoef(sun[chip][seen], benchmark[chip][seen])[0, 1]
        assert correlation > 0.95


def test_lamost_spectra_without_wavelengths_are_at_rest(shared, tmp_path):
    with np.load(shared / "real" / "lamost_dr1" / "lamost_dr1.npz") as sample:
        chosen = np.flatnonzero(np.isfinite(sample["labels"][:, 0]))[:40]
        rows = {name: sample[name][chosen] for name in ("flux", "ivar", "bad", "z", "id")}
    spectra = []
    for flux, variance, bad, redshift, name in zip(*rows.values(), strict=True):
        header = fits.Header({"TELESCOP": "LAMOST", "Z": float(redshift)})
        image = np.array([flux, variance, np.ones(len(flux)), bad, bad], dtype=np.float32)
        fits.PrimaryHDU(image, header).writeto(tmp_path / str(name))
        spectra.append(read_spectrum_file(tmp_path / str(name)))
    normalized = np.array([spectrum.normalized() for spectrum in spectra])
    assert 0.95 < np.isfinite(normalized).mean() <= 1
    template = np.full(len(LOW_RESOLUTION), np.nan)
    seen = np.isfinite(normalized).any(axis=0)
    template[seen] = np.nanmedian(normalized[:, seen], axis=0)
    calcium = np.abs(LOW_RESOLUTION.wavelength - 8544.4) < 8
    assert LOW_RESOLUTION.wavelength[calcium][template[calcium].argmin()] == pytest.approx(
        8544.4, abs=2
    )
    velocity, _ = line_shift(normalized, template, LOW_RESOLUTION.wavelength)
    assert np.median(np.abs(velocity)) < 15  # a fifth of a pixel
