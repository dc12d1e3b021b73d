"""Tables of predicted and catalogue labels, with a row for each star.

They are CSV files with the columns of the published repository: `<LABEL>_pred`, `<LABEL>_err`
(predicted standard deviation) and `<LABEL>_actual` (catalogue value) for each label. In addition
they have `<LABEL>_actual_err` (standard deviation of the catalogue) and `ID`. The cell of a missing
label is empty. A JSON file beside each table records how the predictions were made.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits

from stellarperceptron.data.dataset import Split
from stellarperceptron.evaluation.metrics import summarize
from stellarperceptron.utils.data_utils import atomic_output, escaped

__all__ = [
    "about_predictions",
    "actual_labels",
    "metrics_of_predictions",
    "predicted_labels",
    "predictions_table",
    "read_astronn",
    "read_predictions",
    "require_same_stars",
    "require_stars_of",
    "write_predictions",
]


def predictions_table(predicted: pd.DataFrame, split: Split) -> pd.DataFrame:
    """Combine predictions with the catalogue labels of the same stars.

    Parameters
    ----------
    predicted
        (N, 2 L) columns `<LABEL>` and `<LABEL>_error`, as `predict` gives them.
    split
        The stars, with labels (N, L) and names. LOGG and FE_H, which define the subsets, are kept
        even if they are not predicted.

    Raises
    ------
    ValueError
        The numbers of stars differ.
    """
    if len(predicted) != len(split):
        raise ValueError(f"{len(predicted)} predictions do not belong to {len(split)} stars")
    table = {"ID": split.ids}
    for column, label in enumerate(split.label_names):
        if label in predicted:
            table[f"{label}_pred"] = predicted[label].to_numpy()
            table[f"{label}_err"] = predicted[f"{label}_error"].to_numpy()
        if label in predicted or label in ("LOGG", "FE_H"):
            table[f"{label}_actual"] = split.labels[:, column]
            table[f"{label}_actual_err"] = split.label_errors[:, column]
    return pd.DataFrame(table)


def write_predictions(table: pd.DataFrame, path: Path, about: Mapping[str, Any]) -> None:
    """Write a table as CSV (7 digits), and beside it `<name>.json` with how it was made."""
    with atomic_output(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
    with atomic_output(path) as temporary:
        escaped(table).to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")


def about_predictions(path: Path) -> dict[str, Any]:
    """Settings with which predictions were made; empty if they were not recorded."""
    file = path.with_suffix(".json")
    return json.loads(file.read_text(encoding="utf-8-sig")) if file.is_file() else {}


def predicted_labels(table: pd.DataFrame) -> list[str]:
    """Names of the labels that a table predicts."""
    return [column[:-5] for column in table if column.endswith("_pred")]


def actual_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Catalogue labels of a table, as columns `<LABEL>`."""
    names = {column: column[:-7] for column in table if column.endswith("_actual")}
    return table[list(names)].rename(columns=names)


def read_predictions(path: Path, command: str, labels: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of predictions, of this repository or of the published one.

    Parameters
    ----------
    path
        CSV file.
    command
        Command that makes the file, for the message.
    labels
        Labels that it must predict.

    Raises
    ------
    FileNotFoundError
        There is no such file; the message gives the command that makes it.
    ValueError
        The file is not such a table; the message gives the file and what it lacks.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there are no predictions in {path}; they are made by: {command}")
    try:
        table = pd.read_csv(path, dtype={"ID": str})
    except (ValueError, pd.errors.ParserError) as error:  # empty, no text, ragged
        raise ValueError(f"{path} is no table of predictions ({error})") from error
    labels = list(dict.fromkeys([*predicted_labels(table), *labels]))
    needed = [f"{label}_{what}" for label in labels for what in ("pred", "err", "actual")]
    missing = [column for column in needed if column not in table]
    if not labels or missing:
        raise ValueError(
            f"{path} is no table of predictions: it lacks "
            f"{', '.join(missing) or 'columns <LABEL>_pred'}; tables are made by: {command}"
        )
    for column in table.columns.drop("ID", errors="ignore"):
        if not pd.api.types.is_numeric_dtype(table[column]):
            numbers = pd.to_numeric(table[column], errors="coerce")
            row = int(np.flatnonzero(numbers.isna() & table[column].notna())[0])
            raise ValueError(f"{path}, row {row + 2}: {table[column][row]!r} is no {column}")
        table[column] = table[column].astype(float)
    return table


def _first_difference(one: pd.DataFrame, other: pd.DataFrame) -> str | None:
    """First difference that shows two tables to be of different stars; None if there is none."""
    if len(one) != len(other):
        return f"{len(one)} against {len(other)} stars"
    for column in [c for c in one if c in other and (c == "ID" or c.endswith("_actual"))]:
        if column == "ID":
            same = (one[column] == other[column]).to_numpy()
        else:  # the published tables were rounded in several ways
            same = np.isclose(one[column], other[column], rtol=1e-5, atol=1e-5, equal_nan=True)
        if not same.all():
            row = int(np.flatnonzero(~same)[0])
            return f"row {row + 2}: {column} {one[column][row]} against {other[column][row]}"
    return None


def require_same_stars(tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuse tables of stars with different names or different catalogue labels.

    Parameters
    ----------
    tables
        Tables by file name.

    Raises
    ------
    ValueError
        Two tables differ; the message gives their names and the first row that differs.
    """
    (first, one), *others = tables.items()
    for name, other in others:
        difference = _first_difference(one, other)
        if difference:
            raise ValueError(
                f"{first} and {name} are not predictions of the same stars: {difference}"
            )


def require_stars_of(table: pd.DataFrame, name: str, split: Split, data: Path) -> None:
    """Refuse predictions whose stars are not those of a survey.

    Raises
    ------
    ValueError
        The stars differ; the message gives the file, the survey and the first row that differs.
    """
    columns = {f"{label}_actual": split.labels[:, i] for i, label in enumerate(split.label_names)}
    difference = _first_difference(table, pd.DataFrame({"ID": split.ids, **columns}))
    if difference:
        raise ValueError(
            f"{name} holds predictions of other stars than the {split.name} stars of {data} "
            f"({difference}): make them anew, or give the survey that they were made from"
        )


def metrics_of_predictions(
    table: pd.DataFrame, labels: Sequence[str] | None = None, *, intervals: bool = False
) -> pd.DataFrame:
    """Metrics of a table by subset and label; see `metrics.summarize`."""
    names = {f"{label}_pred": label for label in predicted_labels(table)}
    names |= {f"{label}_err": f"{label}_error" for label in names.values()}
    predicted = table[list(names)].rename(columns=names)
    return summarize(predicted, actual_labels(table), labels, intervals=intervals)


# --- the astroNN catalogue ------------------------------------------------------------------------

# Abundances are relative to hydrogen there: [X/Fe] is [X/H] - [Fe/H].
_DIRECT = {"TEFF": "TEFF", "LOGG": "LOGG", "FE_H": "FE_H"}
_RELATIVE = {"O_FE": "O_H", "MG_FE": "MG_H"}
_MISSING = -999.0  # at or below: the survey's mark (-9999) for no value


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
    values = pd.DataFrame({name: np.where(v > _MISSING, v, np.nan) for name, v in columns.items()})
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
