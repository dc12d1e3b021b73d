"""From emulated to observed spectra: broadening, spectrograph, sky, and their residuals.

The numbers describe the APOGEE spectrographs and data release 17: Majewski et al. 2017, AJ 154, 94
(survey); Nidever et al. 2015, AJ 150, 173 (reduction, line spread, sky); Wilson et al. 2019, PASP
131, 055001 (spectrographs); Holtzman et al. 2018, AJ 156, 125 (line broadening in the pipeline).
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, CHIPS, FULL_WAVELENGTH
from stellarperceptron.data.mock.emulator import Emulator, Projection
from stellarperceptron.data.mock.line_spread import FWHM, rotation_profile
from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument

__all__ = [
    "LSF_GROUPS",
    "Augmentation",
    "SpectraBank",
    "broadening_index",
    "broadening_velocity",
    "continuum_ripple",
    "correlate_noise",
    "resolving_power",
    "sky_at_rest",
    "sky_templates",
    "sky_windows",
    "vary_line_spread",
]

SKY_FILE = Path(__file__).parent / "files" / "sky_lines.csv"
PIXEL_VELOCITY = 6e-6 * math.log(10.0) * SPEED_OF_LIGHT
"""Width of a pixel of the APOGEE grid [km/s]: 4.14."""

LSF_GROUPS = (0.91, 0.955, 1.0, 1.045, 1.09)
"""Resolving power of five groups of fibres, relative to their mean (10 to 20 % in all; the
pipeline's synthetic grids distinguish five groups of fibres, too)."""

MACROTURBULENCE = (3.0, 5.0, 7.5, 11.0, 15.0)
"""Macroturbulence of giants that is told apart: full width at half maximum [km/s]."""

ROTATION = (1.5, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0)
"""Projected rotation of dwarfs that is told apart [km/s]: the steps of the pipeline's grids."""

MAX_SHIFT = 200  # pixels, 830 km/s: how far the sky may lie from its place in the star's frame
RIPPLE_ORDERS = (5, 18)  # orders of cosines a chip: those the polynomial of order 4 leaves over


def resolving_power(wavelength: np.ndarray = APOGEE_WAVELENGTH) -> np.ndarray:
    """
    Resolving power (P,) of an average fibre: 22,500 in the mean, rising along each chip.

    The width of the line spread is about the same number of pixels all over a detector, so that
    the resolving power rises with wavelength by some 15 % from one end of a chip to the other.
    """
    power = np.full(len(wavelength), APOGEE.resolving_power)
    for chip, mean in zip(CHIPS.values(), (22_000.0, 22_700.0, 22_800.0), strict=True):
        first, last = FULL_WAVELENGTH[chip.start], FULL_WAVELENGTH[chip.stop - 1]
        inside = (wavelength >= first) & (wavelength <= last)
        position = (wavelength[inside] - 0.5 * (first + last)) / (last - first)
        power[inside] = mean * (1.0 + 0.15 * position)
    return power


def broadening_velocity(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Macroturbulence of giants and projected rotation of dwarfs (N,) [km/s].

    Giants: log10 v = 0.471 - 0.254 [Fe/H], at most 15 km/s (Holtzman et al. 2018), with
    a scatter of 0.05 dex. Dwarfs (logg > 3.8): 3 km/s below the Kraft break near 6250 K, rising to
    20 km/s above it, with a scatter of 0.2 dex (Glebocki & Gnacinski 2005).

    Parameters
    ----------
    labels : (N, 5)
        TEFF, LOGG, O_FE, MG_FE, FE_H.
    """
    teff, logg, fe_h = labels[:, 0], labels[:, 1], labels[:, 4]
    normal = rng.standard_normal(len(labels))
    giant = np.minimum(10.0 ** (0.471 - 0.254 * fe_h + 0.05 * normal), 15.0)
    median = 3.0 + 17.0 / (1.0 + np.exp((6450.0 - teff) / 110.0))
    dwarf = np.clip(median * 10.0 ** (0.2 * normal), ROTATION[0], ROTATION[-1])
    return np.where(logg > 3.8, dwarf, giant)


def broadening_index(labels: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Index (N,) of the entry of ``MACROTURBULENCE + ROTATION`` nearest to the velocities (N,)."""
    macro = np.abs(velocity[:, None] - np.array(MACROTURBULENCE)).argmin(1)
    rotation = np.abs(np.log(velocity[:, None] / np.array(ROTATION))).argmin(1)
    return np.where(labels[:, 1] > 3.8, rotation + len(MACROTURBULENCE), macro)


class SpectraBank:
    """
    Spectra of an emulator as the spectrograph records them, before any noise.

    The components are broadened once for every group of fibres and every kind of broadening, when
    it is first met; a spectrum is then one product (in double precision, so that other machines,
    which add in another order, find the same spectrum within 1e-6).

    Parameters
    ----------
    emulator
        The emulator.
    wavelength : (P,)
        Wavelengths of the pixels [Angstrom, vacuum].
    power : float or (P,)
        Resolving power of the spectrograph; None: that of APOGEE.
    groups
        That of each group of fibres, relative to it.
    """

    def __init__(
        self,
        emulator: Emulator,
        wavelength: np.ndarray = APOGEE_WAVELENGTH,
        power: float | np.ndarray | None = None,
        groups: Sequence[float] = LSF_GROUPS,
    ):
        self.emulator = emulator
        self.wavelength = wavelength
        self.power = resolving_power(wavelength) if power is None else power
        self.groups = groups
        self._lock = threading.Lock()
        self._bank: dict[tuple[int, int], Projection] = {}

    def projection(self, group: int, broadening: int) -> Projection:
        """Mean and components for a group of fibres and an index of `broadening_index`."""
        with self._lock:
            key = (int(group), int(broadening))
            if key not in self._bank:
                power = self.power * self.groups[key[0]]
                profile = None
                if key[1] < len(MACROTURBULENCE):
                    macro = MACROTURBULENCE[key[1]] / SPEED_OF_LIGHT
                    power = 1.0 / np.sqrt(power**-2.0 + macro**2)
                else:
                    velocity = ROTATION[key[1] - len(MACROTURBULENCE)]
                    step = self.emulator.step * math.log(10.0) * SPEED_OF_LIGHT
                    profile = rotation_profile(velocity, step)
                self._bank[key] = self.emulator.project(self.wavelength, power, profile=profile)
            return self._bank[key]

    def __call__(self, coefficients: Tensor, group: np.ndarray, broadening: np.ndarray) -> Tensor:
        """Flux over continuum (N, P), float32, of coefficients (N, K) with their indices (N,)."""
        flux = torch.empty(len(coefficients), len(self.wavelength), device=coefficients.device)
        number = len(MACROTURBULENCE) + len(ROTATION)
        key = group * number + broadening
        for value in np.unique(key):
            rows = torch.from_numpy(np.flatnonzero(key == value)).to(flux.device)
            projection = self.projection(value // number, value % number)
            flux[rows] = projection(coefficients[rows]).float()
        # Lines only absorb: what exceeds the continuum is the emulator's error.
        return flux.clamp_(max=1.0)


@lru_cache(maxsize=8)
def _line_spread(instrument: Instrument) -> float | np.ndarray | None:
    """Standard deviation of the line spread [pixels]: one, or (P,); None where it is unknown."""
    if instrument.resolving_power is None:
        return None
    step = instrument.log_step  # a float keeps the spectra of uniform grids the same to the bit
    width = instrument.pixel_width / instrument.wavelength if step is None else step * math.log(10)
    return 1.0 / (instrument.resolving_power * FWHM * width)


def vary_line_spread(
    flux: Tensor, change: Tensor, pixels: slice = slice(None), instrument: Instrument = APOGEE
) -> Tensor:
    """
    Spectra (N, P) with a line spread that is wider by `change` (N,), a fraction of its variance.

    Convolution obeys the heat equation, f -> f + f'' d(sigma^2) / 2 for small changes (within
    +-0.3). A pixel beside a NaN or an end of a chip keeps its flux.

    Parameters
    ----------
    pixels, instrument
        Which of the instrument's pixels the P are (a slice of step 1). Where its resolving power is
        unknown, spectra stay as they are.
    """
    sigma = _line_spread(instrument)
    out = flux.clone()
    if sigma is None:
        return out
    if np.ndim(sigma):
        sigma = torch.as_tensor(sigma[pixels], dtype=change.dtype, device=change.device)
    factor = (0.5 * change[:, None] * sigma**2).to(flux)
    for chip in instrument.chips_of(pixels).values():
        if chip.stop - chip.start > 2:
            f, inner = flux[:, chip], slice(chip.start + 1, chip.stop - 1)
            curvature = f[:, 2:] + f[:, :-2] - 2.0 * f[:, 1:-1]
            own = factor if factor.shape[1] == 1 else factor[:, inner]
            out[:, inner] += own * torch.nan_to_num(curvature)
    return out


def correlate_noise(normal: Tensor, correlation: Tensor | float) -> Tensor:
    """
    White noise (N, P) made to correlate between neighbouring pixels, with the same variance.

    Spectra that were resampled to a common wavelength grid have such noise: each pixel z_i becomes
    z_i + c (z_{i-1} + z_{i+1}), over its norm, with the correlation r = 2 c / (1 + 2 c^2) between
    neighbours.

    Parameters
    ----------
    normal
        Independent standard normal numbers.
    correlation
        (N,) or one number, from 0 to 0.7.
    """
    r = torch.as_tensor(correlation, dtype=normal.dtype, device=normal.device).reshape(-1, 1)
    c = r / (1.0 + (1.0 - 2.0 * r**2).sqrt())
    out = normal.clone()
    out[:, 1:] += c * normal[:, :-1]
    out[:, :-1] += c * normal[:, 1:]
    return out.div_((1.0 + 2.0 * c**2).sqrt())


@lru_cache(maxsize=8)
def _ripple_basis(
    instrument: Instrument, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines (C M, P), each on one chip, and their amplitudes (M,), falling with the order."""
    orders = np.arange(*RIPPLE_ORDERS)
    basis = np.zeros((len(instrument.chips), len(orders), len(instrument)))
    for i, chip in enumerate(instrument.chips.values()):
        x = (np.arange(chip.stop - chip.start) + 0.5) / (chip.stop - chip.start)
        basis[i, :, chip] = math.sqrt(2.0) * np.cos(np.pi * orders[:, None] * x)
    amplitude = torch.tensor(1.0 / orders, device=device, dtype=dtype)
    return torch.tensor(basis.reshape(-1, basis.shape[-1]), device=device, dtype=dtype), amplitude


def continuum_ripple(
    rms: Tensor, normal: Tensor, pixels: slice = slice(None), instrument: Instrument = APOGEE
) -> Tensor:
    """
    Relative error of the pseudo-continuum (N, P): waves, on APOGEE's chips of 15 to 60 Angstrom.

    Parameters
    ----------
    rms : (N,)
        Its root mean square on each chip.
    normal : (N, C, M)
        Independent standard normal numbers for each of C chips, M = ``RIPPLE_ORDERS[1] -
        RIPPLE_ORDERS[0]``.
    pixels, instrument
        Which of the instrument's pixels the P are.
    """
    basis, amplitude = _ripple_basis(instrument, normal.device, normal.dtype)
    waves = normal * amplitude
    waves = waves / waves.square().sum(2, keepdim=True).sqrt() * rms[:, None, None]
    return waves.flatten(1) @ basis[:, pixels]


@lru_cache(maxsize=1)
def sky_templates() -> dict[str, Tensor]:
    """Sky (8575 + 2 MAX_SHIFT,) in the observatory's frame: OH, CO2, CH4, each at most 1."""
    table = np.genfromtxt(SKY_FILE, delimiter=",", skip_header=1, dtype=None, encoding="utf-8")
    index = np.arange(-MAX_SHIFT, 8575 + MAX_SHIFT)
    out = {}
    for name in ("OH", "CO2", "CH4"):
        lines = [(w, s) for w, species, s in table if species == name]
        place = (np.log10([w for w, _ in lines]) - 4.179) / 6e-6
        profile = np.exp(-0.5 * ((index - place[:, None]) / 1.5) ** 2)
        total = (profile * np.array([s for _, s in lines])[:, None]).sum(0)
        out[name] = torch.tensor(total / total.max(), dtype=torch.float32)
    return out


def sky_windows(template: Tensor, shift: np.ndarray) -> Tensor:
    """
    A template in the observatory's frame as stars see it at rest (N, 7514).

    Parameters
    ----------
    template : (8575 + 2 MAX_SHIFT,)
        One of the sky's, or one of the detectors'.
    shift : (N,)
        Velocity of the star in the observatory's frame [pixels], within +-MAX_SHIFT.
    """
    shift = torch.from_numpy(np.clip(np.rint(shift), -MAX_SHIFT, MAX_SHIFT).astype(np.int64))
    parts = [
        template.unfold(0, chip.stop - chip.start, 1)[shift + (MAX_SHIFT + chip.start)]
        for chip in CHIPS.values()
    ]
    return torch.cat(parts, dim=1)


@lru_cache(maxsize=4)
def _sky_of(instrument: Instrument) -> dict[str, Tensor]:
    """Sky in the observatory's frame, MAX_SHIFT pixels longer than the instrument at both ends."""
    if instrument.log_step is None or instrument.resolving_power is None:
        raise ValueError(f"{instrument} has no resolving power or unequal steps of the logarithm")
    table = np.genfromtxt(SKY_FILE, delimiter=",", skip_header=1, dtype=None, encoding="utf-8")
    index = np.arange(-MAX_SHIFT, instrument.grid_index[-1] + MAX_SHIFT + 1)
    step, start = instrument.log_step, np.log10(instrument.wavelength[0])
    width = 1 / (np.mean(instrument.resolving_power) * FWHM * step * math.log(10.0))
    out = {}
    for name in ("OH", "CO2", "CH4"):
        total = np.zeros(len(index))
        for wavelength, species, strength in table:
            if species == name:
                place = (math.log10(wavelength) - start) / step
                total += strength * np.exp(-0.5 * ((index - place) / width) ** 2)
        out[name] = torch.tensor(total / total.max(), dtype=torch.float32)
    return out


def sky_at_rest(
    instrument: Instrument, velocity: np.ndarray, pixels: slice = slice(None)
) -> dict[str, Tensor]:
    """
    The sky's lines as stars see them at rest (N, P): OH, CO2, CH4, each at most 1.

    Parameters
    ----------
    instrument
        An instrument of the H band, whose grid starts at index 0.
    velocity : (N,)
        Velocities of the stars in the observatory's frame [km/s].
    pixels
        Which of the instrument's pixels the P are.
    """
    pixel = SPEED_OF_LIGHT * float(np.median(instrument.pixel_width / instrument.wavelength))
    shift = np.clip(np.rint(velocity / pixel), -MAX_SHIFT, MAX_SHIFT).astype(np.int64)
    place = torch.from_numpy(instrument.grid_index[pixels] + MAX_SHIFT + shift[:, None])
    return {name: sky[place] for name, sky in _sky_of(instrument).items()}


@dataclass(frozen=True)
class Augmentation:
    """
    Random observational errors, drawn anew in each call.

    Attributes
    ----------
    snr
        Signal-to-noise ratio a pixel, drawn uniformly in its logarithm.
    correlation
        Correlation of the noise of neighbouring pixels, drawn uniformly.
    ripple
        Root mean square of the pseudo-continuum's error, drawn uniformly.
    line_spread
        Standard deviation of the relative change of the line spread's variance.
    snr_slope
        Ratio of the last pixel's signal-to-noise ratio to the first pixel's, drawn uniformly in its
        logarithm, which changes evenly from pixel to pixel; `snr` is then that of the middle.
    """

    snr: tuple[float, float] = (100.0, 600.0)
    correlation: tuple[float, float] = (0.0, 0.65)
    ripple: tuple[float, float] = (0.002, 0.006)
    line_spread: float = 0.08
    snr_slope: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        problems = []
        for name, lowest, highest in (
            ("snr", 1, math.inf),
            ("snr_slope", 0.01, 100),
            ("correlation", 0, 0.7),
            ("ripple", 0, 1),
        ):
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                problems.append(f"{name} = {(low, high)} is no range within {lowest} and {highest}")
        if not 0 <= self.line_spread < 1:
            problems.append(f"line_spread = {self.line_spread} is not in [0, 1)")
        if problems:
            raise ValueError("impossible augmentation: " + "; ".join(problems))

    def __call__(
        self,
        flux: Tensor,
        generator: torch.Generator | None = None,
        pixels: slice = slice(None),
        instrument: Instrument = APOGEE,
    ) -> Tensor:
        """Add errors to normalized spectra (N, P); see `with_noise`."""
        return self.with_noise(flux, generator, pixels, instrument)[0]

    def with_noise(
        self,
        flux: Tensor,
        generator: torch.Generator | None = None,
        pixels: slice = slice(None),
        instrument: Instrument = APOGEE,
    ) -> tuple[Tensor, Tensor]:
        """
        Add errors to normalized spectra.

        Parameters
        ----------
        flux : (N, P)
            The spectra; the result has their device and type.
        generator
            Source of randomness on the same device; None: PyTorch's own.
        pixels, instrument
            Which of the instrument's pixels the P are (a slice of step 1).

        Returns
        -------
        flux : (N, P)
        noise : (N,) or, with a `snr_slope`, (N, P)
            Standard deviation of the noise of a pixel.
        """
        n, device = len(flux), flux.device

        def uniform(low: float, high: float) -> Tensor:
            draw = torch.rand(n, generator=generator, device=device)
            return low + (high - low) * draw

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        change = (self.line_spread * normal(n)).clamp(-0.3, 0.3)
        out = vary_line_spread(flux.float(), change, pixels, instrument)
        waves = normal(n, len(instrument.chips), RIPPLE_ORDERS[1] - RIPPLE_ORDERS[0])
        out *= 1.0 + continuum_ripple(uniform(*self.ripple), waves, pixels, instrument)
        sigma = torch.exp(-uniform(math.log(self.snr[0]), math.log(self.snr[1])))
        noise = correlate_noise(normal(*flux.shape), uniform(*self.correlation))
        if self.snr_slope != (1.0, 1.0):
            place = torch.linspace(0.5, -0.5, flux.shape[1], device=device)
            slope = uniform(*map(math.log, self.snr_slope))
            sigma = sigma[:, None] * torch.exp(slope[:, None] * place)
        each = sigma if sigma.dim() == 2 else sigma[:, None]
        return out.addcmul_(each, noise).to(flux.dtype), sigma
