"""Instruments: where they sample the spectrum, and how their spectra are prepared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from stellarperceptron.utils.pixel_slices import as_pairs, as_slice

__all__ = ["Continuum", "Instrument", "some_chips"]


@dataclass(frozen=True)
class Continuum:
    """Pseudo-continuum by which spectra are divided: a polynomial through each chip.

    Attributes
    ----------
    order : int
        Order of the polynomial.
    clip_low, clip_high : float or None
        Pixels more than this many standard deviations below or above the polynomial are excluded
        from the fit; None: no pixels are.
    iterations : int
        How many times the fit is repeated without the clipped pixels.
    """

    order: int = 4
    clip_low: float | None = None
    clip_high: float | None = None
    iterations: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Instrument:
    """A spectrograph, with the wavelength grid of its reduced spectra.

    Attributes
    ----------
    name : str
    wavelength : (P,) float64
        Wavelengths of the pixels [Angstrom, vacuum, or a Quantity], ascending.
    chips : mapping of str to slice
        Pixels of each detector or arm, one after another, with or without gaps in wavelength.
        Default: one chip, "all".
    ranges : mapping of str to slice
        Named parts of the spectrum; "full" and the names of the chips are always defined.
    resolving_power : float, (P,) float64 or None
        Wavelength over the full width at half maximum of the line-spread function; None: unknown.
    continuum : Continuum or None
        How spectra are normalized; None: they are normalized already.
    valid_flux : (float, float) or None
        Pixels with a normalized flux outside this interval are bad; None: no limits.
    pixel_prefix : str
        Prefix of pixel names in a model's vocabulary, before the number of the pixel. Default: the
        name of the instrument in lower case and "_".
    encoding_range : (float, float)
        Wavelengths at 0 and 1 of the sine-cosine encoding [Angstrom]. Default: the ends of the
        grid, rounded outwards to 100 Angstrom.
    grid_index : (P,) int64
        Number of each pixel on a grid without gaps, which determines the bin that it belongs to.
        Default: 0 to P - 1.
    parts : tuple of Instrument
        Those that a combined instrument consists of; see `instruments.combined`. Default: none.

    Raises
    ------
    ValueError
        There is no name, the wavelengths do not ascend, or another part does not fit them; the
        message names the instrument.

    Examples
    --------
    >>> spot = Instrument("SPOT", np.linspace(8460.0, 8700.0, 2401), resolving_power=20_000)
    >>> spot.pixel_names([8460.0, 8460.31]).tolist()
    ['spot_0', 'spot_3']
    >>> spot.encoding_range
    (8400.0, 8700.0)
    """

    name: str
    wavelength: np.ndarray
    chips: Mapping[str, slice] = field(default_factory=dict)
    ranges: Mapping[str, slice] = field(default_factory=dict)
    resolving_power: float | np.ndarray | None = None
    continuum: Continuum | None = None
    valid_flux: tuple[float, float] | None = None
    pixel_prefix: str = ""
    encoding_range: tuple[float, float] = ()  # replaced by the default when it is made
    grid_index: np.ndarray | None = None
    parts: tuple["Instrument", ...] = ()

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"an instrument needs a name, not {self.name!r}")
        try:
            for name, value in self._checked().items():
                object.__setattr__(self, name, value)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"instrument {self.name}: {error}") from error

    def _checked(self) -> dict[str, Any]:
        """All parts but the name, checked and completed."""
        grid = _constant(_in_angstrom(self.wavelength), np.float64)
        size, step = len(grid), np.diff(grid)
        if size < 2 or not np.isfinite(grid).all() or grid[0] <= 0 or (step <= 0).any():
            raise ValueError("wavelengths must be finite, positive and ascending, each once")
        chips = self.chips or {"all": (0, size)}
        chips = {name: as_slice(chip, size, what=f"chip {name}") for name, chip in chips.items()}
        starts = [*(chip.start for chip in chips.values()), size]
        if starts != [0, *(chip.stop for chip in chips.values())] or np.diff(starts).min() < 2:
            raise ValueError(
                f"chips must follow one another from pixel 0 to {size}, two or more pixels each, "
                f"not {as_pairs(chips)}"
            )
        ranges = {n: as_slice(part, size, what=f"range {n}") for n, part in self.ranges.items()}
        power = self.resolving_power
        if power is not None:
            power = float(power) if np.ndim(power) == 0 else _constant(power, np.float64)
            if np.shape(power) not in ((), (size,)) or not np.all((power > 0) & np.isfinite(power)):
                raise ValueError(f"resolving_power must be a positive number, or {size} of them")
        around = math.floor(grid[0] / 100) * 100, math.ceil(grid[-1] / 100) * 100
        index = _constant(range(size) if self.grid_index is None else self.grid_index, np.int64)
        if len(index) != size or (np.diff(index) <= 0).any():
            raise ValueError(f"grid_index must be {size} whole numbers in ascending order")
        return {
            "wavelength": grid,
            "chips": MappingProxyType(chips),
            "ranges": MappingProxyType(ranges | {"full": slice(0, size)}),
            "resolving_power": power,
            "valid_flux": None if self.valid_flux is None else _interval(self.valid_flux),
            "pixel_prefix": str(self.pixel_prefix) or f"{self.name.lower()}_",
            "encoding_range": _interval(self.encoding_range or around),
            "grid_index": index,
        }

    def __len__(self) -> int:
        """Number of pixels."""
        return len(self.wavelength)

    def __repr__(self) -> str:
        low, high = self.wavelength[[0, -1]]
        return f"{self.name} ({len(self)} pixels, {low:.1f} to {high:.1f} Angstrom)"

    def __eq__(self, other: object) -> bool:
        """Whether all parts agree, arrays to a relative 1e-10, since machines round differently."""
        if not isinstance(other, Instrument):
            return NotImplemented
        return self is other or all(
            _alike(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)
        )

    def __hash__(self) -> int:
        return hash((self.name, len(self), self.pixel_prefix))

    def __reduce__(self):
        return Instrument.from_dict, (self.to_dict(),)

    # --- the grid --------------------------------------------------------------------------

    @cached_property
    def pixel_width(self) -> np.ndarray:
        """(P,) width of each pixel [Angstrom]: the larger of the steps to its neighbours.

        Pixels that a chip leaves out (jumps of `grid_index`) make none of its pixels wider.
        """
        width = np.empty(len(self))
        for chip in self.chips.values():
            steps = np.diff(self.wavelength[chip]) / np.diff(self.grid_index[chip])
            width[chip] = np.maximum(np.append(steps, steps[-1]), np.append(steps[0], steps))
        width.flags.writeable = False
        return width

    @cached_property
    def log_step(self) -> float | None:
        """Step of log10 of the wavelength from pixel to pixel; None where it is not uniform."""
        log, index = np.log10(self.wavelength), self.grid_index
        step = round(float((log[-1] - log[0]) / (index[-1] - index[0])), 15)
        uniform = np.abs(log - (log[0] + step * (index - index[0]))).max() < 1e-3 * step
        return step if uniform else None

    def nearest_pixels(self, wavelengths: np.ndarray) -> np.ndarray:
        """(n,) index of the pixel nearest to each wavelength (n,) [Angstrom], at any distance."""
        grid, wavelengths = self.wavelength, np.asarray(_in_angstrom(wavelengths), float)
        right = np.searchsorted(grid, wavelengths).clip(1, len(grid) - 1)
        return np.where(2 * wavelengths < grid[right - 1] + grid[right], right - 1, right)

    def pixels_at(self, wavelengths: np.ndarray) -> np.ndarray:
        """Index of the pixel at each wavelength.

        Parameters
        ----------
        wavelengths
            (n,) vacuum [Angstrom].

        Raises
        ------
        ValueError
            A wavelength is more than half a pixel away from every pixel.
        """
        wavelengths = np.asarray(_in_angstrom(wavelengths), dtype=np.float64)
        pixels = self.nearest_pixels(wavelengths)
        # A wavelength halfway between two pixels belongs to one of them despite rounding.
        half = 0.5 * (1 + 1e-9) * self.pixel_width[pixels]
        off = ~(np.abs(wavelengths - self.wavelength[pixels]) <= half)
        if off.any():
            raise ValueError(
                f"{off.sum()} wavelengths, {wavelengths[off][0]:.3f} Angstrom the first, are on no "
                f"{self.name} pixel: resample the spectra to the {self.name} grid, or give the "
                "names of the pixels (names=...)"
            )
        return pixels

    def pixel_names(self, wavelengths: np.ndarray | None = None) -> np.ndarray:
        """Names (n,) of pixels in a model's vocabulary.

        Parameters
        ----------
        wavelengths
            (n,) vacuum [Angstrom]; None: all pixels.

        Raises
        ------
        ValueError
            A wavelength is more than half a pixel away from every pixel.
        """
        pixels = np.arange(len(self)) if wavelengths is None else self.pixels_at(wavelengths)
        return np.char.add(self.pixel_prefix, pixels.astype(str))

    def pixel_range(
        self, pixels: str | slice | Sequence[int], n_pixels: int | None = None
    ) -> slice:
        """Turn the name of a pixel range, or its two ends, into a slice.

        Parameters
        ----------
        pixels
            A name of `ranges` or `chips`, text like "4107:4619", a slice of step 1, or a pair.
        n_pixels
            Length of the spectra; names other than "full" need spectra of the whole grid.

        Raises
        ------
        ValueError
            For an unknown name, and for a range that is empty or outside the spectrum.
        """
        size = len(self) if n_pixels is None else n_pixels
        names = {**self.chips, **self.ranges, "full": slice(0, size)}
        if size != len(self) and isinstance(pixels, str) and pixels in names and pixels != "full":
            raise ValueError(
                f"pixel range '{pixels}' of {self.name} belongs to {len(self)} pixels, not to "
                f"{size}: give it as 'start:stop'"
            )
        return as_slice(pixels, size, names, f"{self.name} pixel range")

    def chips_of(self, pixels: slice = slice(None)) -> dict[str, slice]:
        """Slice of each chip within a range of the pixels; chips outside it are left out.

        Parameters
        ----------
        pixels
            A slice of step 1.
        """
        start, stop, _ = pixels.indices(len(self))
        inside = {
            name: slice(max(chip.start, start) - start, min(chip.stop, stop) - start)
            for name, chip in self.chips.items()
        }
        return {name: chip for name, chip in inside.items() if chip.start < chip.stop}

    # --- in files --------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Describe the instrument in values that JSON can hold.

        An instrument of `INSTRUMENTS` is described by its name and number of pixels.
        """
        from stellarperceptron.instruments import INSTRUMENTS  # the table is made of this class

        if INSTRUMENTS.get(self.name) == self:
            return {"name": self.name, "pixels": len(self)}
        if self.parts:
            return {"name": self.name, "parts": [part.to_dict() for part in self.parts]}
        about = {part.name: getattr(self, part.name) for part in fields(self)}
        del about["parts"]
        about |= {"chips": as_pairs(self.chips), "ranges": as_pairs(self.ranges)}
        if self.continuum is not None:
            about["continuum"] = asdict(self.continuum)
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in about.items()}
        for name in ("encoding_range", "valid_flux"):
            plain[name] = None if plain[name] is None else list(plain[name])
        if plain["grid_index"] == list(range(len(self))):
            del plain["grid_index"]
        return plain

    @classmethod
    def from_dict(cls, about: Mapping[str, Any]) -> "Instrument":
        """Make an instrument from the result of `to_dict`.

        Raises
        ------
        ValueError
            The instrument is not known by its name, or its parts do not fit together.
        """
        from stellarperceptron.instruments import instrument
        from stellarperceptron.instruments.combined import combined

        if not isinstance(about, Mapping):
            raise ValueError(f"{about!r} describes no instrument")
        if set(about) == {"name", "parts"} and isinstance(about["parts"], list):
            return combined([cls.from_dict(part) for part in about["parts"]])
        if set(about) == {"name", "pixels"}:
            known = instrument(about["name"])
            if len(known) != about["pixels"]:
                raise ValueError(f"{known} is known here; this one has {about['pixels']} pixels")
            return known
        unknown = set(about) - {part.name for part in fields(cls)} | {"parts"} & set(about)
        if unknown or not {"name", "wavelength"} <= set(about):
            raise ValueError(
                f"instrument {about.get('name')}: a name and wavelengths are needed"
                + (f", and {', '.join(sorted(map(str, unknown)))} unknown" if unknown else "")
            )
        continuum = about.get("continuum")
        try:
            return cls(**{**about, "continuum": continuum and Continuum(**continuum)})
        except TypeError as error:
            raise ValueError(f"instrument {about['name']}: {error}") from error


def _in_angstrom(wavelengths: Any) -> Any:
    """Wavelengths with a unit of length in Angstrom, others as they are."""
    if getattr(wavelengths, "unit", None) is None:
        return wavelengths
    from astropy import units as u  # takes a while, and most wavelengths are plain numbers

    return u.Quantity(wavelengths).to_value(u.AA, u.spectral())


def _constant(values: Any, dtype: type) -> np.ndarray:
    """Read-only copy of a list of numbers (n,)."""
    array: np.ndarray = np.array(values, dtype=dtype)
    if array.ndim != 1:
        raise ValueError(f"a list of numbers is needed, not one of the shape {array.shape}")
    array.flags.writeable = False
    return array


def _interval(ends: Sequence[float]) -> tuple[float, float]:
    low, high = (float(end) for end in ends)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{(low, high)} are not two ascending numbers")
    return low, high


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        if one is None or other is None or np.shape(one) != np.shape(other):
            return False
        return bool(np.allclose(one, other, rtol=1e-10, atol=0))
    return one == other


def some_chips(
    instrument: Instrument,
    chips: Sequence[str],
    name: str,
    resolving_power: float | None = None,
    sampling: float = 2.5,
) -> Instrument:
    """Make an instrument that has some chips of another one.

    Parameters
    ----------
    instrument
        The other instrument.
    chips
        Neighbouring chips of it, in order of wavelength.
    name
        Name of the new instrument.
    resolving_power
        Wavelength over full width at half maximum. None: pixels and resolving power of the other
        instrument.
    sampling
        Pixels a resolution element, if there is a `resolving_power`.

    Returns
    -------
    Instrument
        Of n pixels, equally wide in the logarithm of the wavelength where they are new.
    """
    parts = [instrument.chips[chip] for chip in chips]
    if resolving_power is None:
        whole = slice(parts[0].start, parts[-1].stop)
        wavelength, index = instrument.wavelength[whole], instrument.grid_index[whole]
        lengths, power = [part.stop - part.start for part in parts], instrument.resolving_power
        power = power[whole] if np.ndim(power) else power
    else:
        step, power = 1 / (sampling * resolving_power), resolving_power
        ends = [np.log(instrument.wavelength[[part.start, part.stop - 1]]) / step for part in parts]
        pieces = [np.arange(np.ceil(low), np.floor(high)) for low, high in ends]
        lengths, index = list(map(len, pieces)), np.concatenate(pieces).astype(int)
        wavelength = np.exp(step * index)
    starts = np.cumsum([0, *lengths]).tolist()
    return replace(
        instrument,
        name=name,
        wavelength=wavelength,
        chips={chip: slice(*starts[i : i + 2]) for i, chip in enumerate(chips)},
        ranges={},
        resolving_power=power,
        pixel_prefix="",
        encoding_range=(),
        grid_index=index,
    )
