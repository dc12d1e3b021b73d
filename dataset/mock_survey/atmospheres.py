"""
Model atmospheres: C3K / ATLAS12 models interpolated by the networks of ``atmosnet``.

The models are plane-parallel and scaled-solar except for the alpha elements; individual C, N, O and
Mg do not enter the structure. T agrees with an ATLAS9 model of the Sun within 30 K where log10 RHOX
< 0.4. Below about 3500 K at high gravity it is off by some 250 K.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy._core import multiarray
from packages import read_member


class AtmosphereError(ValueError):
    """Labels outside the networks' range."""


class _Token:
    """Stands for a callable of the pickle that is not executed."""

    def __init__(self, name: str):
        self.name = name


def _import_token(name):
    if name not in ("numpy.core._multiarray_umath", "numpy.core.multiarray"):
        raise pickle.UnpicklingError(f"refused: module {name}")
    return _Token(name)


def _attribute_of_token(module, name):
    if not isinstance(module, _Token) or name not in ("_reconstruct", "scalar"):
        raise pickle.UnpicklingError(f"refused: attribute {name}")
    return _NUMPY[name]


_NUMPY = {"_reconstruct": multiarray._reconstruct, "scalar": multiarray.scalar}


class NumpyUnpickler(pickle.Unpickler):
    """Reads pickles of plain containers and NumPy arrays, and refuses everything else."""

    ALLOWED = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _NUMPY["_reconstruct"],
        ("numpy.core.multiarray", "scalar"): _NUMPY["scalar"],
        ("dill._dill", "_import_module"): _import_token,
        ("dill._dill", "_get_attr"): _attribute_of_token,
    }

    def find_class(self, module, name):
        """Return an allowed callable or raise UnpicklingError."""
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused: {module}.{name}") from None


@dataclass(frozen=True)
class AtmosphereNetworks:
    """Networks (Teff, logg, [Fe/H], [alpha/Fe]) -> columns RHOX, T, P, XNE of 80 layers.

    One network for each column, with two hidden layers of 300 with leaky ReLU (slope 0.01). They
    give the base-10 logarithm of the quantity.
    """

    columns: tuple

    @classmethod
    def read(cls, archive: Path) -> AtmosphereNetworks:
        """Read the "cool" networks (2500 to 8500 K) from the ``atmosnet`` wheel."""
        data = read_member(archive, "atmosnet_c3k_300neurons_cool.pkl")
        names = ["w_array_0", "b_array_0", "w_array_1", "b_array_1", "w_array_2", "b_array_2"]
        columns = []
        for entry in NumpyUnpickler(io.BytesIO(data)).load()[:4]:
            arrays = [np.asarray(entry[name], dtype=np.float64) for name in names]
            columns.append((*arrays, np.asarray(entry["x_min"]), np.asarray(entry["x_max"])))
        return cls(tuple(columns))

    def __call__(self, teff: float, logg: float, fe_h: float, alpha_m: float) -> np.ndarray:
        """Return the atmosphere, (layers, 4): RHOX [g/cm^2], T [K], P [dyn/cm^2], XNE [1/cm^3]."""
        x = np.array([teff, logg, fe_h, alpha_m])
        out = []
        for w0, b0, w1, b1, w2, b2, low, high in self.columns:
            # Labels at a limit may lie beyond it by the rounding of single precision.
            if np.any(np.abs(x - np.clip(x, low, high)) > 1e-5 * (1 + np.abs(x))):
                raise AtmosphereError(f"atmosphere outside the networks' range: {x}")
            h = w0 @ ((x - low) / (high - low) - 0.5) + b0
            h = w1 @ np.where(h > 0, h, 0.01 * h) + b1
            out.append(10.0 ** (w2 @ np.where(h > 0, h, 0.01 * h) + b2))
        return np.stack(out, axis=1)


def thin_layers(atmosphere: np.ndarray, n_layers: int) -> np.ndarray:
    """Resample an atmosphere to `n_layers`, evenly in layer number (all columns in log)."""
    if n_layers == len(atmosphere):
        return atmosphere
    x = np.linspace(0, len(atmosphere) - 1, n_layers)
    i = np.arange(len(atmosphere))
    return np.stack([10 ** np.interp(x, i, np.log10(c)) for c in atmosphere.T], axis=1)
