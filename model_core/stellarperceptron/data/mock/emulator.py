"""Emulators of spectra: Gaussian processes on principal components.

A spectrum (flux over continuum, vacuum, rest frame, R = 60,000) is a mean plus principal
components, each times a coefficient; a coefficient is a smooth function of the stellar labels,

    c_k(theta) = w_k . h(theta) + sum_i alpha_ik K(theta, theta_i),

with h = (1, x_1 .. x_20), the sum over the spectra of the grid, and K the sum of two squared
exponential kernels, one long and one short, with one length scale a label (Rasmussen & Williams
2006, chapters 2 and 5). Being linear in the components, a spectrum can be convolved, resampled
and differentiated by convolving and resampling the components once.

The emulator *nominal* is fitted to spectra with the line lists as published; *nature* is *nominal*
plus a second, much smaller set of components for the difference between the line lists of real
stars and the published ones (the additive model of Kennedy & O'Hagan 2000). They are fitted by
``dataset/mock_survey/fit_emulator.py``. The file in the package holds those of APOGEE's H band;
files of other ranges are opened by their path.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from astropy import units as u
from torch import Tensor

from stellarperceptron.data.mock.gaussian_process import GaussianProcess
from stellarperceptron.data.mock.line_spread import FineGrid
from stellarperceptron.data.mock.stellar_labels import (
    LABELS,
    standard_labels,
    to_inputs,
)
from stellarperceptron.utils.arrays import as_array, check_array_archive, sentinels_to_nan
from stellarperceptron.utils.data_utils import atomic_output

__all__ = [
    "EMULATOR_FILE",
    "Emulator",
    "Part",
    "Projection",
    "read_emulators",
    "write_emulators",
]

EMULATOR_FILE = Path(__file__).parent / "files" / "emulators.npz"
FORMAT_VERSION = 1
MOST_VALUES = 10_000_000  # of an array in a file; the largest of the package has 1.7 million
READ_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError),
    *(KeyError, TypeError, ValueError, AttributeError),
)
"""Exceptions that reading a damaged file, or one of another kind, may raise."""
PARTS = {"nominal": ("nominal",), "nature": ("nominal", "difference")}  # each a sum of parts


@dataclass
class Projection:
    """Mean (P,) and components (K, P) after convolution and resampling: spectra for a product."""

    mean: Tensor
    components: Tensor

    def __call__(self, coefficients: Tensor) -> Tensor:
        """Spectra (N, P) of the coefficients (N, K)."""
        return torch.addmm(self.mean, coefficients.to(self.mean.dtype), self.components)


@dataclass
class Part:
    """
    Mean and components with the Gaussian processes of their coefficients.

    Attributes
    ----------
    mean : (H,), components : (K, H)
        Float64, at full resolution.
    processes
        Gaussian processes whose coefficients, one after another, are those of the components.
    low, high : (20,)
        Range of the labels in the grid (units of `LABELS`).
    input_low, input_high : (20,)
        Inputs (`to_inputs`) that are scaled to -1 and to 1.
    info
        Provenance: grid, number of spectra, held-out error.
    """

    mean: Tensor
    components: Tensor
    processes: Sequence[GaussianProcess]
    low: Tensor
    high: Tensor
    input_low: Tensor
    input_high: Tensor
    info: dict = field(default_factory=dict)

    def scaled(self, values: Tensor) -> Tensor:
        """Inputs (N, 20) scaled to -1..1 over the grid from labels (N, 20)."""
        return (to_inputs(values) - self.input_low) / (self.input_high - self.input_low) * 2.0 - 1.0

    def coefficients(self, values: Tensor) -> Tensor:
        """Coefficients (N, K) at the labels (N, 20)."""
        x = self.scaled(values)
        return torch.cat([process(x) for process in self.processes], dim=1)


@dataclass
class Emulator:
    """
    Emulator of spectra. Open one with ``Emulator.load("nominal")`` or ``Emulator.load("nature")``.

    Attributes
    ----------
    name
        ``"nominal"`` or ``"nature"``.
    parts
        Their sum is the spectrum (H,).
    grid
        Wavelengths and resolution of that spectrum.
    """

    name: str
    parts: Sequence[Part]
    grid: FineGrid

    @staticmethod
    def load(
        name: str,
        path: str | os.PathLike = EMULATOR_FILE,
        device: torch.device | str = "cpu",
    ) -> "Emulator":
        """
        Open one of the emulators of a file, by default of the file in the package.

        Raises
        ------
        FileNotFoundError
            No such file.
        ValueError
            No such emulator (in this file), or the file is damaged, none of `write_emulators`, of
            another version or of other labels; the message names the path.
        """
        if name not in PARTS:
            raise ValueError(f"emulator is one of {list(PARTS)}, not {name!r}")
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: no such emulator file")
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("not an archive of arrays")
            check_array_archive(Path(path), MOST_VALUES)
            with np.load(path, allow_pickle=False) as file:
                version = int(file["format_version"])
                if version != FORMAT_VERSION:
                    raise ValueError(f"format {version}, this is format {FORMAT_VERSION}")
                names = tuple(file["labels"].tolist())
                if names != LABELS:
                    raise ValueError(f"its labels are {names}, those of this version {LABELS}")
                absent = [part for part in PARTS[name] if f"{part}/info" not in file]
                if absent:
                    raise ValueError(f"it holds no emulator {name!r}, of which {absent} is missing")
                parts = [_read_part(file, part, device) for part in PARTS[name]]
                grid = _read_grid(file, len(parts[0].mean))
            if any(len(part.mean) != grid.size for part in parts):
                raise ValueError("its parts have different numbers of pixels")
        except PermissionError:
            raise
        except READ_ERRORS as error:
            raise ValueError(f"{path} is damaged or no emulator file: {error}") from error
        return Emulator(name, parts, grid)

    @property
    def size(self) -> int:
        """Number of components."""
        return sum(len(part.components) for part in self.parts)

    @cached_property
    def low(self) -> Tensor:
        """Smallest value of each label (20,), in the units of `LABELS`."""
        return torch.stack([part.low for part in self.parts]).amax(0)

    @cached_property
    def high(self) -> Tensor:
        """Largest value of each label (20,), in the units of `LABELS`."""
        return torch.stack([part.high for part in self.parts]).amin(0)

    @property
    def mean(self) -> Tensor:
        """Mean spectrum (H,)."""
        return sum(part.mean for part in self.parts)

    @property
    def components(self) -> Tensor:
        """Components (K, H) of all parts."""
        return torch.cat([part.components for part in self.parts])

    @property
    def device(self) -> torch.device:
        """Device on which it computes."""
        return self.parts[0].mean.device

    @property
    def wavelength(self) -> np.ndarray:
        """Its own wavelengths (H,) [Angstrom, vacuum]."""
        return self.grid.wavelength

    @property
    def step(self) -> float:
        """Step of its own wavelengths in log10."""
        return self.grid.step

    @property
    def resolution(self) -> float:
        """Wavelength over full width at half maximum of its own spectrum."""
        return self.grid.resolution

    @cached_property
    def _stack(self) -> Tensor:
        """Mean and components, one a column (H, 1 + K)."""
        return torch.cat([self.mean[None], self.components]).T.contiguous()

    def labels(self, labels, extrapolate: str = "error") -> Tensor:
        """
        Labels as (N, 20) float64 within the emulator's range.

        Parameters
        ----------
        labels
            Mapping from label names to values (completed by `standard_labels`), or (N, 20); values
            in any container of `as_array`. A missing value (NaN, masked, -9999) is refused.
        extrapolate
            ``"error"``: labels outside the range raise a ValueError; ``"clip"``: they are moved
            to its edge.
        """
        if extrapolate not in ("error", "clip"):
            raise ValueError(f'extrapolate is "error" or "clip", not {extrapolate!r}')
        if isinstance(labels, Mapping):
            given = {name: _tensor(values, name) for name, values in labels.items()}
            values = standard_labels(given, self.device)
        else:
            values = torch.atleast_2d(_tensor(labels, "labels").to(self.device))
        if values.ndim != 2 or values.shape[1] != len(LABELS):
            raise ValueError(f"labels have shape {tuple(values.shape)}, not (N, {len(LABELS)})")
        if not torch.isfinite(values).all():
            bad = [n for n, v in zip(LABELS, values.T, strict=True) if not v.isfinite().all()]
            raise ValueError(f"labels {bad} hold values that are not finite")
        if extrapolate == "clip":
            return values.clamp(self.low, self.high)
        margin = 1e-6 * (self.high - self.low)  # rounding is not extrapolation
        outside = (values < self.low - margin) | (values > self.high + margin)
        if outside.any():
            d = int(outside.any(0).nonzero()[0])
            worst = values[outside[:, d], d]
            raise ValueError(
                f"{LABELS[d]} = {worst[0].item():g} ({len(worst)} values) is outside the "
                f"emulator's range {self.low[d].item():g} to {self.high[d].item():g}; "
                'extrapolate="clip" moves such labels to its edge'
            )
        return values

    def coefficients(self, labels, extrapolate: str = "error") -> Tensor:
        """Coefficients (N, K) of the components, float64."""
        values = self.labels(labels, extrapolate)
        return torch.cat([part.coefficients(values) for part in self.parts], dim=1)

    def project(
        self,
        wavelength=None,
        resolution=None,
        *,
        profile: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Projection:
        """
        Mean and components on other wavelengths and at another resolution.

        Parameters
        ----------
        wavelength : (P,)
            Vacuum, rest frame [Angstrom, or a Quantity]; None: the emulator's own grid.
        resolution : float or (P,)
            Wavelength over the full width at half maximum of a Gaussian line-spread function; None
            (and anything above the emulator's own): the emulator's own.
        profile : (2 n + 1,)
            Broadening of the star, sampled in steps of the emulator's own grid, to be applied
            first; None: none.
        """
        if wavelength is None and resolution is None and profile is None:
            return Projection(self.mean.to(dtype), self.components.to(dtype))
        wavelength = self.wavelength if wavelength is None else wavelength
        wavelength = as_array(wavelength, unit=u.AA, name="wavelength")
        resolution = self.resolution if resolution is None else resolution
        resolution = as_array(resolution, name="resolution")
        stack = self._stack if profile is None else self.grid.broaden(self._stack, profile)
        sampled = self.grid.sample(stack, wavelength, resolution).T
        return Projection(sampled[0].to(dtype), sampled[1:].to(dtype).contiguous())

    def flux(self, labels, wavelength=None, resolution=None, extrapolate: str = "error") -> Tensor:
        """
        Flux over continuum (N, P), float64, of stars with the given labels.

        `labels` and `extrapolate` as in `labels`, `wavelength` and `resolution` as in `project`.
        """
        return self.project(wavelength, resolution)(self.coefficients(labels, extrapolate))

    def derivatives(
        self,
        labels,
        names: Sequence[str] | None = None,
        wavelength=None,
        resolution=None,
        extrapolate: str = "error",
    ) -> Tensor:
        """
        Response of the spectrum to each label, d flux / d label (N, len(names), P).

        Per K for TEFF, per dex for LOGG and abundances, per km/s for VMICRO; every other one of
        the 20 labels is held fixed (the atmosphere follows the mean of [O/Fe] and [Mg/Fe]).
        """
        names = LABELS if names is None else tuple(names)
        values = self.labels(labels, extrapolate)
        slopes = [
            torch.cat([process.jacobian(part.scaled(values)) for process in part.processes], dim=2)
            for part in self.parts
        ]
        columns = []
        for name in names:
            step = torch.zeros_like(values)
            column = LABELS.index(name)
            step[:, column] = 1e-5 * (self.high - self.low)[column]
            changes = []
            for part, slope in zip(self.parts, slopes, strict=True):
                # The inputs are smooth in the labels: these differences are good to nine digits.
                moved = part.scaled(values + step) - part.scaled(values - step)
                moved = moved / (2.0 * step[:, column, None])
                changes.append(torch.einsum("nd,ndk->nk", moved, slope))
            columns.append(torch.cat(changes, dim=1))
        return torch.stack(columns, dim=1) @ self.project(wavelength, resolution).components


def _tensor(values, name: str) -> Tensor:
    """Labels in any container as float64; NaN where they are missing."""
    if not isinstance(values, Tensor):
        unit = u.K if name == "TEFF" else u.km / u.s if name == "VMICRO" else ""
        values = torch.from_numpy(as_array(values, unit=unit, name=name))
    return sentinels_to_nan(values.to(torch.float64), name)


def _quantize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """16-bit integers and the factor of each row that gives `values` (K, H) back."""
    factor = np.abs(values).max(axis=1) / 32767.0
    return np.rint(values / factor[:, None]).astype(np.int16), factor


def _read_part(file: Mapping[str, np.ndarray], name: str, device: torch.device | str) -> Part:
    """Read one part of an open emulator file; a ValueError names an array of the wrong shape."""

    def get(key: str, *shape: int | None) -> Tensor:
        """Array as float64, of that shape (None: any length)."""
        array = file[f"{name}/{key}"]
        fits = len(array.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if want is None else str(want) for want in shape)
            raise ValueError(f"{name}/{key} has shape {array.shape}, not ({wanted})")
        return torch.from_numpy(array.astype(np.float64)).to(device)

    labels = len(LABELS)
    mean, inputs = get("mean", None), get("inputs", None, labels)
    info, processes = json.loads(str(file[f"{name}/info"])), []
    for i in range(int(info["processes"])):
        alpha = get(f"{i}/alpha", len(inputs), None)
        linear = get(f"{i}/linear", 1 + labels, alpha.shape[1])
        scale, amplitude = get(f"{i}/scale", 2, labels), get(f"{i}/amplitude", 2)
        processes.append(GaussianProcess(scale, amplitude, inputs, linear, alpha))
    number = sum(process.alpha.shape[1] for process in processes)
    components = get("components", number, len(mean))
    components *= get("component_factor", number)[:, None]
    limits = {key: get(key, labels) for key in ("low", "high", "input_low", "input_high")}
    return Part(mean, components, processes, info=info, **limits)


def _read_grid(file: Mapping[str, np.ndarray], size: int) -> FineGrid:
    """Wavelengths of an open emulator file; one of a single window lists no windows."""
    start, step, resolution = (float(v) for v in file["grid"])
    if "window_starts" not in file:
        return FineGrid((start,), (size,), step, resolution)
    starts, pixels = file["window_starts"].tolist(), file["window_pixels"].tolist()
    return FineGrid(tuple(map(float, starts)), tuple(map(int, pixels)), step, resolution)


def read_emulators(path: str | os.PathLike = EMULATOR_FILE) -> dict[str, Emulator]:
    """
    *Nominal* and *nature* of a file; where it holds *nominal* alone, this serves as both.

    Raises
    ------
    FileNotFoundError, ValueError
        As `Emulator.load` does.
    """
    nominal = Emulator.load("nominal", path)
    with np.load(path, allow_pickle=False) as file:
        both = "difference/info" in file
    return {"nominal": nominal, "nature": Emulator.load("nature", path) if both else nominal}


def write_emulators(path: str | os.PathLike, parts: Mapping[str, Part], grid: FineGrid) -> None:
    """
    Write the parts "nominal" and "difference" to one file that needs no pickle to be read.

    Components are kept as 16-bit integers (rounding: 1.5e-5 of the largest value of each), weights
    in single precision. The names and the order of the labels are kept, too, and compared when the
    file is read.
    """
    arrays = {
        "format_version": np.array(FORMAT_VERSION),
        "labels": np.array(LABELS),
        "grid": np.array([grid.starts[0], grid.step, grid.resolution]),
    }
    if len(grid.starts) > 1:
        arrays["window_starts"] = np.array(grid.starts)
        arrays["window_pixels"] = np.array(grid.pixels)
    for name, part in parts.items():
        integers, factor = _quantize(part.components.cpu().numpy())
        store = {"components": integers, "component_factor": factor}
        store["mean"] = part.mean.cpu().numpy().astype(np.float32)
        store["inputs"] = part.processes[0].inputs.cpu().numpy().astype(np.float32)
        for key in ("low", "high", "input_low", "input_high"):
            store[key] = getattr(part, key).cpu().numpy()
        for i, process in enumerate(part.processes):
            for key in ("scale", "amplitude", "linear"):
                store[f"{i}/{key}"] = getattr(process, key).cpu().numpy()
            store[f"{i}/alpha"] = process.alpha.cpu().numpy().astype(np.float32)
        info = {**part.info, "processes": len(part.processes)}
        store["info"] = np.array(json.dumps(info, sort_keys=True))
        arrays.update({f"{name}/{key}": value for key, value in store.items()})
    with atomic_output(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
