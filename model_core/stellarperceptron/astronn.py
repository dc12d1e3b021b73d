"""The astroNN catalogue of APOGEE, for comparison."""

import os

import numpy as np
import pandas as pd
from astropy.io import fits

__all__ = ["read_astronn"]

# Abundances are relative to hydrogen there: [X/Fe] is [X/H] - [Fe/H].
_DIRECT = {"TEFF": "TEFF", "LOGG": "LOGG", "FE_H": "FE_H"}
_RELATIVE = {"O_FE": "O_H", "MG_FE": "MG_H"}
MISSING = -999.0  # at or below: the survey's mark (-9999) for no value


def read_astronn(path: str | os.PathLike, ids: np.ndarray) -> pd.DataFrame:
    """Labels of stars in the astroNN catalogue (Leung & Bovy 2019; `apogee_astroNN-DR17.fits`).

    Parameters
    ----------
    path
        FITS table with APOGEE_ID, TEFF, LOGG, FE_H, O_H, MG_H and the same with _ERR.
    ids
        (N,) APOGEE_ID of the stars. Of several rows of a star the one with the least TEFF_ERR is
        taken.

    Returns
    -------
    DataFrame
        (N, 10) columns `<LABEL>` and `<LABEL>_error` in K (TEFF) and dex, NaN for stars that are
        not there. Errors of [X/Fe] are those of [X/H] and [Fe/H] added in quadrature.

    Raises
    ------
    OSError, ValueError
        The file is no FITS file, or no such table; or it holds none of the stars.
    """
    with fits.open(path) as hdus:
        if len(hdus) < 2 or not isinstance(hdus[1], fits.BinTableHDU):
            raise ValueError(f"{path} has no table in its first extension")
        data = hdus[1].data
        sources = [*_DIRECT.values(), *_RELATIVE.values()]
        needed = ["APOGEE_ID", *sources, *(f"{name}_ERR" for name in sources)]
        missing = [name for name in needed if name not in data.names]
        if missing:
            raise ValueError(f"{path} is not the astroNN catalogue: it lacks {', '.join(missing)}")
        names = np.char.strip(np.asarray(data["APOGEE_ID"]).astype(str))
        rows = np.flatnonzero(np.isin(names, ids))
        if not len(rows):
            raise ValueError(f"{path} has none of the {len(ids)} stars, such as {ids[0]}")
        columns = {name: np.asarray(data[name][rows], dtype=float) for name in needed[1:]}
    values = pd.DataFrame({name: np.where(v > MISSING, v, np.nan) for name, v in columns.items()})
    values.index = names[rows]
    values = values.sort_values("TEFF_ERR")
    values = values[~values.index.duplicated()].reindex(ids)
    result = {}
    for label, source in _DIRECT.items():
        result[label], result[f"{label}_error"] = values[source], values[f"{source}_ERR"]
    for label, source in _RELATIVE.items():
        result[label] = values[source] - values["FE_H"]
        result[f"{label}_error"] = np.hypot(values[f"{source}_ERR"], values["FE_H_ERR"])
    return pd.DataFrame(result).reset_index(drop=True)
