"""Several instruments as one, so that one model knows the pixels of all."""

import itertools
from collections.abc import Sequence

import numpy as np

from stellarperceptron.instruments.spectrograph import Instrument

__all__ = ["combined", "instrument_parts"]

# Distance of the parts on the grid, far more pixels than any has. As a multiple of all usual
# numbers of pixels per token, it leaves the bins of each part as they are without the others.
_APART = 2**10 * 3**2 * 5**2 * 7 * 11 * 13


def combined(instruments: Sequence[Instrument]) -> Instrument:
    """Make one instrument of several, which lie side by side in wavelength.

    Its pixels are those of all parts in ascending order. Chips are called "GALAH blue", and each
    part is a range of that name. A bin of neighbouring pixels never mixes two parts. Normalization
    and limits of the flux stay with the parts.

    Parameters
    ----------
    instruments
        One or more, in any order. A single one is returned as it is.

    Raises
    ------
    ValueError
        There is none, or the wavelengths of two overlap; the message names both.

    Examples
    --------
    >>> from stellarperceptron.instruments import APOGEE, GAIA_RVS
    >>> both = combined([APOGEE, GAIA_RVS])
    >>> both, both.ranges["APOGEE"]
    (GAIA_RVS+APOGEE (9915 pixels, 8460.0 to 16943.5 Angstrom), slice(2401, 9915, None))
    """
    parts = [part for one in instruments for part in instrument_parts(one)]
    parts.sort(key=lambda one: float(one.wavelength[0]))
    if not parts:
        raise ValueError("there is no instrument to combine")
    if len(parts) == 1:
        return parts[0]
    for one, after in itertools.pairwise(parts):
        if one.wavelength[-1] >= after.wavelength[0]:
            raise ValueError(
                f"the wavelengths of {one} and {after} overlap: one model cannot have both"
            )
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    chips, ranges = {}, {}
    for one, start in zip(parts, starts[:-1], strict=True):
        ranges[one.name] = slice(start, start + len(one))
        for name, chip in one.chips.items():
            chips[f"{one.name} {name}"] = slice(start + chip.start, start + chip.stop)
    powers = [one.resolving_power for one in parts]
    known = all(power is not None for power in powers)
    return Instrument(
        "+".join(one.name for one in parts),
        np.concatenate([one.wavelength for one in parts]),
        chips=chips,
        ranges=ranges,
        resolving_power=np.concatenate(
            [np.broadcast_to(power, len(one)) for one, power in zip(parts, powers, strict=True)]
        )
        if known
        else None,
        grid_index=np.concatenate(
            [one.grid_index + number * _APART for number, one in enumerate(parts)]
        ),
        parts=tuple(parts),
    )


def instrument_parts(instrument: Instrument) -> tuple[Instrument, ...]:
    """The instruments that a combined one consists of; of any other, itself."""
    return instrument.parts or (instrument,)
