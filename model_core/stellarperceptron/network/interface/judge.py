"""Flags of spectra, the pixels of each instrument judged by themselves."""

from collections.abc import Mapping

import numpy as np

from stellarperceptron.data.flags import Reference, SpectrumFlags
from stellarperceptron.data.standardizer import Standardizer
from stellarperceptron.instruments.combined import instrument_parts
from stellarperceptron.instruments.spectrograph import Instrument

__all__ = ["Judge"]


class Judge:
    """Flags of spectra with the same pixels, of one instrument or of several.

    Parameters
    ----------
    standardizer, tokens, names, instrument
        See `SpectrumFlags`.
    references
        What training spectra are like, by the name of the instrument.

    Attributes
    ----------
    references : list of Reference
        Those of the instruments whose pixels these are.
    """

    def __init__(
        self,
        standardizer: Standardizer,
        tokens: np.ndarray,
        names: np.ndarray,
        instrument: Instrument | None,
        references: Mapping[str, Reference],
    ):
        self.parts: list[tuple[np.ndarray, SpectrumFlags]] = []
        self.references: list[Reference] = []
        number = {}
        if instrument is not None and instrument.parts:
            number = {name: pixel for pixel, name in enumerate(instrument.pixel_names().tolist())}
        pixels = np.array([number.get(name, -1) for name in names])
        for one in (None,) if instrument is None else instrument_parts(instrument):
            columns, own_names = np.arange(len(tokens)), names
            if one is not instrument:
                within = instrument.ranges[one.name]
                columns = np.flatnonzero((pixels >= within.start) & (pixels < within.stop))
                own_names = one.pixel_names()[pixels[columns] - within.start]
            if len(columns):
                reference = references.get("" if one is None else one.name)
                judge = SpectrumFlags(standardizer, tokens[columns], own_names, one, reference)
                self.parts.append((columns, judge))
                self.references += [] if reference is None else [reference]

    def __call__(
        self, flux: np.ndarray, valid: np.ndarray, errors: np.ndarray | None = None
    ) -> np.ndarray:
        """Flags (N,) of spectra (N, n); see `SpectrumFlags`."""
        flags = np.zeros(len(flux), dtype=np.int64)
        for columns, judge in self.parts:
            whole = len(columns) == flux.shape[1]
            parts = (a if whole or a is None else a[:, columns] for a in (flux, errors))
            own, own_errors = parts
            flags |= judge(own, valid, own_errors)
        return flags
