"""Tables of text that others open, in programs which take some texts for formulas."""

from typing import Any

import pandas as pd

__all__ = ["escaped", "plain_text"]

# What begins a formula in spreadsheets.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain_text(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: such texts get an apostrophe in front.

    Numbers stay as they are, as texts too.

    Examples
    --------
    >>> plain_text("=1+1"), plain_text("-9999"), plain_text("2M00000000+0000000")
    ("'=1+1", '-9999', '2M00000000+0000000')
    """
    if not (isinstance(value, str) and value.startswith(_FORMULA)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def escaped(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts are plain ones; see `plain_text`."""
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    return table.assign(**{name: table[name].map(plain_text) for name in texts})
