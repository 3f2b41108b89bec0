"""When a scene's frames were taken, and which of them are held out, where a data set says so itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from divff_nerfstudio.convert.names import ConvertError

SPLITS = ("train", "val", "test")
_MAX_IDS = 10_000
"""Ids, whose distances are those of the times, are not spread further."""
_OFF = 0.02
"""Share of a step by which times may miss a grid."""


def ids_of(times: Float[np.ndarray, "n"] | None, count: int) -> Int64[np.ndarray, "n"]:
    """Ids whose distances are those of the frames' times: the scene's time runs along its ids.

    Args:
        times: Of the frames, ascending, in any unit; None: evenly spaced.
        count: Number of frames.
    """
    if times is None or count < 2:
        return np.arange(count, dtype=np.int64)
    passed = (times - times[0]) / (times[-1] - times[0])
    for parts in range(1, 11):
        steps = passed / np.diff(passed).min() * parts
        if steps[-1] < _MAX_IDS and np.abs(steps - steps.round()).max() < _OFF * parts:
            return steps.round().astype(np.int64)
    return (passed * (_MAX_IDS - 1)).round().astype(np.int64)


def usable_times(times: Float[np.ndarray, "n"]) -> str | None:
    """Why times, in the frames' order, cannot be those of a scene; None where they can."""
    if len(times) < 2:
        return "there is only one"
    passed = np.diff(times)
    if (passed == 0).any():
        return "two frames have the same"
    if (passed < 0).any():
        return "they do not ascend with the frames' numbers"
    if passed.min() * (_MAX_IDS - 1) < times[-1] - times[0]:
        return "their distances differ too much"
    return None


def named_splits(listed: Mapping[str, Sequence[int] | None], path: Path) -> tuple[dict[int, str] | None, list[str]]:
    """What each frame is for, by lists of frames.

    Args:
        listed: Frames of each split, None where the data set has no such list.
        path: What is named in errors.

    Returns:
        The split of each frame that is in one, and what the user is told; None in place of splits where the lists name
        too few of them.

    Raises:
        ConvertError: If a frame is in two lists, or twice in one.
    """
    known = {split: list(frames) for split in SPLITS if (frames := listed.get(split))}
    if sorted(known.get("val", ())) == sorted(known.get("test", ())):
        known.pop("val", None)  # many scripts write one list twice: it is shared below
    if not known:
        return None, []
    found: dict[int, str] = {}
    for split, frames in known.items():
        for frame in frames:
            if frame in found:
                raise ConvertError(
                    f"{path} has a frame in {found[frame]}_filenames and in {split}_filenames, or twice in one: leave "
                    "it in one of them."
                )
            found[frame] = split
    if "train" not in known or len(known) < 2:
        return None, [f"{path}: its lists of file names are not used, since they lack training frames or others."]
    notes = [f"{path}: its lists of file names are used as splits."]
    for missing, other in (("val", "test"), ("test", "val")):
        if missing not in known:
            if len(known[other]) < 2:
                return None, [f"{path}: its lists of file names are not used, since they have no frame for {missing}."]
            for frame in sorted(known[other])[1::2]:
                found[frame] = missing
            notes = [f"{path}: its lists of file names are used; every other frame of {other} is for {missing}."]
    return found, notes
