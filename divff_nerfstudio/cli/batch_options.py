"""Options of a batch's commands, read as the commands read them, though there are thousands of lines of them."""

from __future__ import annotations

import contextlib
import io
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from divff_nerfstudio.batch.entries import StepName
from divff_nerfstudio.batch.plans import convert_words
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import check_options

Checked = StepName | Literal["import"]
"""Commands whose options are looked at."""
_GIVEN: dict[Checked, tuple[str, ...]] = {
    "import": ("--scene", "--output"),
    "extract": ("--data",),
    "train": (
        *("--data", "--output-dir", "--experiment-name", "--method-name", "--timestamp", "--relative-model-dir"),
        "--load-config",
    ),
    "evaluate": ("--load-config", "--data", "--output"),
    "export": ("--load-config", "--data", "--output"),
}
"""Options by which a batch tells commands what to read and where to write."""
_NUMBER = re.compile(r"\d{1,18}(\.\d{1,18})?", re.ASCII)
_PATH = re.compile(r"[^-].*[./].*|[./].*", re.DOTALL)


class OptionReader:
    """Reads lines of options, and takes some for read.

    A command's parser takes milliseconds to build, of trainings a third of a second. Lines that differ in numbers and
    paths alone are of one form. Once one of a form was read, another is judged by the ranges of the fields that its
    words get into; where a word's field is not plain to see, the line is read, too.
    """

    def __init__(self) -> None:
        self._forms: dict[tuple[Checked, str, tuple[str, ...]], _Form] = {}

    def fault_of(self, step: Checked, method: str, words: Sequence[str]) -> str | None:
        """What a command says of its options; None if it takes them.

        Args:
            step: The command.
            method: Whose options they are, of a training.
            words: The options.
        """
        words = tuple(words)
        key = (step, method, tuple(map(_kind, words)))
        if key in self._forms and self._forms[key].takes(step, words):
            return None
        options = _read(step, method, words)
        if isinstance(options, str):
            return options
        self._forms.setdefault(key, _Form(words, options))
        return None


def _kind(word: str) -> str:
    """A word as it is, or what stands for any of its kind."""
    if _NUMBER.fullmatch(word):
        return "\0number"
    return "\0path" if _PATH.fullmatch(word) else word


class _Form:
    """A line that its command takes.

    Args:
        words: The line.
        options: What its command has read.
    """

    def __init__(self, words: tuple[str, ...], options: Any):
        self.words, self.options = words, options
        self.places = {i: place for i in range(len(words)) if (place := self._place_of(i)) is not None}

    def _place_of(self, i: int) -> tuple[str, ...] | None:
        """Attributes that lead to the field that a word gets into: of the name of the option before it, or, where none
        was named yet, any that holds this path."""
        option = self.words[i - 1] if i else ""
        named = option.startswith("--")
        if not named and any(word.startswith("-") for word in self.words[:i]):
            return None
        ending = tuple(option[2:].replace("-", "_").split(".")) if named else ()
        fitting = [
            place
            for place, value in _leaves(self.options)
            if (place[-len(ending) :] == ending if named else isinstance(value, Path))
            and _as(type(value), self.words[i]) == value
            and _is_plain(self.options, place)
        ]
        return fitting[0] if len(fitting) == 1 else None

    def takes(self, step: Checked, words: tuple[str, ...]) -> bool:
        """Whether a line of this form is known to be taken."""
        changed = [i for i, (mine, other) in enumerate(zip(self.words, words, strict=True)) if mine != other]
        if not all(i in self.places for i in changed):
            return False
        before = []
        try:
            for i in changed:
                owner, name = _owner(self.options, self.places[i])
                value = getattr(owner, name)
                before.append((owner, name, value))
                told = _as(type(value), words[i])
                if told is None:
                    return False
                object.__setattr__(owner, name, told)
            _check_ranges(step, self.options)
        except DivffError:
            return False
        finally:
            for owner, name, value in reversed(before):
                object.__setattr__(owner, name, value)
        return True


def _leaves(options: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What the fields of a dataclass and of those in it hold."""
    for entry in fields(options):
        value = getattr(options, entry.name, None)
        if is_dataclass(value) and not isinstance(value, type):
            yield from _leaves(value, (*place, entry.name))
        else:
            yield (*place, entry.name), value


def _owner(options: Any, place: tuple[str, ...]) -> tuple[Any, str]:
    for name in place[:-1]:
        options = getattr(options, name)
    return options, place[-1]


def _as(kind: type, word: str) -> int | float | Path | None:
    """A word as a value of a field of a kind; None where it is none, or the kind is another."""
    if kind is int:
        return int(word) if word.isdigit() else None
    if kind is float:
        return float(word) if _NUMBER.fullmatch(word) else None
    return Path(word) if issubclass(kind, Path) else None


def _is_plain(options: Any, place: tuple[str, ...]) -> bool:
    """Whether a field takes all numbers, or all paths, but for its range: it is no choice among some."""
    owner, name = _owner(options, place)
    try:
        hint = get_type_hints(type(owner), include_extras=True)[name]
    except (NameError, KeyError):  # a class of somebody else's, with names that are only there for type checkers
        return False
    return _members(hint) - {type(None)} in ({int}, {float}, {Path})


def _members(hint: Any) -> set[Any]:
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return {member for part in get_args(hint) for member in _members(part)}
    return {hint}


def registered_methods() -> dict[str, Any]:
    """Configurations of the registered methods of this package's kind, by name."""
    from divff_nerfstudio.evaluation.runs import our_configs

    return {config.method_name: config for config in our_configs()}


def _read(step: Checked, method: str, words: Sequence[str]) -> Any:
    """The options as their command has them; a text where it does not take them, which says why."""
    for word in words:
        if (name := word.partition("=")[0].replace("_", "-")) in _GIVEN.get(step, ()):
            return f"{name} is for the batch to say, leave it out"
    kind, default, needed = _command(step, method)
    given: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            options = tyro.cli(kind, args=[*needed(words)], **given)
            _check_ranges(step, options)
    except SystemExit:
        return _worded(said.getvalue())[:300] or "it prints its help"
    except DivffError as error:
        return str(error).rstrip(".")
    return options


def _check_ranges(step: Checked, options: Any) -> None:
    """Raises OptionError for what a command would refuse when it is run."""
    if step != "train":
        check_options(options)
        return
    from divff_nerfstudio.option_ranges import check_config

    check_config(options)


def _worded(text: str) -> str:
    """What a parser prints, without the box around it."""
    inside = (c if c.isprintable() and not 0x2500 <= ord(c) < 0x2580 else " " for c in text)
    return " ".join("".join(inside).split())


def _command(step: Checked, method: str) -> tuple[Any, Any, Any]:
    """What reads a step's options: its class, its defaults, and what comes before them."""
    if step == "convert":
        from divff_nerfstudio.cli.convert import ConvertConfig

        return ConvertConfig, None, lambda words: convert_words(words, "SCENE")
    if step == "import":
        from divff_nerfstudio.importing import ImportConfig

        return ImportConfig, None, lambda words: (*words, "--scene", "SCENE", "--output", "RUN")
    if step == "extract":
        from divff_nerfstudio.features.extract import ExtractConfig

        return ExtractConfig, None, lambda words: ("--data", "SCENE", *words)
    if step == "train":
        config: Any = registered_methods()[method]
        return tyro.conf.FlagConversionOff[type(config)], config, lambda words: words
    from divff_nerfstudio.cli.evaluate import EvaluateConfig
    from divff_nerfstudio.cli.export import ExportConfig

    kind = EvaluateConfig if step == "evaluate" else ExportConfig
    return kind, None, lambda words: ("--load-config", "RUN/config.yml", *words)
