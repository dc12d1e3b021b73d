"""The surveys that a stage is trained on, one or several."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock.emulated import emulated_source
from stellarperceptron.instruments import instrument
from stellarperceptron.instruments.combined import combined
from stellarperceptron.labels import resolve_label_names
from stellarperceptron.training.profiles import Profile
from stellarperceptron.training.stars.prefetch import spare_cores
from stellarperceptron.utils.distributed import Process

__all__ = ["identity_of", "open_surveys", "require_surveys"]

Surveys = Sequence[tuple[SpectraDataset, Profile]]


def require_surveys(paths: Sequence[Path] | None, profile: Profile) -> None:
    """Check that a profile is for these survey files.

    Raises
    ------
    ValueError
        There are none, too many, or one is given twice; the message says which.
    """
    paths, data = list(paths or []), profile.data
    if data.source == "emulator":
        if len(paths) > 1:
            raise ValueError("data.source = 'emulator' takes its stars from no survey: no --data")
        return
    if not paths:
        raise ValueError("--data is needed: data.source is 'survey'")
    places = [path.expanduser().resolve() for path in paths]
    twice = [
        str(path) for path, place in zip(paths, places, strict=True) if places.count(place) > 1
    ]
    if twice:
        raise ValueError(f"--data {twice[0]} is given twice")
    if data.weights and len(data.weights) != len(paths):
        raise ValueError(
            f"data.weights = {list(data.weights)} are for {len(data.weights)} surveys, but --data "
            f"names {len(paths)}"
        )
    if data.combined_share and len(paths) == 1:
        raise ValueError("data.combined_share needs several surveys: --data names one")


@contextmanager
def open_surveys(
    paths: Sequence[Path] | None, profile: Profile, process: Process
) -> Iterator[list[tuple[SpectraDataset, Profile]]]:
    """Open survey files, or the stars of the emulator that a profile asks for.

    Yields
    ------
    list
        Each survey with its own profile: of several surveys, a survey's profile has those labels
        that it knows.

    Raises
    ------
    ValueError
        The instruments of two surveys overlap, no survey has a label, or a survey has none of the
        labels, or not the pixels; the message names them.
    """
    with ExitStack() as stack:
        surveys = [stack.enter_context(_open(path, profile, process)) for path in paths or [None]]
        combined([survey.instrument for survey in surveys])  # refuses those that overlap
        yield list(zip(surveys, _own_profiles(surveys, profile), strict=True))


def _open(path: Path | None, profile: Profile, process: Process) -> SpectraDataset:
    """The survey at a path, or the stars of the emulator that the profile asks for."""
    data = profile.data
    if data.source == "survey":
        return SpectraDataset.open(path)
    workers = 1 + max(0, spare_cores(process.world_size))
    return SpectraDataset(
        emulated_source(
            data.stars,
            profile.training.seed,
            data.labels,
            workers=workers,
            any_instrument=bool(profile.instruments.share),
            instrument=instrument(data.instrument),
            line_lists=data.line_lists,
        )
    )


def _own_profiles(surveys: Sequence[SpectraDataset], profile: Profile) -> list[Profile]:
    """The profile for each survey."""
    if len(surveys) == 1:
        return [profile]
    known = dict.fromkeys(name for survey in surveys for name in survey.label_names)
    try:
        labels = resolve_label_names(profile.data.labels, known)
    except ValueError as error:
        names = ", ".join(str(survey.path) for survey in surveys)
        raise ValueError(f"{names}, data.labels of the profile: {error}") from error
    profiles = []
    for survey in surveys:
        survey.train.pixel_range(profile.data.pixels)  # refuses unknown ones
        own = tuple(name for name in labels if name in survey.label_names)
        if not own:
            raise ValueError(
                f"{survey.path} has none of the labels {', '.join(labels)}, only "
                f"{', '.join(survey.label_names)}"
            )
        copies = profile.data.metal_poor_copies if "FE_H" in survey.label_names else 1
        data = dataclasses.replace(profile.data, labels=own, metal_poor_copies=copies)
        profiles.append(dataclasses.replace(profile, data=data))
    return profiles


def identity_of(surveys: Surveys) -> dict[str, Any]:
    """Properties that identify the surveys, wherever their files are."""
    if len(surveys) == 1:
        return surveys[0][0].identity
    return {survey.instrument.name: survey.identity for survey, _ in surveys}
