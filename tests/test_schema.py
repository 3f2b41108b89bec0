"""The door for JSON and options."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import (
    MAX_DEPTH,
    Count,
    Number,
    OptionError,
    Positive,
    Record,
    Share,
    Words,
    check_options,
    fitted,
    parse_json,
    read_json,
    split_words,
)


class Frame(Record):
    fps: Positive
    pose: Annotated[tuple[tuple[Number, ...], ...], Field(max_length=3)] = ()


class Film(Record, extra="forbid"):
    frames: list[Frame]
    title: str = ""


class FilmError(DivffError):
    pass


def _read(path: Path, text: str) -> Film:
    path.write_text(text, encoding="utf-8")
    return read_json(path, Film, "a film", "cut it anew", FilmError)


def test_what_fits_is_read(tmp_path: Path) -> None:
    film = _read(tmp_path / "film.json", '{"frames": [{"fps": 25, "pose": [[1, 2.5], [3]], "other": null}]}')
    assert film.frames[0] == Frame(fps=25.0, pose=((1.0, 2.5), (3.0,)))


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"frames": [{"fps": 0}]}', "frames.0.fps: should be greater than 0"),
        ('{"frames": [{"fps": 1e16}]}', "frames.0.fps"),
        ('{"frames": [{"fps": 1e999}]}', "1e999 is beyond all bounds"),
        ('{"frames": [{"fps": NaN}]}', "NaN is no finite number"),
        ('{"frames": [{"fps": "25"}]}', "frames.0.fps: should be a valid number"),
        ('{"frames": [{"fps": true}]}', "frames.0.fps: should be a valid number"),
        ('{"frames": [{"fps": 1, "fps": 2}]}', "it has the key 'fps' twice"),
        ('{"frames": [], "sound": 1}', "sound"),
        ('{"frames": {}}', "frames: should be a valid array"),
        ("[]", "object"),
        ('{"frames": [', "it is no JSON"),
        ("", "it is no JSON"),
        ("[" * 100_000, "nested 100000 deep"),
        ('{"frames": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "nested 33 deep"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FilmError) as caught:
        _read(tmp_path / "film.json", text)
    sentence = str(caught.value)
    assert said in sentence
    assert sentence.startswith(f"{tmp_path / 'film.json'} is not a film (")
    assert sentence.endswith("): cut it anew.")
    assert "\n" not in sentence


def test_files_that_are_none(tmp_path: Path) -> None:
    def refused(path: Path, said: str, **limits: int) -> None:
        with pytest.raises(FilmError, match=said):
            read_json(path, Film, "a film", "cut it anew", FilmError, **limits)

    refused(tmp_path / "none.json", "there is no such file")
    refused(tmp_path, "it is no ordinary file")
    os.mkfifo(tmp_path / "pipe.json")
    refused(tmp_path / "pipe.json", "it is no ordinary file")
    (tmp_path / "latin.json").write_bytes(b'{"title": "K\xfcche"}')
    refused(tmp_path / "latin.json", "it is no UTF-8 text")
    (tmp_path / "large.json").write_text('{"frames": []}' + " " * 2**20, encoding="utf-8")
    refused(tmp_path / "large.json", "at most 1 are read", max_bytes=2**20)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists))
def test_any_json_is_taken_or_refused_in_words(content: object) -> None:
    try:
        assert isinstance(parse_json(json.dumps({"frames": content}), Film), Film)
    except ValueError as error:
        assert str(error)


def test_brackets_in_texts_are_no_depth() -> None:
    assert parse_json(json.dumps({"frames": [], "title": '["\\' * 50}), Film).title == '["\\' * 50


@dataclass
class Inner:
    weight: float = 1.0
    many: Count = 1


@dataclass
class Options:
    time: Optional[Share] = None  # noqa: UP045
    size: tuple[int, int] = (1, 1)
    fps: Annotated[float, Field(gt=0)] = 3.0
    name: str = "nan"
    inner: Inner = field(default_factory=Inner)
    groups: dict = field(default_factory=lambda: {"grids": {"scheduler": None}, "one": Inner()})


def test_options_in_range_pass() -> None:
    check_options(Options())
    check_options(Options(time=0.5, fps=1e-3))


@pytest.mark.parametrize(
    "options, said",
    [
        (Options(time=9.0), "--time is 9.0: it should be less than or equal to 1."),
        (Options(time=float("nan")), "--time is nan: it should be a finite number."),
        (Options(fps=0.0), "--fps is 0.0: it should be greater than 0."),
        (Options(inner=Inner(weight=float("inf"))), "--inner.weight is inf: it should be a finite number."),
        (Options(inner=Inner(many=0)), "--inner.many is 0: it should be greater than or equal to 1."),
        (Options(groups={"one": Inner(many=-1)}), "--groups.one.many is -1: it should be greater than or equal to 1."),
    ],
)
def test_options_out_of_range_are_named(options: Options, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_options(options)
    assert str(caught.value) == said


def test_words_are_taken_apart_as_in_a_shell() -> None:
    assert split_words("--a 'b c' --d=\"e f\"", "--options") == ["--a", "b c", "--d=e f"]
    with pytest.raises(DivffError, match=r"--options .*quotation"):
        split_words("--a 'b c", "--options")


@pytest.mark.parametrize("text", [" ", "cup\udcff"])
def test_phrases_that_cannot_be_written_are_refused(text: str) -> None:
    assert fitted("Tasse \u00fc", Words) == "Tasse \u00fc"
    with pytest.raises(ValueError, match="should"):
        fitted(text, Words)
