"""The door for what comes in: JSON by a schema per format, options by the ranges that their types tell.

A format's schema is a `Record` in the room that reads the format. An option's range stands in its type,
``fps: Annotated[float, Field(gt=0)]``; numbers are finite without saying so.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

from divff_nerfstudio.errors import DivffError, stand_in

MAX_BYTES = 256 * 2**20
"""Larger JSON files are taken for something else."""
MAX_DEPTH = 32
"""No format of ours has lists in lists deeper than this."""
_BRACKETS_AND_TEXTS = re.compile(r'[\[\]{}]|"(?:\\.|[^"\\])*"', re.DOTALL)
MAX_NUMBER = 1e15
"""Larger numbers are faults: what is computed of them is no longer finite in single precision."""

Value = TypeVar("Value")
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)]
"""A finite number that single precision holds."""
Positive = Annotated[float, Field(gt=0, le=MAX_NUMBER, allow_inf_nan=False)]
"""A number above 0."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A number from 0 to 1, such as a time or a probability."""
Weight = Annotated[float, Field(ge=0, le=MAX_NUMBER, allow_inf_nan=False)]
"""A number from 0 on, such as a loss's weight."""
MAX_COUNT = 2**53
"""Larger whole numbers are not exact as floating-point ones, and no option or step is."""
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
"""How many, at least one."""
Amount = Annotated[int, Field(ge=0, le=MAX_COUNT)]
"""How many, or none."""
Size = Annotated[int, Field(ge=1, le=65536)]
"""A length, a width or a number of samples: at least one, and not beyond what memory holds."""
Octaves = Annotated[int, Field(ge=0, le=24)]
"""Frequencies of an encoding, each twice the one before: single precision holds no more."""
Port = Annotated[int, Field(ge=1, le=65535)]
"""A port to listen on."""
MAX_FPS = 240.0
"""Most pictures per second of a film."""
PicturesPerSecond = Annotated[float, Field(ge=0.1, le=MAX_FPS)]
"""How fast a film is shown."""
Resolutions = Annotated[tuple[Annotated[int, Field(ge=2, le=8192)], ...], Field(min_length=1)]
"""Cells along the sides of grids."""


def _encodable(text: str) -> str:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("should be a text, in the encoding of the terminal")
    return text


def _worded(text: str) -> str:
    if not text.strip():
        raise ValueError("should say something")
    return _encodable(text)


MAX_LABEL = 1000
"""Longest name of a thing, a class or an action."""


def is_label(text: str) -> bool:
    """Whether a text can be a name that is shown and asked: some words of one line."""
    return bool(text.strip()) and text.isprintable() and len(text) <= MAX_LABEL


def _labelled(text: str) -> str:
    if not is_label(text):
        raise ValueError(f"should be a name of one line, of {MAX_LABEL} characters at most")
    return text


Label = Annotated[str, AfterValidator(_labelled)]
"""A name of a thing, a class or an action."""
MAX_TEXT = 10_000
"""Longest question, of all its phrases."""
Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_encodable)]
"""A text that may be blank, of letters alone."""
Words = Annotated[str, AfterValidator(_worded)]
"""A text that is not blank, and of letters alone: bytes that are none in the terminal's encoding cannot be written."""


class Record(BaseModel):
    """Base of the schemas: types are taken at their word, numbers are finite, and nothing changes after reading.

    Keys that a schema does not name are left out, for files that other programs write, too; a format of our own
    forbids them with ``class …(Record, extra="forbid")``.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class OptionError(DivffError):
    """An option is out of its range."""


class _FaultError(ValueError):
    """What is wrong with a JSON text, in words."""


def read_json(
    path: Path | str,
    kind: type[Value],
    what: str,
    remedy: str,
    error: type[DivffError] = DivffError,
    max_bytes: int = MAX_BYTES,
) -> Value:
    """Reads a JSON file by its schema.

    Args:
        path: The file.
        kind: The schema: a `Record`, or a type made of them such as ``list[Detection]``.
        what: What the file should be, in words: "a camera path of nerfstudio's viewer".
        remedy: What to do where it is not, an imperative without a full stop.
        error: Class of the error raised.
        max_bytes: How large the file may be.

    Returns:
        An instance of `kind`.

    Raises:
        DivffError: Of the class `error`, in one sentence that names the file and the place in it: if it is missing, no
            ordinary file, too large, not UTF-8 or no JSON, holds a key twice, a number that is not finite or more than
            `MAX_DEPTH` nested lists, or does not fit the schema.
    """
    path = Path(path)
    try:
        return parse_json(read_text(path, max_bytes), kind)
    except _FaultError as fault:
        raise error(stand_in(path) or f"{path} is not {what} ({fault}): {remedy}.") from None


def read_text(path: Path, max_bytes: int) -> str:
    """Reads a text file.

    Args:
        path: The file.
        max_bytes: How large it may be.

    Raises:
        ValueError: With what is wrong with it, in words.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _FaultError("it is no ordinary file")
        if found.st_size > max_bytes:
            raise _FaultError(f"it has {found.st_size / 2**20:.0f} MiB, and at most {max_bytes / 2**20:.0f} are read")
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise _FaultError("there is no such file") from None
    except UnicodeDecodeError:
        raise _FaultError("it is no UTF-8 text") from None
    except OSError as error:
        raise _FaultError(f"it cannot be read: {error.strerror or error}") from None


def parse_json(text: str, kind: type[Value]) -> Value:
    """As `read_json`, of a text.

    Raises:
        ValueError: With what is wrong with it, in words.
    """
    try:
        _look_through(text)
        return _adapter(kind).validate_json(text)
    except RecursionError:
        raise _FaultError("its lists are nested too deep") from None
    except ValidationError as error:
        raise _FaultError(told(error)) from None


def fitted(value: Any, kind: type[Value]) -> Value:
    """As `parse_json`, of what was already read from elsewhere, such as a row of a table.

    Raises:
        ValueError: With what is wrong with it, in words.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise _FaultError(told(error)) from None


def told(error: ValidationError) -> str:
    """The first fault that a schema found, with its place: ``frames.3.fps: should be greater than 0``."""
    return next(iter(all_told(error).values()))


def all_told(error: ValidationError) -> dict[tuple[int | str, ...], str]:
    """What `told` says, of all faults, by their places; of one place the first."""
    found: dict[tuple[int | str, ...], str] = {}
    for fault in error.errors(include_url=False):
        place, message = ".".join(str(part) for part in fault["loc"]), _worded_as(fault)
        found.setdefault(fault["loc"], f"{place}: {message}" if place else message)
    return found


_WORDS = {
    "extra_forbidden": "there is no such key",
    "string_pattern_mismatch": "has letters or a form that it should not have",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
}
"""What pydantic calls faults that it words for programmers."""


def _worded_as(fault: Mapping[str, Any]) -> str:
    """What a value should be, or what is wrong with it."""
    message = re.sub(r"^(Value error, |Input |[A-Z][a-z]+ (?=should))", "", fault["msg"])
    return _WORDS.get(fault["type"], message.replace(" after validation", ""))


Ranges = Mapping[type, Mapping[str, Any]]
"""For configuration classes of others: types of fields that say their ranges."""


def check_options(options: Any, prefix: str = "", ranges: Ranges | None = None) -> None:
    """Looks through a configuration dataclass and those in it for values that are out of range.

    Args:
        options: The dataclass.
        prefix: Names of the options that lead to it, with dots behind.
        ranges: Types that are narrower than what classes of others declare; they hold for their subclasses, too.

    Raises:
        OptionError: For the first option that is not finite or not what its type allows, with its name on the command
            line.
    """
    hints = dict(_bounded_hints(type(options)))
    for kind in reversed(type(options).__mro__):
        hints |= (ranges or {}).get(kind, {})
    for name, hint in hints.items():
        value = getattr(options, name)
        try:
            _option_adapter(hint).validate_python(value)
        except ValidationError as error:
            option = (prefix + name).replace("_", "-")
            raise OptionError(f"--{option} is {_short(value)}: it {_wanted(error)}.") from None
    for entry in fields(options):
        name = "" if _is_unnamed(type(options), entry.name) else f"{entry.name}."
        _check_inner(getattr(options, entry.name, None), prefix + name, ranges)


def _check_inner(value: Any, prefix: str, ranges: Ranges | None) -> None:
    """Looks through the dataclasses that an option holds, in dictionaries, too."""
    if is_dataclass(value) and not isinstance(value, type):
        check_options(value, prefix, ranges)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            _check_inner(each, f"{prefix}{key}.", ranges)


def split_words(text: str, option: str) -> list[str]:
    """Words of options for another command, quoted as in a shell.

    Args:
        text: The words in one text.
        option: Where a user gave it.

    Raises:
        DivffError: If a quotation does not end.
    """
    try:
        return shlex.split(text) if text else []
    except ValueError as error:
        raise DivffError(f"{option} {text!r} cannot be taken apart ({error}): close the quotation.") from None


def _look_through(text: str) -> None:
    """Refuses what a schema cannot see: keys that stand twice, numbers beyond all bounds, depth."""
    depth = deepest = 0
    for token in _BRACKETS_AND_TEXTS.finditer(text):
        bracket = token[0]
        depth += (bracket in "[{") - (bracket in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise _FaultError(f"its lists are nested {deepest} deep")
    try:
        json.loads(text, object_pairs_hook=_without_twins, parse_float=_finite, parse_constant=_refuse_constant)
    except _FaultError:
        raise
    except ValueError as error:
        raise _FaultError(f"it is no JSON: {error}") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) < len(pairs):
        seen: set[str] = set()
        twin = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _FaultError(f"it has the key {_short(twin)} twice")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise _FaultError(f"{text[:40]} is beyond all bounds")
    return number


def _refuse_constant(name: str) -> None:
    raise _FaultError(f"{name} is no finite number")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


@lru_cache(maxsize=512)
def _option_adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


@lru_cache(maxsize=256)
def _hints(kind: type) -> dict[str, Any]:
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError:  # a class of somebody else's, with names that are only there for type checkers
        return {}
    return {entry.name: hints[entry.name] for entry in fields(kind)}


@lru_cache(maxsize=256)
def _bounded_hints(kind: type) -> dict[str, Any]:
    """Types of a dataclass's fields that have to do with numbers, or say what they allow."""
    found = {name: hint for name, hint in _hints(kind).items() if _is_bounded(hint)}
    return {name: hint for name, hint in found.items() if _is_understood(hint)}


def _is_bounded(hint: Any) -> bool:
    if hint in (int, float) or isinstance(hint, (FieldInfo, AfterValidator)):
        return True
    return any(_is_bounded(part) for part in get_args(hint) if part is not hint)


def _is_unnamed(kind: type, name: str) -> bool:
    """Whether the options in a field stand on the command line without its name: ``tyro.conf.arg(name="")``."""
    return any(getattr(part, "name", None) == "" for part in get_args(_hints(kind).get(name)))


def _is_understood(hint: Any) -> bool:
    try:
        _option_adapter(hint)
    except PydanticSchemaGenerationError:
        return False
    return True


def _wanted(error: ValidationError) -> str:
    """What a value should be: of alternatives, all."""
    faults = error.errors()
    own = [each for each in faults if "after validation" not in each["msg"]] or faults  # the rest comes of these
    return " or ".join(list(dict.fromkeys(map(_worded_as, own)))[:4])
