"""Command lines of the scripts, settings in TOML, and messages about unknown names."""

import argparse
import dataclasses
import difflib
import json
import os
import re
import signal
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stellarperceptron.utils.data_utils import check_output_file, check_output_folder

__all__ = [
    "HelpFormatter",
    "computing_arguments",
    "cores",
    "describe_sections",
    "errors_argument",
    "number",
    "output_file",
    "output_folder",
    "output_picture",
    "override_sections",
    "positive",
    "positive_float",
    "read_sections",
    "reason",
    "run_script",
    "with_nearest",
]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions, and shows the defaults of options with a value."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def computing_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where a network computes."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--threads", type=positive, default=1, help="CPU threads (not used on a GPU)"
    )


def errors_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that says whether the errors in files of spectra count."""
    parser.add_argument(
        "--errors",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out pixels that are too noisy to help: their error in the file exceeds 0.05 of "
        "the continuum and three times the median error of the pixels around them",
    )


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_script(
    main: Callable[[], None], *, errors: tuple[type[Exception], ...] = (), hint: str = ""
) -> None:
    """Run the `main` of a script; invalid input ends it with a one-line message.

    Ctrl-C ends it with exit status 130.

    Parameters
    ----------
    main
        Function without arguments.
    errors
        Exceptions that tell of invalid input, besides `OSError` and `ValueError`.
    hint
        What to do after Ctrl-C.
    """
    name = Path(sys.argv[0]).name
    told: tuple[type[Exception], ...] = (OSError, ValueError, *errors)
    try:
        main()
    except KeyboardInterrupt:
        print(f"{name}: interrupted{hint}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except told as error:
        sys.exit(f"{name}: {reason(error)}")


def reason(error: BaseException) -> str:
    """Message of an exception; of an OSError without a file, its words without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error)


def number(text: str, kind: type[int] | type[float]) -> Any:
    """Read an argument that is a whole number (`int`) or any number (`float`)."""
    try:
        return kind(text)
    except ValueError:
        what = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"'{text}' is no {what}") from None


def positive(text: str) -> int:
    """A whole number above zero."""
    value = number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def positive_float(text: str) -> float:
    """A finite number above zero."""
    value = number(text, float)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def output_file(text: str) -> Path:
    """A file that can be written; `~` is the user's home, also where no shell has expanded it."""
    path = Path(text).expanduser()
    try:
        check_output_file(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(error.strerror or str(error)) from error
    return path


def output_picture(text: str) -> Path:
    """A picture, NAME.png, that can be written; its PDF and its caption go beside it."""
    if Path(text).suffix != ".png":
        raise argparse.ArgumentTypeError(f"{text} must end in .png")
    return output_file(text)


def output_folder(text: str) -> Path:
    """A folder that files can be written into; `~` is the user's home."""
    path = Path(text).expanduser()
    try:
        check_output_folder(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(error.strerror or str(error)) from error
    return path


def with_nearest(name: str, known: Iterable[str]) -> str:
    """Quote an unknown name for a message, with the nearest known ones."""
    nearest = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.5)
    return f"'{name}'" + (f" (nearest known: {', '.join(nearest)})" if nearest else "")


def read_sections(
    content: Mapping[str, Any], kinds: Mapping[str, type]
) -> tuple[dict[str, Any], list[str]]:
    """Read sections of a TOML file into dataclasses.

    Parameters
    ----------
    content
        Entries by section, as `tomllib` gives them.
    kinds
        Dataclass of each section.

    Returns
    -------
    sections, problems
        Dataclasses of the sections that can be read, and everything that is wrong with the rest.
    """
    sections: dict[str, Any] = {}
    problems = []
    for section, entries in content.items():
        if section not in kinds or not isinstance(entries, Mapping):
            problems.append(f"unknown section {with_nearest(section, kinds)}")
            continue
        hints = typing.get_type_hints(kinds[section])
        good = {}
        for name, value in entries.items():
            if name not in hints:
                problems.append(f"unknown entry in [{section}]: {with_nearest(name, hints)}")
            elif not _fits(value, hints[name]):
                expected = _type_name(hints[name])
                problems.append(f"{section}.{name} = {value!r} is not of type {expected}")
            else:
                good[name] = tuple(value) if isinstance(value, list) else value
        try:
            sections[section] = kinds[section](**good)
        except ValueError as error:
            problems.append(f"[{section}] {error}")
    return sections, problems


def override_sections(content: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Put "section.entry=value" into the sections of a TOML file, in place.

    The value is written as in TOML; a bare word is a string. Returns what is wrong with the
    overrides.
    """
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or not name:
            problems.append(f"--set {override}: write section.entry=value")
            continue
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        entries = content.setdefault(section, {})
        if isinstance(entries, dict):  # `read_sections` refuses the others
            entries[name] = value
    return problems


def describe_sections(
    kinds: Mapping[str, type], choices: Mapping[tuple[str, str], Sequence[str]]
) -> str:
    """List the entries of sections with default, type and unit, one a line.

    Parameters
    ----------
    kinds
        Dataclass of each section. The unit of an entry is what ends a sentence of its description
        in brackets, as in "Length of the warm-up [epochs]."
    choices
        Possible values of an entry (section, name), listed instead of its type.
    """
    lines = []
    for section, kind in kinds.items():
        hints = typing.get_type_hints(kind)
        for entry in dataclasses.fields(kind):
            known = choices.get((section, entry.name))
            expected = " | ".join(known) if known else _type_name(hints[entry.name])
            unit = _unit(kind, entry.name)
            default = json.dumps(entry.default)
            lines.append(f"  {section}.{entry.name}={default}  {expected}{unit and f' [{unit}]'}")
    return "\n".join(lines)


def _fits(value: Any, expected: Any) -> bool:
    """Whether a TOML value has the type of a dataclass entry."""
    if typing.get_origin(expected) is tuple:
        inner = typing.get_args(expected)
        kinds = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else inner
        return (
            isinstance(value, list | tuple)
            and len(kinds) == len(value)
            and all(_fits(v, k) for v, k in zip(value, kinds, strict=True))
        )
    if isinstance(expected, types.UnionType):
        return any(_fits(value, kind) for kind in typing.get_args(expected))
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def _type_name(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) else str(expected)


def _unit(kind: type, name: str) -> str:
    """Unit of an entry of a dataclass, from its description; "" for none."""
    described = re.search(
        rf"\n +(?:\w+, )*{name}(?:, \w+)*\n((?: {{8}}.*(?:\n|$))+)", kind.__doc__ or ""
    )
    unit = re.search(r"\[([A-Za-z ]+)\][.;]", described[1]) if described else None
    return unit[1] if unit else ""
