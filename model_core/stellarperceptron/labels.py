"""Labels of stars: names, symbols, units, digits, ranges and typical catalogue errors.

This is the one table of labels. Surveys, profiles, evaluation, tables and figures look a label up
by its name; a label that is not in the table is shown under its bare name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = [
    "ALL_LABELS",
    "LABELS",
    "PUBLISHED_LABELS",
    "Label",
    "label",
    "resolve_label_names",
]


@dataclass(frozen=True)
class Label:
    """A property of a star that a model predicts.

    Attributes
    ----------
    name : str
        Name in files and vocabularies, such as "TEFF".
    symbol : str
        Symbol in figures, in Matplotlib's mathtext.
    plain : str
        Symbol in text, such as "Teff", "log g" or "[Fe/H]".
    unit : str
        "K", "dex" or "km/s"; empty where it is unknown. The unit of log g is that of the
        logarithm; the gravity itself is in cm/s2.
    digits : int
        Decimals of residuals and errors in tables. The value of one star has one decimal fewer.
    range : (float, float)
        Lowest and highest plausible value for a star, in `unit`.
    typical_error : float
        Median error of the label in the ASPCAP catalogue of APOGEE DR17, for giants, in `unit`
        (for the last fifteen of `LABELS` a round number); NaN where it is unknown.

    Raises
    ------
    ValueError
        The name is empty, the range does not ascend, or the number of digits is negative.

    Examples
    --------
    >>> label("TEFF").heading
    'Teff [K]'
    >>> label("TEFF").format_residual(-12.34), label("FE_H").format_value(0.217)
    ('−12.3', '+0.22')
    """

    name: str
    symbol: str
    plain: str
    unit: str = ""
    digits: int = 3
    range: tuple[float, float] = (-math.inf, math.inf)
    typical_error: float = math.nan

    def __post_init__(self):
        if not self.name.strip():
            raise ValueError("a label needs a name")
        if not self.range[0] < self.range[1]:
            raise ValueError(f"the range {self.range} of label {self.name} does not ascend")
        if self.digits < 0:
            raise ValueError(f"label {self.name} has {self.digits} digits: give 0 or more")

    @property
    def is_abundance(self) -> bool:
        """Whether this is an abundance relative to the Sun's, such as [Fe/H] or [C/Fe]."""
        return self.name.endswith(("_FE", "_H"))

    @property
    def heading(self) -> str:
        """Symbol and unit in text, for table headings."""
        return f"{self.plain} [{self.unit}]" if self.unit else self.plain

    def format_residual(self, value: float | None, sign: str = "") -> str:
        """Write a residual, a scatter or an error, without its unit; a dash for NaN and None.

        Parameters
        ----------
        value
            In the unit of the label.
        sign
            "+" writes the sign of positive numbers, too.
        """
        return _number(value, self.digits, sign)

    def format_value(self, value: float | None, error: float | None = None) -> str:
        """Write the value of one star, and its error, without the unit; a dash for NaN and None.

        Abundances carry their sign.
        """
        digits = max(self.digits - 1, 0)
        text = _number(value, digits, "+" if self.is_abundance else "")
        return text if error is None else f"{text} ± {_number(error, digits)}"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{sign}.{digits}f}".replace("-", "−")


# Typical errors of the first five: medians of DR17's giants (1 < log g < 3.5). Those of the others
# are round numbers, not medians: 0.01 to 0.03 dex for the best measured elements, up to about
# 0.1 dex for those with weak lines such as Na and V.
_ROWS = (
    Label("TEFF", r"$T_{\rm eff}$", "Teff", "K", 1, (2500.0, 10_000.0), 7.5),
    Label("LOGG", r"$\log g$", "log g", "dex", 3, (-1.0, 6.0), 0.023),
    Label("O_FE", "[O/Fe]", "[O/Fe]", "dex", 3, (-1.0, 1.5), 0.0144),
    Label("MG_FE", "[Mg/Fe]", "[Mg/Fe]", "dex", 3, (-1.0, 1.5), 0.0113),
    Label("FE_H", "[Fe/H]", "[Fe/H]", "dex", 3, (-4.0, 1.0), 0.0076),
    Label("VMICRO", r"$v_{\rm micro}$", "vmicro", "km/s", 2, (0.0, 5.0), 0.05),
    Label("C_FE", "[C/Fe]", "[C/Fe]", "dex", 3, (-1.5, 1.5), 0.015),
    Label("N_FE", "[N/Fe]", "[N/Fe]", "dex", 3, (-1.0, 2.0), 0.018),
    Label("NA_FE", "[Na/Fe]", "[Na/Fe]", "dex", 3, (-1.5, 1.5), 0.08),
    Label("AL_FE", "[Al/Fe]", "[Al/Fe]", "dex", 3, (-1.5, 1.5), 0.022),
    Label("SI_FE", "[Si/Fe]", "[Si/Fe]", "dex", 3, (-1.0, 1.5), 0.013),
    Label("S_FE", "[S/Fe]", "[S/Fe]", "dex", 3, (-1.0, 1.5), 0.05),
    Label("K_FE", "[K/Fe]", "[K/Fe]", "dex", 3, (-1.0, 1.5), 0.04),
    Label("CA_FE", "[Ca/Fe]", "[Ca/Fe]", "dex", 3, (-1.0, 1.5), 0.016),
    Label("TI_FE", "[Ti/Fe]", "[Ti/Fe]", "dex", 3, (-1.0, 1.5), 0.022),
    Label("V_FE", "[V/Fe]", "[V/Fe]", "dex", 3, (-1.5, 1.5), 0.08),
    Label("CR_FE", "[Cr/Fe]", "[Cr/Fe]", "dex", 3, (-1.0, 1.0), 0.05),
    Label("MN_FE", "[Mn/Fe]", "[Mn/Fe]", "dex", 3, (-1.5, 1.0), 0.02),
    Label("CO_FE", "[Co/Fe]", "[Co/Fe]", "dex", 3, (-1.5, 1.5), 0.06),
    Label("NI_FE", "[Ni/Fe]", "[Ni/Fe]", "dex", 3, (-1.0, 1.0), 0.014),
)

LABELS: Mapping[str, Label] = MappingProxyType({row.name: row for row in _ROWS})
"""Labels of APOGEE's stars by name: the published five, then the others."""

PUBLISHED_LABELS = tuple(row.name for row in _ROWS[:5])
"""Names of the labels of the published models, in the order of their columns."""

ALL_LABELS = tuple(LABELS)
"""Names of all labels in the table."""


def label(name: str) -> Label:
    """Look a label up by its name.

    Parameters
    ----------
    name
        A name of `LABELS`, or any other: that label is shown under its name, without a unit.

    Examples
    --------
    >>> label("O_FE").unit, label("EU_FE").heading
    ('dex', 'EU_FE')
    """
    # A dollar sign would begin mathtext.
    return LABELS.get(name) or Label(name, name.replace("$", r"\$"), name)


def resolve_label_names(names: str | Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Match names as people write them to the names of labels.

    Case, spaces, brackets, slashes and underscores do not matter: "Teff", "log g", "[Fe/H]".

    Parameters
    ----------
    names
        Names in the desired order; "all" stands for all known ones.
    known
        Names of the available labels.

    Returns
    -------
    tuple of str
        The known names, in the order of `names`.

    Raises
    ------
    ValueError
        A name is unknown, ambiguous or given twice; the message lists the known ones.

    Examples
    --------
    >>> resolve_label_names(["Teff", "[C/Fe]"], ALL_LABELS)
    ('TEFF', 'C_FE')
    """
    names, known = [names] if isinstance(names, str) else list(names), tuple(known)
    if names == ["all"]:
        return known
    found = tuple(_resolve(name, known) for name in names)
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"label {twice} is given twice: {', '.join(names)}")
    return found


def _resolve(name: str, known: tuple[str, ...]) -> str:
    if name in known:
        return name
    alike = [other for other in known if _bare(other) == _bare(name)]
    if len(alike) == 1:
        return alike[0]
    problem = f"label {name!r} could be {' or '.join(alike)}" if alike else f"no label {name!r}"
    raise ValueError(f"{problem}; known are {', '.join(known)}")


def _bare(name: str) -> str:
    return re.sub(r"[\s\[\]()/_]", "", name).casefold()
