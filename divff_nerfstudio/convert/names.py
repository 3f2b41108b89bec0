"""The order of frames, which their names tell: frame numbers, or time stamps."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Literal

from divff_nerfstudio.data.picture_names import alike, decoded
from divff_nerfstudio.errors import DivffError

Order = Literal["number", "name"]
"""Frames are numbered by the digits at the end of their names, or counted in the order of their names."""
MAX_NUMBER = 10**9
"""Numbers from here on are time stamps: frames are counted in their order."""

_STAMP = re.compile(r"(?P<before>.*?)(?P<whole>\d+)(?:[.,](?P<part>\d+))? ?(?P<unit>ns|us|ms|s)?", re.DOTALL)
_SECONDS = {"ns": Decimal("1e-9"), "us": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": Decimal(1), None: Decimal(1)}
_MAX_DIGITS = 40


class ConvertError(DivffError):
    """Something cannot be converted; the message names the file and the remedy in one sentence."""


class NumberingError(ConvertError):
    """Names do not tell frames' numbers.

    Attributes:
        fault: What is wrong, without what to do.
    """

    def __init__(self, fault: str):
        super().__init__(f"{fault}: give --order name if the order of the names is that of the video.")
        self.fault = fault


def trailing_number(name: str) -> int | None:
    """The digits at the end of a file name without its suffix; None where there are none, or too many for a number."""
    match = re.search(r"(\d+)$", decoded(Path(name).stem), re.ASCII)
    digits = match[1].lstrip("0") if match else ""
    return int(digits or 0) if match and len(digits) <= len(str(MAX_NUMBER)) else None


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts frame10 behind frame9."""
    return [(int(part), "") if part else (-1, text) for text, part in re.findall(r"(\D+)|(\d{1,40})", name, re.ASCII)]


def printable(name: str) -> str:
    """A name for a message, also where it is no text of one line that a terminal can show."""
    plain = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)
    return plain.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class _Stamp:
    """What stands at the end of a name."""

    before: str
    whole: str
    part: str | None
    unit: str | None

    @property
    def is_number(self) -> bool:
        """Whether it is a whole number without a unit."""
        return self.part is None and self.unit is None

    def value(self, counted: bool) -> Decimal:
        """What frames are ordered by; `counted`: what stands behind a point is a number of its own."""
        if counted and self.part is not None:
            return Decimal(self.part)
        return Decimal(f"{self.whole}.{self.part or 0}") * _SECONDS[self.unit]


def _stamp(name: str) -> _Stamp | None:
    match = _STAMP.fullmatch(decoded(PurePosixPath(name).stem))
    if match is None or len(match["whole"]) + len(match["part"] or "") > _MAX_DIGITS:
        return None
    if not (match["whole"] + (match["part"] or "")).isascii():
        return None
    return _Stamp(match["before"], match["whole"], match["part"], match["unit"])


def _are_counted(stamps: Collection[_Stamp]) -> bool:
    """Whether what stands behind a point counts (take2.9, take2.10), rather than being a fraction (2.9, 2.95).

    A fraction is written without zeros at its end, or always with as many digits.
    """
    parts = [stamp.part for stamp in stamps if stamp.part is not None]
    if len(parts) < len(stamps) or any(stamp.unit for stamp in stamps) or len({stamp.whole for stamp in stamps}) > 1:
        return False
    even = len({len(part) for part in parts}) == 1
    return even or any(part.endswith("0") for part in parts)


def number_names(names: Sequence[str], order: Order, where: Path) -> dict[str, int]:
    """The number of each frame.

    Names end in frame numbers, which are taken as they are, or in time stamps (``1403636579.763``, ``frame_0.05s``,
    nanoseconds), in whose order frames are counted from 1.

    Args:
        names: File names, with folders where there are several.
        order: How they are numbered.
        where: What is named in errors.

    Raises:
        ConvertError: If a name ends in no number, or two end in the same.
    """
    stamps = {name: _stamp(name) for name in names}
    known = [stamp for stamp in stamps.values() if stamp is not None]
    counted = _are_counted(known)
    if order == "name":
        fractions = len(known) == len(stamps) and not counted and any(stamp.part for stamp in known)

        def place(name: str) -> tuple:
            stamp = stamps[name]
            return (natural_key(stamp.before), stamp.value(False)) if fractions and stamp else (natural_key(name),)

        return {name: i for i, name in enumerate(sorted(names, key=place), 1)}
    values: dict[Decimal, str] = {}
    for name, stamp in stamps.items():
        if stamp is None:
            raise NumberingError(f"{where} has a frame {printable(name)}, which ends in no number")
        value = stamp.value(counted)
        if value in values:
            raise NumberingError(
                f"{where} has two frames of number {value.normalize():f}, {printable(values[value])} and "
                f"{printable(name)}"
            )
        values[value] = name
    _require_one_order([values[value] for value in sorted(values)], stamps, where)
    if (counted or all(stamp.is_number for stamp in known)) and max(values, default=0) < MAX_NUMBER:
        return {name: int(value) for value, name in values.items()}
    return {values[value]: i for i, value in enumerate(sorted(values), 1)}


def _require_one_order(names: Sequence[str], stamps: Mapping[str, _Stamp | None], where: Path) -> None:
    """Refuses frames whose last numbers, as the fraction of a second, are in another order than the ones before them.

    Args:
        names: The frames by their last numbers.
        stamps: The stamp of each.
        where: What is named in errors.

    Raises:
        ConvertError: If there are such.
    """
    for name, later in pairwise(names):
        stamp, other = stamps[name], stamps[later]
        if stamp is None or other is None or PurePosixPath(name).parent != PurePosixPath(later).parent:
            continue
        alike = stamp.before != other.before and _shape(stamp.before) == _shape(other.before)
        if alike and natural_key(other.before) < natural_key(stamp.before):
            raise NumberingError(
                f"{where} has the frames {printable(name)} and {printable(later)}, in this order by their last "
                "numbers, and in the other by those before"
            )


def are_frame_numbers(names: Sequence[str]) -> bool:
    """Whether all names end in numbers that can be those of a video's frames."""
    stamps = [_stamp(name) for name in names]
    return all(stamp is not None and stamp.is_number and int(stamp.whole) < MAX_NUMBER for stamp in stamps)


def _shape(name: str) -> str:
    """A name's stem with its numbers left out: equal for the frames of one video."""
    return re.sub(r"\d+(?:[.,]\d+)?", "#", decoded(PurePosixPath(name).stem))


def frames_among(names: Sequence[str], named: Set[str], order: Order) -> list[str]:
    """The frames of a video among the pictures of a folder, when a reconstruction names some of them.

    What else lies there, such as masks, does not matter: pictures are taken that are named, and those that are named
    alike, lie in the same folders, and have another number.

    Args:
        names: All pictures.
        named: Those that a reconstruction names.
        order: How they are numbered.
    """
    forms = {alike(name) for name in named - set(names)}
    there = [name for name in names if name in named or alike(name) in forms]
    if not named:
        return list(names)
    shapes = {_shape(name) for name in (*named, *there)}
    folders = {PurePosixPath(name).parent for name in there}
    rest = [
        name
        for name in names
        if name not in named and _shape(name) in shapes and (not there or PurePosixPath(name).parent in folders)
    ]
    if not there and not rest:
        return list(names)
    if order == "name":
        suffixes = {PurePosixPath(name).suffix.lower() for name in there}
        return there + [name for name in rest if not there or PurePosixPath(name).suffix.lower() in suffixes]
    taken = {_value(name) for name in there}
    if not there:
        return rest
    by_value: dict[Decimal | None, list[str]] = {}
    for name in rest:
        by_value.setdefault(_value(name), []).append(name)
    return there + [found[0] for value, found in by_value.items() if len(found) == 1 and value not in taken]


def _value(name: str) -> Decimal | None:
    stamp = _stamp(name)
    return None if stamp is None else stamp.value(False)


def shortened(names: Sequence[str]) -> Iterator[list[str]]:
    """Names as they are, and then without the first, the first two ... of the folders in which all of them lie."""
    parts = [PurePosixPath(name.replace("\\", "/")).parts for name in names]
    yield list(names)
    for count in range(1, min((len(each) for each in parts), default=1)):
        if len({each[:count] for each in parts}) > 1:
            return
        yield ["/".join(each[count:]) for each in parts]


_FORMS = (str, alike)


class FrameNames:
    """Finds frames by the names that a reconstruction gives them, which may lack folders that lie above.

    Args:
        numbers: The frames' numbers by the names that they have.
    """

    def __init__(self, numbers: Mapping[str, int]):
        self._numbers = numbers
        self._by_end: list[dict[str, list[tuple[tuple[str, ...], int]]]] = []
        for form in _FORMS:
            ends: dict[str, list[tuple[tuple[str, ...], int]]] = {}
            for name, number in numbers.items():
                parts = PurePosixPath(form(name)).parts
                ends.setdefault(parts[-1], []).append((parts, number))
            self._by_end.append(ends)

    def number(self, name: str) -> int | None:
        """Number of the only frame that is called so, or alike; None where there is none."""
        wanted = PurePosixPath(name.replace("\\", "/") if name not in self._numbers else name)
        if str(wanted) in self._numbers or not wanted.parts:
            return self._numbers.get(str(wanted))
        for form, ends in zip(_FORMS, self._by_end, strict=True):
            parts = PurePosixPath(form(str(wanted))).parts
            found = [number for other, number in ends.get(parts[-1], ()) if other[-len(parts) :] == parts]
            if found:
                return found[0] if len(found) == 1 else None
        return None


def told_of_folders(names: Sequence[str]) -> list[str]:
    """What the user is told where frames of several folders are called alike, as those of several cameras are."""
    folders: dict[str, set[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        folders.setdefault(str(path.parent), set()).add(path.name)
    seen: set[str] = set()
    if all(seen.isdisjoint(inside) and not seen.update(inside) for inside in folders.values()):
        return []
    listed = ", ".join(printable(PurePosixPath(folder).name or folder) for folder in sorted(folders)[:8])
    return [
        f"Frames of {len(folders)} folders ({listed}) are taken for one video, one folder behind the other: if they "
        "are of cameras that filmed at the same time, convert each by itself."
    ]
