"""Ranges of pixels: by name, as text, or as two numbers."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

__all__ = ["as_pairs", "as_slice"]


def as_slice(
    pixels: str | slice | Sequence[int],
    size: int,
    names: Mapping[str, slice] = MappingProxyType({}),
    what: str = "pixel range",
) -> slice:
    """Turn a range of pixels into a slice with both ends.

    Parameters
    ----------
    pixels
        A name, text like "4107:4619", a slice of step 1, or a pair (start, stop).
    size
        Number of pixels, which the range must lie within.
    names
        Ranges by name.
    what
        Named in the message.

    Raises
    ------
    ValueError
        For an unknown name, and for a range that is empty or outside the pixels.
    """
    if isinstance(pixels, str):
        ends = re.fullmatch(r"(\d*):(\d*)", pixels)
        if pixels in names:
            pixels = names[pixels]
        elif ends:
            pixels = slice(*(int(end) if end else None for end in ends.groups()))
        else:
            raise ValueError(
                f"unknown {what} '{pixels}': known are {', '.join(names)} and 'start:stop'"
            )
    part = pixels if isinstance(pixels, slice) else slice(*pixels)
    start = 0 if part.start is None else int(part.start)
    stop = size if part.stop is None else int(part.stop)
    if part.step not in (None, 1) or not 0 <= start < stop <= size:
        raise ValueError(f"{what} {start}:{stop} does not lie within 0:{size}")
    return slice(start, stop)


def as_pairs(parts: Mapping[str, slice]) -> dict[str, list[int]]:
    """Both ends of ranges by name, as JSON can hold them."""
    return {name: [part.start, part.stop] for name, part in parts.items()}
