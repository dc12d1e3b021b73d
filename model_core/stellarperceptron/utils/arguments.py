"""Command lines of the scripts, and messages about names that are not known."""

import argparse
import difflib
from collections.abc import Iterable

__all__ = ["HelpFormatter", "positive", "positive_float", "with_nearest"]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written; defaults of what need not be given."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def positive(text: str) -> int:
    """A whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def positive_float(text: str) -> float:
    """A finite number above zero."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def with_nearest(name: str, known: Iterable[str]) -> str:
    """Quote a name for a message, with the nearest that are known."""
    nearest = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.5)
    return f"'{name}'" + (f" (nearest known: {', '.join(nearest)})" if nearest else "")
