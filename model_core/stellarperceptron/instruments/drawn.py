"""Instruments that training makes up, so that one that nobody has seen is an ordinary one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stellarperceptron.instruments.rows import log_widths
from stellarperceptron.instruments.spectrograph import Continuum, Instrument

__all__ = ["DrawnInstruments"]

POWERS = 20  # resolving powers that are told apart
SHORTEST_CHIP = 20  # pixels; no continuum is fitted to fewer
TOLERANCE = 1.1  # a user's numbers are not exact: limits are wider by this factor
CONTINUUM = Continuum(order=4, clip_high=5.0, iterations=1)  # APOGEE's
VALID_FLUX = (0.02, 1.3)


@dataclass(frozen=True)
class DrawnInstruments:
    """How instruments are drawn; see `draw`.

    Parameters
    ----------
    share
        Fraction of the batches of stage 1 that show a drawn instrument (data.source = "emulator"
        only); the others show data.instrument. 0: none.
    resolving_power
        Lowest and highest; 20 values between them are drawn, in equal steps of the logarithm.
    sampling
        Pixels a resolution element, drawn uniformly.
    gaps
        Largest number of gaps between chips.
    gap
        Largest width of a gap, as a fraction of the spectrum's pixels.
    bad
        Largest fraction of bad pixels.
    arms
        Whether chips, gaps within them and continuum are those of the model's instrument. Otherwise
        every window is a chip with a polynomial of fourth order.
    combined_share
        Fraction of the drawn batches that show two instruments in one context: one below a
        wavelength that is drawn, too, another above it.
    """

    share: float = 0.0
    resolving_power: tuple[float, float] = (4_000.0, 50_000.0)
    sampling: tuple[float, float] = (2.0, 3.5)
    gaps: int = 3
    gap: float = 0.08
    bad: float = 0.02
    arms: bool = False
    combined_share: float = 0.0

    def __post_init__(self):
        problems = []
        for name, lowest in (("resolving_power", 100), ("sampling", 1)):
            low, high = getattr(self, name)
            if not lowest <= low <= high < math.inf:
                problems.append(f"{name} = {(low, high)} is no range above {lowest}")
        shares = (("share", 1), ("gap", 0.2), ("bad", 0.5), ("combined_share", 1))
        for name, highest in shares:
            if not 0 <= getattr(self, name) <= highest:
                problems.append(f"{name} = {getattr(self, name)} is not in [0, {highest}]")
        if not 0 <= self.gaps <= 4:
            problems.append(f"gaps = {self.gaps} is not in 0..4")
        if self.arms and self.combined_share:
            problems.append("arms = true needs combined_share = 0: arms have fixed borders")
        if problems:
            raise ValueError("impossible drawn instruments: " + "; ".join(problems))

    @cached_property
    def powers(self) -> np.ndarray:
        """(20,) resolving powers."""
        return np.geomspace(*self.resolving_power, POWERS)

    def draw(
        self,
        random: np.random.Generator,
        windows: Sequence[tuple[float, float]],
        like: Instrument | None = None,
    ) -> Instrument:
        """Draw an instrument that covers some windows of wavelength.

        Its pixels are equally wide in the logarithm of the wavelength, and the first of them begins
        at random within a pixel of the first window's end. Windows and gaps divide them into chips,
        each with its own pseudo-continuum. Chips of fewer than 20 pixels are left out.

        Parameters
        ----------
        windows
            First and last wavelength of each, ascending [Angstrom, vacuum].
        like
            The model's instrument, which `arms` needs.
        """
        continuum, valid_flux = CONTINUUM, VALID_FLUX
        left_out: list[np.ndarray] = []
        if self.arms and like is not None:
            continuum, valid_flux = like.continuum or CONTINUUM, like.valid_flux or VALID_FLUX
            ends = [like.wavelength[[chip.start, chip.stop - 1]] for chip in like.chips.values()]
            windows = [(float(low), float(high)) for low, high in ends]
            jumps = np.flatnonzero(np.diff(np.asarray(like.grid_index)) > 1)
            left_out = [like.wavelength[[jump, jump + 1]] for jump in jumps]
        power = float(random.choice(self.powers))
        step = 1 / (power * random.uniform(*self.sampling))
        low, high = windows[0][0], windows[-1][1]
        length = int(math.log(high / low) / step)
        wavelength = low * np.exp(step * (random.random() + np.arange(length)))
        inside = [np.flatnonzero((wavelength >= a) & (wavelength <= b)) for a, b in windows]
        index = np.concatenate(inside)
        window = np.repeat(np.arange(len(windows)), [len(part) for part in inside])
        kept = np.ones(len(index), dtype=bool)
        for _ in range(random.integers(self.gaps + 1)):
            width = int(len(index) * self.gap * random.random())
            start = int(random.integers(len(index) - width + 1))
            kept[start : start + width] = False
        index, window = index[kept], window[kept]
        border = (np.diff(index) > 1) | (np.diff(window) > 0)
        parts = np.split(index, np.flatnonzero(border) + 1)
        for low, high in left_out:
            parts = [p[(wavelength[p] <= low) | (wavelength[p] >= high)] for p in parts]
        parts = [part for part in parts if len(part) >= SHORTEST_CHIP] or [index]
        ends = np.cumsum([0, *map(len, parts)]).tolist()
        chips = {f"chip_{i}": slice(*ends[i : i + 2]) for i in range(len(parts))}
        index = np.concatenate(parts)
        return Instrument(
            "DRAWN",
            wavelength[index],
            chips=chips,
            resolving_power=power,
            continuum=continuum,
            valid_flux=valid_flux,
            grid_index=index,
        )

    def refuse(self, wavelengths: np.ndarray, resolving_power: np.ndarray) -> None:
        """Refuse an instrument that is unlike all that were drawn.

        Parameters
        ----------
        wavelengths, resolving_power
            (n,) of its pixels.

        Raises
        ------
        ValueError
            Resolving power or sampling lie outside; the message says what may be done.
        """
        power = float(np.nanmedian(resolving_power))
        low, high = self.resolving_power
        if not low / TOLERANCE <= power <= high * TOLERANCE:
            raise ValueError(
                f"a resolving power of {power:.0f} is outside of {low:.0f} to {high:.0f}, which "
                "the model was trained on"
                + (": smooth the spectra" if power > high else ": train a model that covers it")
            )
        sampling = float(np.nanmedian(1 / (resolving_power * log_widths(wavelengths))))
        low, high = self.sampling
        if not low / TOLERANCE <= sampling <= high * TOLERANCE:
            raise ValueError(
                f"{sampling:.1f} pixels a resolution element are outside of {low:g} to {high:g}, "
                "which the model was trained on: check the resolving power"
                + (", or average neighbouring pixels" if sampling > high else "")
            )

    @classmethod
    def from_dict(cls, about: dict[str, Any]) -> "DrawnInstruments":
        """Make it from its parameters, as JSON holds them.

        Raises
        ------
        ValueError
            An entry is unknown or impossible.
        """
        try:
            about = dict(about)
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in about.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{about!r} describes no drawn instruments: {error}") from error
