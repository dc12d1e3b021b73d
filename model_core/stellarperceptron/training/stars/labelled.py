"""Stars with known labels, of a survey or of arrays; their spectra are read on demand."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.survey_file import ERRORS
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.labels import resolve_label_names
from stellarperceptron.utils.arrays import as_array, as_names, as_rows, sentinels_to_nan

__all__ = ["BLOCK", "Stars", "array_stars", "survey_stars", "warn_without_errors"]

BLOCK = 4096
"""Stars that are read at a time."""


@dataclass(frozen=True)
class Stars:
    """N stars with n values and Q labels each, in physical units; values are read on demand.

    Attributes
    ----------
    read : callable
        Function of a slice of k stars that returns their values (k, n), NaN where missing.
    names : sequence of str
        (n,) names (or tokens) of the values.
    wavelengths : ndarray or None
        (n,) vacuum [Angstrom], 0 for values without one, or (N, n) if every star has its own; None
        if no value has one.
    labels, label_errors : ndarray
        (N, Q), NaN where missing. `label_errors` may be None: no errors.
    label_names : sequence of str
        (Q,) names of the labels.
    read_errors : callable or None
        The same as `read` for the standard deviations of the values; None if they are unknown.
    coefficients, decode : Tensor and callable, or None
        (N, k), and the function of (B, k) that makes the values (B, n) of these on any device, if
        values are not stored; see `EmulatedSpectra`.
    see : callable or None
        Function of (B, k) coefficients and an instrument that makes what the instrument sees, if
        any instrument can see the stars.
    windows : sequence of (float, float) or None
        First and last wavelength of each window in which `see` makes spectra [Angstrom, vacuum];
        None: there is one window, which holds all pixels.
    star_ids : ndarray or None
        (N,) names of the stars, by which another survey knows them, too; None: they have none.
    """

    read: Callable[[slice], np.ndarray]
    names: Sequence[str] | np.ndarray
    wavelengths: np.ndarray | None
    labels: np.ndarray
    label_errors: np.ndarray | None
    label_names: Sequence[str]
    read_errors: Callable[[slice], np.ndarray] | None = None
    coefficients: Tensor | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    see: Callable[[Tensor, Instrument], Tensor] | None = None
    windows: Sequence[tuple[float, float]] | None = None
    star_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self, size: int | None = None) -> list[slice]:
        """Slices of `BLOCK` stars, the last one shorter, of all stars or of the first `size`."""
        size = len(self) if size is None else size
        return [slice(i, min(i + BLOCK, size)) for i in range(0, size, BLOCK)]


def warn_without_errors(dataset: SpectraDataset) -> None:
    """Warn if a model that could be told the errors of a survey's spectra will not be."""
    if not dataset.train.has_errors:
        warnings.warn(
            f"{dataset.path} has no errors of its observed spectra: the model is told only the "
            "noise that augmentation adds",
            stacklevel=3,
        )


def survey_stars(
    dataset: SpectraDataset,
    kind: str = "observed",
    pixels: str | slice = "full",
    label_names: Sequence[str] | None = None,
    rows: np.ndarray | None = None,
    instrument: Instrument | None = None,
) -> Stars:
    """Training stars of a survey.

    Parameters
    ----------
    dataset
        The survey.
    kind, pixels
        "observed" or "synthetic" spectra, and which of their pixels; see `SpectraDataset`.
    label_names
        Names of the labels, as people write them; None: all of them.
    rows
        Row numbers of the training stars to use, or a mask; None: all of them.
    instrument
        Instrument that names the pixels, such as a combined one; None: the survey's own.

    Raises
    ------
    ValueError
        The survey lacks a label or the pixels; the message lists its labels.
    IndexError
        A row does not exist.
    """
    split, part = dataset.train, dataset.train.pixel_range(pixels)
    label_names = resolve_label_names(label_names or "all", dataset.label_names)
    columns = [dataset.label_names.index(label) for label in label_names]
    rows = np.arange(len(split)) if rows is None else as_rows(rows, len(split))
    wavelengths = dataset.wavelength[part]
    recipe, known = split.recipe(kind), split.has_errors and kind == "observed"
    bank = None if recipe is None else recipe.bank
    return Stars(
        read=lambda block: split.read(kind, rows[block], part),
        names=(instrument or dataset.instrument).pixel_names(wavelengths),
        wavelengths=wavelengths,
        labels=split.labels[rows][:, columns],
        label_errors=split.label_errors[rows][:, columns],
        label_names=list(label_names),
        read_errors=(lambda block: split.read(ERRORS, rows[block], part)) if known else None,
        coefficients=None if recipe is None else recipe.coefficients[torch.from_numpy(rows)],
        decode=None if recipe is None else functools.partial(recipe.flux, pixels=part),
        see=None if bank is None else recipe.seen_by,
        windows=None if bank is None else bank.windows(dataset.instrument),
        star_ids=split.ids[rows],
    )


def array_stars(
    inputs: np.ndarray | pd.DataFrame,
    names: Sequence[str] | None,
    label_names: Sequence[str] | None,
    errors: np.ndarray | None = None,
    wavelengths: np.ndarray | None = None,
) -> Stars:
    """Stars whose inputs and labels are columns of one array.

    Parameters
    ----------
    inputs
        (N, m) inputs and labels. A data frame gives the names itself.
    names
        (m,) names of the columns.
    label_names
        Names of the columns that are labels.
    errors
        (N, m) standard deviations of inputs and labels.
    wavelengths
        (m,) or (N, m) vacuum [Angstrom].

    Raises
    ------
    ValueError
        Shapes do not match, or a label is not among the columns.
    """
    if isinstance(inputs, pd.DataFrame) and names is None:
        names = inputs.columns.to_numpy(dtype=str)
    inputs = as_array(inputs, unit=None, name="inputs")
    names = np.asarray([] if names is None else as_names(names), dtype=str)
    if inputs.ndim != 2 or names.shape != inputs.shape[1:]:
        raise ValueError(f"inputs {inputs.shape} need one name for each column, not {names.shape}")
    inputs = sentinels_to_nan(inputs, names.tolist())
    if errors is not None:
        errors = as_array(errors, unit=None, name="inputs_err")
        if errors.shape != inputs.shape:
            raise ValueError(f"inputs_err {errors.shape} do not match inputs {inputs.shape}")
        errors = sentinels_to_nan(errors, [f"{name}_ERR" for name in names])
    unique, counts = np.unique(names, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"names given twice: {', '.join(map(str, unique[counts > 1][:5]))}")
    label_names = [] if label_names is None else as_names(label_names, "outputs_name")
    missing = [label for label in label_names if label not in names]
    if missing or not label_names:
        raise ValueError(f"outputs_name: {missing or 'none given'} not among the columns")
    if len(set(label_names)) < len(label_names):
        twice = [name for name in label_names if label_names.count(name) > 1]
        raise ValueError(f"outputs_name: names given twice: {', '.join(twice[:5])}")
    columns = [int(np.flatnonzero(names == label)[0]) for label in label_names]
    others = np.setdiff1d(np.arange(len(names)), columns)
    if wavelengths is not None:
        wavelengths = as_array(wavelengths, unit="Angstrom", name="inputs_wavelength")
        if np.shape(wavelengths) not in (names.shape, inputs.shape):
            raise ValueError(
                f"inputs_wavelength {np.shape(wavelengths)} match neither names nor inputs"
            )
        wavelengths = wavelengths[..., others]
    return Stars(
        read=lambda rows: inputs[rows][:, others],
        names=names[others],
        wavelengths=wavelengths,
        labels=inputs[:, columns],
        label_errors=None if errors is None else errors[:, columns],
        label_names=label_names,
        read_errors=None if errors is None else lambda rows: errors[rows][:, others],
    )
