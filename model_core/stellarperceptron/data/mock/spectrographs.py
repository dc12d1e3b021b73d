"""Spectrographs that observe the stars of the mock survey: APOGEE, and a table of the others.

A row of the table names the emulators of the spectra, and gives their noise and defects. Its
numbers are nominal values, of the order given in the surveys' papers, unless a source is named.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.data.apogee.continuum import VALID_FLUX, normalize, normalize_as
from stellarperceptron.data.apogee.grid import CHIP_PIXELS
from stellarperceptron.data.mock.emulator import EMULATOR_FILE, Emulator
from stellarperceptron.data.mock.observation import (
    MAX_SHIFT,
    PIXEL_VELOCITY,
    RIPPLE_ORDERS,
    SpectraBank,
    continuum_ripple,
    correlate_noise,
    sky_at_rest,
    sky_templates,
    sky_windows,
    vary_line_spread,
)
from stellarperceptron.instruments import GAIA_RVS, GALAH, IGRINS_H, LOW_RESOLUTION, MOONS_H
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.utils.data_utils import user_cache

__all__ = ["SPECTROGRAPHS", "Observation", "Spectrograph", "noise_correlation"]

MARGIN = 2.5e-4  # of the wavelength: what an emulator must reach beyond an instrument's pixels
README = "dataset/mock_survey/README.md"
CHECKOUT = Path(__file__).parents[4] / "dataset" / "mock_survey" / "emulators"
"""Folder of a checkout with the emulators of other wavelength ranges than APOGEE's."""


@dataclass(frozen=True)
class Observation:
    """
    Parameters of APOGEE's observation and reduction of spectra.

    Attributes
    ----------
    snr
        Signal-to-noise ratio a pixel: the lower end is the survey's cut, above it an exponential
        distribution of this scale, up to the last.
    correlation
        Of the noise of neighbouring pixels, which are resampled from the detector's (measured: 0.4
        in the difference of two visits to 2M17335483-2753043, two of APOGEE's example spectra).
    line_spread
        Standard deviation of the relative change of the line spread's variance within a group of
        fibres.
    sky
        Median standard deviation of the residual of the strongest OH line, over the continuum;
        stars scatter about it by 0.3 dex.
    telluric
        Standard deviation of the error of the CO2 and the CH4 correction, over the continuum at
        the deepest line.
    ripple
        Root mean square of the pseudo-continuum's error, uniform between these.
    bad_pixel
        Probability that a single pixel is lost (cosmic rays).
    dead_columns
        Number of detector columns lost for every star; their wavelengths depend on its velocity.
    dead_stretch
        Probability that a star loses 20 to 150 neighbouring pixels.
    velocity
        Standard deviation of the stars' velocities [km/s] at [Fe/H] above and below -1.
    """

    snr: tuple[float, float, float] = (200.0, 140.0, 600.0)
    correlation: float = 0.4
    line_spread: float = 0.04
    sky: float = 0.01
    telluric: float = 0.006
    ripple: tuple[float, float] = (0.003, 0.005)
    bad_pixel: float = 0.002
    dead_columns: int = 30
    dead_stretch: float = 0.08
    velocity: tuple[float, float] = (50.0, 140.0)

    @cached_property
    def dead(self) -> Tensor:
        """Lost detector columns (8575 + 2 MAX_SHIFT,), the same in every survey."""
        columns = torch.zeros(8575 + 2 * MAX_SHIFT, dtype=torch.bool)
        rng = np.random.default_rng(2017)
        columns[torch.from_numpy(rng.integers(0, len(columns), self.dead_columns))] = True
        return columns

    def lost(self, shift: np.ndarray, rng: np.random.Generator, size: int) -> Tensor:
        """Mask (N, P) of the pixels without a measurement."""
        lost = sky_windows(self.dead, shift)
        count = rng.poisson(self.bad_pixel * size, len(shift))
        rows = np.repeat(np.arange(len(shift)), count)
        lost[torch.from_numpy(rows), torch.from_numpy(rng.integers(0, size, len(rows)))] = True
        stretched = np.flatnonzero(rng.random(len(shift)) < self.dead_stretch)
        starts = rng.integers(0, size, len(stretched))
        for row, start, length in zip(
            stretched, starts, rng.integers(20, 151, len(stretched)), strict=True
        ):
            lost[row, start : start + length] = True
        return lost

    def __call__(
        self, flux: Tensor, fe_h: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """
        Observe stars with flux over continuum `flux` (N, 7514).

        Parameters
        ----------
        fe_h : (N,)
            Metal-poor stars move faster.

        Returns
        -------
        observed : (N, 7514)
            Normalized spectra, NaN for bad pixels.
        errors : (N, 7514)
            Standard deviations of their noise, NaN for pixels without a measurement. Errors of the
            telluric correction and of the continuum are not included.
        """
        n, size = flux.shape

        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

        spread = np.where(fe_h > -1.0, *self.velocity)
        shift = spread * rng.standard_normal(n) / PIXEL_VELOCITY
        lowest, scale, highest = self.snr
        # Exponential, cut off at `highest`, by inversion.
        share = 1.0 - math.exp(-(highest - lowest) / scale)
        snr = lowest - scale * np.log(1.0 - rng.random(n) * share)
        sigma = torch.from_numpy((1.0 / snr).astype(np.float32))[:, None] * _edge_noise()

        sky = sky_templates()
        change = (self.line_spread * normal(n)).clamp(-0.3, 0.3)
        flux = vary_line_spread(flux, change)
        left_over = self.sky * 10.0 ** (0.3 * normal(n, 1)) * sky_windows(sky["OH"], shift)
        telluric = self.telluric * normal(n, 1) * sky_windows(sky["CO2"], shift)
        telluric += self.telluric * normal(n, 1) * sky_windows(sky["CH4"], shift)
        sigma = torch.hypot(sigma, left_over)
        noise = correlate_noise(normal(n, size), self.correlation).mul_(sigma)
        flux = noise.addcmul_(flux, telluric.add_(1.0))

        lost = self.lost(shift, rng, size)
        observed = normalize(flux, lost, valid_flux=None)
        errors = sigma.mul_(observed / flux)
        low, high = self.ripple
        rms = low + (high - low) * torch.from_numpy(rng.random(n, dtype=np.float32))
        ripple = continuum_ripple(rms, normal(n, 3, RIPPLE_ORDERS[1] - RIPPLE_ORDERS[0]))
        observed = observed.mul_(ripple.add_(1.0))
        beyond = (observed < VALID_FLUX[0]) | (observed > VALID_FLUX[1])
        return observed.masked_fill_(beyond, math.nan), errors


@lru_cache(maxsize=1)
def _edge_noise() -> Tensor:
    """Relative noise (7514,): a chip's ends receive less light."""
    noise = torch.empty(CHIP_PIXELS["red"].stop)
    for chip in CHIP_PIXELS.values():
        noise[chip] = 1.0 + 0.25 * torch.linspace(-1.0, 1.0, chip.stop - chip.start) ** 2
    return noise


@dataclass(frozen=True)
class Spectrograph:
    """An instrument of the mock survey: emulators, noise, defects.

    Attributes
    ----------
    instrument : Instrument
    emulators : str
        Range of wavelengths whose emulators *nominal* and *nature* make its spectra: "apogee",
        whose emulators are in the package, or another range of
        ``dataset/mock_survey/spectral_ranges.py``, some of which have *nominal* alone.
    snr : (float, float, float)
        Signal-to-noise ratio a pixel: lowest, scale of the exponential distribution above it, and
        highest.
    correlation : float
        Of the noise of neighbouring pixels, which are resampled from the detector's.
    fibres : tuple of float
        Resolving power of groups of fibres (or of places in the field), relative to the mean.
    line_spread : float
        Standard deviation of the relative change of the line spread's variance within a group.
    ripple : (float, float)
        Root mean square of the pseudo-continuum's error, uniform between these.
    edge : float
        Relative increase of the noise towards the ends of a chip.
    bad_pixel : float
        Probability that a single pixel is lost (cosmic rays).
    dead_stretch : float
        Probability that a star loses 20 to 150 neighbouring pixels.
    dead_chip : float
        Probability that a star loses a chip.
    short_ends : int
        Largest number of pixels that are lost at either end of the spectrum, which not all
        exposures reach.
    sky, telluric : float
        Standard deviation of what is left of the strongest OH line of the night sky, and of the
        strongest line of CO2 and of CH4, over the continuum. Lines are known in the H band only.
    velocity : (float, float)
        Standard deviation of the stars' velocities [km/s] at [Fe/H] above and below -1.
    """

    instrument: Instrument
    emulators: str
    snr: tuple[float, float, float]
    correlation: float
    fibres: tuple[float, ...]
    line_spread: float
    ripple: tuple[float, float]
    edge: float = 0.25
    bad_pixel: float = 0.002
    dead_stretch: float = 0.02
    dead_chip: float = 0.0
    short_ends: int = 0
    sky: float = 0.0
    telluric: float = 0.0
    velocity: tuple[float, float] = (50.0, 140.0)

    def emulator_file(self) -> Path:
        """File of its emulators: in the package, in the checkout, or in the user's cache.

        Raises
        ------
        FileNotFoundError
            There is none; the message says how to get or make it.
        """
        if self.emulators == "apogee":
            return EMULATOR_FILE
        name = f"{self.emulators}.npz"
        places = [CHECKOUT / name, user_cache() / "emulators" / name]
        for path in places:
            if path.exists():
                return path
        raise FileNotFoundError(
            f"there are no emulators of {self.instrument.name}'s wavelengths, neither "
            f"{places[0]} nor {places[1]}: copy {name} of the repository's "
            f"dataset/mock_survey/emulators there, or make it ({README}), or give another file "
            "(--emulators FILE)"
        )

    def pixels(self, emulator: Emulator) -> slice:
        """Those of the instrument's pixels that an emulator reaches.

        Raises
        ------
        ValueError
            It reaches none, or leaves out some between others.
        """
        grid = self.instrument.wavelength
        reached = np.zeros(len(grid), dtype=bool)
        log = np.log10(grid)
        margin = math.log10(1 + MARGIN)
        for first, last, _ in emulator.grid.windows:
            reached |= (log >= first + margin) & (log <= last - margin)
        inside = np.flatnonzero(reached)
        if not len(inside) or len(inside) != inside[-1] - inside[0] + 1:
            low, high = emulator.wavelength[[0, -1]]
            raise ValueError(
                f"the emulators, {low:.0f} to {high:.0f} Angstrom, do not reach the pixels of "
                f"{self.instrument}: {README} says how others are made"
            )
        return slice(int(inside[0]), int(inside[-1]) + 1)

    def bank(self, emulator: Emulator) -> tuple[SpectraBank, slice]:
        """An emulator's spectra as the spectrograph records them, and the instrument's pixels.

        Raises
        ------
        ValueError
            See `pixels`.
        """
        pixels = self.pixels(emulator)
        power = np.asarray(self.instrument.resolving_power, dtype=np.float64)
        power = np.broadcast_to(power, len(self.instrument))[pixels]
        return SpectraBank(emulator, self.instrument.wavelength[pixels], power, self.fibres), pixels

    # --- observation ------------------------------------------------------------------------

    def observe(
        self, flux: Tensor, fe_h: np.ndarray, rng: np.random.Generator, pixels: slice
    ) -> tuple[Tensor, Tensor]:
        """Observe stars with flux over continuum `flux` (N, P).

        Parameters
        ----------
        fe_h : (N,)
            Metal-poor stars move faster.
        pixels
            Which of the instrument's pixels the P are.

        Returns
        -------
        observed, errors : (N, P)
            As `Observation` makes them.
        """
        n, size = flux.shape
        instrument = self.instrument

        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

        velocity = np.where(fe_h > -1.0, *self.velocity) * rng.standard_normal(n)
        lowest, scale, highest = self.snr
        # Exponential, cut off at `highest`, by inversion.
        share = 1.0 - math.exp(-(highest - lowest) / scale)
        snr = lowest - scale * np.log(1.0 - rng.random(n) * share)
        sigma = torch.from_numpy((1.0 / snr).astype(np.float32))[:, None] * self._edge[pixels]
        change = (self.line_spread * normal(n)).clamp(-0.3, 0.3)
        flux = vary_line_spread(flux, change, pixels, instrument)
        if self.sky:
            sky = sky_at_rest(instrument, velocity, pixels)
            sigma = torch.hypot(sigma, self.sky * 10.0 ** (0.3 * normal(n, 1)) * sky["OH"])
            for molecule in ("CO2", "CH4"):
                flux = flux * (1.0 + self.telluric * normal(n, 1) * sky[molecule])
        flux = flux + sigma * correlate_noise(normal(n, size), self.correlation)
        lost = self.lost(n, rng, pixels)
        observed = normalize_as(instrument, flux, lost, pixels, valid_flux=None)
        errors = sigma * (observed / flux)
        low, high = self.ripple
        rms = low + (high - low) * torch.from_numpy(rng.random(n, dtype=np.float32))
        waves = normal(n, len(instrument.chips), RIPPLE_ORDERS[1] - RIPPLE_ORDERS[0])
        observed *= 1.0 + continuum_ripple(rms, waves, pixels, instrument)
        if instrument.valid_flux is not None:
            low, high = instrument.valid_flux
            observed = observed.masked_fill((observed < low) | (observed > high), math.nan)
        return observed, errors

    def lost(self, number: int, rng: np.random.Generator, pixels: slice) -> Tensor:
        """Mask (N, P) of the pixels without a measurement."""
        size = pixels.stop - pixels.start
        lost = np.zeros((number, size), dtype=bool)
        count = rng.poisson(self.bad_pixel * size, number)
        rows = np.repeat(np.arange(number), count)
        lost[rows, rng.integers(0, size, len(rows))] = True
        for row in np.flatnonzero(rng.random(number) < self.dead_stretch):
            start = rng.integers(0, size)
            lost[row, start : start + rng.integers(20, 151)] = True
        chips = list(self.instrument.chips_of(pixels).values())
        for row in np.flatnonzero(rng.random(number) < self.dead_chip):
            lost[row, chips[rng.integers(0, len(chips))]] = True
        ends = rng.integers(0, self.short_ends + 1, (number, 2))
        place = np.arange(size)
        lost |= (place < ends[:, :1]) | (place >= size - ends[:, 1:])
        return torch.from_numpy(lost)

    @cached_property
    def _edge(self) -> Tensor:
        """Relative noise (P,): a chip's ends receive less light."""
        noise = torch.empty(len(self.instrument))
        for chip in self.instrument.chips.values():
            place = torch.linspace(-1.0, 1.0, chip.stop - chip.start)
            noise[chip] = 1.0 + self.edge * place**2
        return noise


SPECTROGRAPHS: Mapping[str, Spectrograph] = MappingProxyType(
    {
        one.instrument.name: one
        for one in (
            # R varies by some 10 % over the field (Kos et al. 2017, MNRAS 464, 1259); one spectrum
            # in fifty lacks a camera (https://www.galah-survey.org/dr4/the_spectra).
            Spectrograph(
                GALAH,
                emulators="hermes",
                snr=(30.0, 60.0, 300.0),
                correlation=0.2,
                fibres=(0.91, 0.955, 1.0, 1.045, 1.09),
                line_spread=0.06,
                ripple=(0.004, 0.010),
                dead_chip=0.02,
            ),
            # The samples are 2.45 times as fine as the pixels; not all exposures reach the ends.
            Spectrograph(
                GAIA_RVS,
                emulators="rvs",
                snr=(20.0, 50.0, 300.0),
                correlation=0.65,
                fibres=(0.97, 1.0, 1.03),
                line_spread=0.03,
                ripple=(0.003, 0.008),
                edge=0.5,
                bad_pixel=0.0,
                dead_stretch=0.0,
                short_ends=25,
            ),
            Spectrograph(
                LOW_RESOLUTION,
                emulators="low_resolution",
                snr=(20.0, 50.0, 300.0),
                correlation=0.1,
                fibres=(0.9, 1.0, 1.1),
                line_spread=0.08,
                ripple=(0.010, 0.025),
            ),
            Spectrograph(
                MOONS_H,
                emulators="apogee",
                snr=(50.0, 80.0, 300.0),
                correlation=0.2,
                fibres=(0.95, 1.0, 1.05),
                line_spread=0.05,
                ripple=(0.003, 0.006),
                sky=0.015,
                telluric=0.008,
            ),
            Spectrograph(
                IGRINS_H,
                emulators="apogee",
                snr=(50.0, 80.0, 300.0),
                correlation=0.2,
                fibres=(1.0,),
                line_spread=0.04,
                ripple=(0.003, 0.008),
                edge=0.5,
                sky=0.015,
                telluric=0.015,
            ),
        )
    }
)
"""The instruments, besides APOGEE, that observe the mock survey's stars, by name."""


def noise_correlation(instrument: Instrument) -> float:
    """Correlation of the noise of neighbouring pixels; APOGEE's where it is not known."""
    spectrograph = SPECTROGRAPHS.get(instrument.name)
    return Observation.correlation if spectrograph is None else spectrograph.correlation
