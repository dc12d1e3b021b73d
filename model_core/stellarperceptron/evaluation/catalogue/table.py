"""A catalogue: what is asked of a model for many spectra, and the table with the answers."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.table import Column, QTable, Table

from stellarperceptron.data.flags import Flag
from stellarperceptron.evaluation.catalogue.files import Reading
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.labels import label as label_named
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.network.interface.spectra import too_noisy
from stellarperceptron.utils.data_utils import atomic_output, escaped, written_by

__all__ = [
    "SUFFIXES",
    "catalogue_table",
    "errors_of",
    "instrument_of",
    "predict_labels",
    "template_of",
    "write_catalogue",
]

SUFFIXES = (".fits", ".ecsv", ".csv")
"""Endings of a catalogue's name, which say what is written."""

_DESCRIPTIONS = {
    "flags": "why labels should not be believed, sum of "
    + ", ".join(f"{flag.value} {flag.name}" for flag in Flag),
}


def instrument_of(model: StellarPerceptron) -> Instrument:
    """Instrument whose spectra a model reads.

    Raises
    ------
    ValueError
        The model has none.
    """
    if model.instrument is None:
        raise ValueError("the checkpoint has no instrument: it does not say which files it reads")
    return model.instrument


def template_of(model: StellarPerceptron) -> np.ndarray | None:
    """Median spectrum (P,) of a model's training stars on all pixels of its instrument.

    None where velocities cannot be measured with it: pixels are not in equal steps of the logarithm
    of the wavelength, or some were never seen.
    """
    instrument = instrument_of(model)
    if instrument.log_step is None:
        return None
    names = instrument.pixel_names()
    if not np.isin(names, model.vocabs).all():
        return None
    tokens = model.tokenize(names)
    if len(model.standardizer.missing(tokens)):
        return None
    return np.asarray(model.standardizer.center[tokens], dtype=np.float64)


def errors_of(readings: Sequence[Reading]) -> list[np.ndarray]:
    """Standard deviations (P,) of the flux over the pseudo-continuum, NaN in bad pixels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return [spectrum.error / (spectrum.flux / flux) for spectrum, flux in readings]


def predict_labels(
    model: StellarPerceptron,
    spectra: Sequence[np.ndarray],
    pixels: slice,
    labels: Sequence[str],
    shuffles: int,
    errors: Sequence[np.ndarray] | None = None,
) -> pd.DataFrame:
    """Mean prediction over shuffles of the pixels into patches.

    Parameters
    ----------
    model
        A model with an instrument.
    spectra
        N normalized fluxes (P,) on the instrument's pixels, NaN for bad ones.
    pixels
        Those that the model sees.
    labels
        Names of labels.
    shuffles
        How often to shuffle. Spectra that fit into the context are not shuffled.
    errors
        N standard deviations (P,) of the fluxes, see `StellarPerceptron.predict`.

    Returns
    -------
    DataFrame
        The columns of `StellarPerceptron.predict`: means; of whole numbers all bits that were set.
    """
    instrument = instrument_of(model)
    flux = _rows(spectra, instrument, pixels)
    tokens = np.unique(instrument.grid_index[pixels] // model.config.pixels_per_token)
    if len(tokens) <= model.config.context_length:
        shuffles = 1
    wavelength = instrument.wavelength[pixels]
    options: dict[str, Any] = {"progress": False}
    if errors is not None:
        options["errors"] = _rows(errors, instrument, pixels)
    tables = [
        model.predict(flux, wavelength, labels, seed=seed, **options) for seed in range(shuffles)
    ]
    mean = sum(tables[1:], start=tables[0]) / shuffles
    for name in mean:
        if tables[0][name].dtype.kind in "iu":
            mean[name] = np.bitwise_or.reduce([table[name] for table in tables])
    return mean


def _rows(values: Sequence[np.ndarray], instrument: Instrument, pixels: slice) -> np.ndarray:
    """Array (N, n) of N times (P,) numbers, of which there may be none."""
    return np.array(values, dtype=np.float32).reshape(-1, len(instrument))[:, pixels]


def catalogue_table(
    files: Sequence[Path],
    readings: Sequence[Reading],
    predicted: pd.DataFrame,
    pixels: slice,
    checkpoint: str,
    errors: Sequence[np.ndarray] | None = None,
) -> Table:
    """Table of a row a file, with units and descriptions.

    Parameters
    ----------
    files, readings
        N files and what was read of them.
    predicted
        (N, ...) predictions, `<LABEL>`, `<LABEL>_error` and whatever else there is.
    pixels
        Those that the model saw.
    checkpoint
        Checksum of the model's weights.
    errors
        N standard deviations (P,) that the model was given.
    """
    table = Table()
    n = len(files)

    def add(name: str, values, dtype, description: str, unit: str = "") -> None:
        array = np.array(list(values), dtype=dtype)
        table[name] = Column(array, unit=unit or None, description=description)

    spectra = [spectrum for spectrum, _ in readings]
    snr = [math.nan if s.snr is None else s.snr for s in spectra]
    good = [np.isfinite(flux[pixels]) for _, flux in readings]
    if errors is not None:
        good = [g & ~too_noisy(e[None, pixels])[0] for g, e in zip(good, errors, strict=True)]
    add("id", [s.star_id for s in spectra], str, "name of the star in the file's header")
    for name in predicted:
        of, is_error = name.removesuffix("_error"), name.endswith("_error")
        entry = label_named(of)
        if is_error or f"{name}_error" in predicted:
            what = "standard deviation of " if is_error else ""
            unit, description = entry.unit, f"{what}{entry.plain}"
        else:
            unit, description = "", _DESCRIPTIONS.get(name, "")
        add(name, predicted[name], predicted[name].dtype, description, unit)
    add("snr", snr, float, "median signal-to-noise ratio a pixel, from the header")
    add(
        "radial_velocity",
        [s.velocity for s in spectra],
        float,
        "velocity that was taken out of the wavelengths; 0 where the file is at rest",
        "km/s",
    )
    add(
        "good_pixels",
        [g.mean() for g in good],
        float,
        "share of good pixels among those that the model saw",
    )
    add("kind", [s.kind for s in spectra], str, "kind of file")
    add("file", map(str, files), str, "path of the file")
    add("checkpoint", [checkpoint[:16]] * n, str, "first 16 digits of the weights' SHA-256")
    add("version", [written_by()["version"]] * n, str, "version of stellarperceptron")
    return table


def write_catalogue(table: Table, path: Path) -> None:
    """Write a table as FITS, ECSV or CSV, by the suffix; CSV has no room for units."""
    with atomic_output(path) as temporary:
        if path.suffix == ".csv":
            escaped(table.to_pandas()).to_csv(temporary, index=False)
        elif path.suffix == ".ecsv":
            table.write(temporary, format="ascii.ecsv")
        else:
            # The standard of FITS does not know dex. Astropy finds the units of quantities in the
            # header's comments, other programs find them with the descriptions.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*'dex' could not be saved")
                QTable(table).write(temporary, format="fits")
            with fits.open(temporary, mode="update") as hdus:
                for number, name in enumerate(table.colnames, start=1):
                    unit = f" [{table[name].unit}]" if table[name].unit else ""
                    hdus[1].header.set(
                        f"TCOMM{number}", f"{table[name].description}{unit}", after=f"TFORM{number}"
                    )
