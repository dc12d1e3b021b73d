"""One synthetic spectrum: labels -> normalized flux on the grids' wavelengths."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from atmospheres import AtmosphereNetworks, thin_layers
from line_lists import kind_of_star
from spectral_ranges import APOGEE, SpectralRange, Window
from synspec_code import SynthesisError, run_synspec, write_inputs

LABEL_NAMES = (
    "TEFF",  # K
    "LOGG",  # log10 of the surface gravity in cm/s^2
    "FE_H",
    "ALPHA_M",  # of the model atmosphere
    "VMICRO",  # km/s
    "C_FE",
    "N_FE",
    "O_FE",
    "Na_FE",
    "Mg_FE",
    "Al_FE",
    "Si_FE",
    "S_FE",
    "K_FE",
    "Ca_FE",
    "Ti_FE",
    "V_FE",
    "Cr_FE",
    "Mn_FE",
    "Co_FE",
    "Ni_FE",
)
ALPHA_ELEMENTS = ("O", "Mg", "Si", "S", "Ca", "Ti")

N_LAYERS = 80  # of the model atmosphere, as the networks give them


def to_grid(wavelength, normalized, window: Window = APOGEE.windows[0]) -> np.ndarray:
    """Smooth a normalized spectrum to a window's resolving power and sample it on its pixels.

    The spectrum is put on a logarithmic grid four times finer than the output (averaging over
    each fine pixel by the integral of the piecewise linear spectrum), then convolved with a
    Gaussian of constant velocity width.
    """
    over = 4
    step = window.log10_step / over
    pad = 60
    fine_pixels = np.arange(-pad * over, (window.pixels + pad) * over + 1)
    edges = 10.0 ** (window.start + step * (fine_pixels - 0.5))
    cumulative = np.concatenate(
        [[0.0], np.cumsum(0.5 * (normalized[1:] + normalized[:-1]) * np.diff(wavelength))]
    )
    total = np.interp(edges, wavelength, cumulative)
    # Inside a segment the integral is quadratic; add what linear interpolation of it misses.
    k = np.clip(np.searchsorted(wavelength, edges) - 1, 0, len(wavelength) - 2)
    h = wavelength[k + 1] - wavelength[k]
    u = np.clip((edges - wavelength[k]) / h, 0.0, 1.0)
    total -= 0.5 * (normalized[k + 1] - normalized[k]) * h * u * (1 - u)
    fine = np.diff(total) / np.diff(edges)
    outside = (edges[:-1] < wavelength[0]) | (edges[1:] > wavelength[-1])
    fine[outside] = 1.0
    sigma = 1.0 / (window.resolution * 2.0 * np.sqrt(2.0 * np.log(2.0)) * np.log(10.0)) / step
    half = int(np.ceil(5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    smooth = np.convolve(fine, kernel / kernel.sum(), mode="same")
    return smooth[pad * over : (pad + window.pixels) * over : over]


class Synthesizer:
    """Labels -> normalized spectrum, for one physics.

    Parameters
    ----------
    build : Path
        Folder of the compiled Synspec.
    lists : dict
        Kind of star (`kind_of_star`) -> for every window of the range its atomic and its
        molecular list, (path, path), in Synspec's format.
    networks : AtmosphereNetworks
        Model atmospheres.
    band : SpectralRange
        What is synthesized.
    """

    def __init__(
        self,
        build: Path,
        lists: dict,
        networks: AtmosphereNetworks,
        band: SpectralRange = APOGEE,
    ):
        self.build, self.lists, self.networks, self.band = build, lists, networks, band

    def raw(self, labels: dict[str, float], number: int = 0, n_layers: int = N_LAYERS):
        """Return wavelength [A, vacuum] and flux over continuum of a window, as sampled."""
        window = self.band.windows[number]
        atmosphere = self.networks(*(labels[n] for n in ("TEFF", "LOGG", "FE_H", "ALPHA_M")))
        memory = Path("/dev/shm")  # a folder in memory where there is one
        with tempfile.TemporaryDirectory(
            prefix="synspec-", dir=memory if os.access(memory, os.W_OK) else None
        ) as name:
            folder = Path(name)
            lists = self.lists[kind_of_star(labels, self.band)][number]
            for unit, path in zip((19, 20), lists, strict=True):
                (folder / f"fort.{unit}").symlink_to(path)
            if lists[1].suffix == ".bin":  # molecules, up to 8000 K as in `write_inputs`
                (folder / "fort.3").write_text("'fort.19' 0\n'fort.20' 1 8000.\n")
            layers = thin_layers(atmosphere, n_layers)
            band = self.band
            write_inputs(folder, labels, layers, window, band.frequencies, band.least_opacity)
            wavelength, flux, continuum = run_synspec(folder, self.build)
        normalized = flux / continuum
        if not (np.isfinite(normalized).all() and normalized.min() > -1e-3):
            raise SynthesisError("flux is not finite")
        if normalized.max() > 1.05 or wavelength[-1] < window.synthesis[1] - 1.0:
            raise SynthesisError("flux above the continuum, or the run ended early")
        return wavelength, normalized

    def __call__(self, labels: dict[str, float]) -> np.ndarray:
        """Return the normalized flux on the pixels of all windows, float32."""
        windows = enumerate(self.band.windows)
        return np.concatenate([to_grid(*self.raw(labels, i), w) for i, w in windows]).astype(
            np.float32
        )
