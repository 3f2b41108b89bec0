"""Hundreds of broken files and options: each is taken for a reason, or refused in one sentence."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
import tyro
from test_camera_paths import CROP, viewers_path

from divff_nerfstudio.cli import COMMANDS
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.tables import average_table, read_runs
from divff_nerfstudio.query import QueryConfig
from divff_nerfstudio.relevancy import Example
from divff_nerfstudio.schema import OptionError, check_options
from divff_nerfstudio.stages import Stage, finished_seconds
from divff_nerfstudio.viewer.camera_paths import CameraPath, read_camera_path
from divff_nerfstudio.viewer.panel_state import PanelState, load_panel_state

STRANGE = (
    None, True, -1, 0, 0.5, 10**6, 10**400, 1e30, -1e308, float("nan"), float("inf"), "", "1", "\ud800", "a" * 5000,
    [], {}, [[]], {"r": 1}, [1, 2, 3], [[[[[[]]]]]],
)  # fmt: skip
ROUNDS = 150
"""Mutations of each format."""


def places(content: Any, way: tuple = ()) -> Iterator[tuple]:
    """Ways to everything in a JSON content."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*way, key)
        yield from places(value, (*way, key))


def mutated(content: Any, chance: random.Random) -> str:
    """A JSON text with one fault, or what may be one."""
    content = copy.deepcopy(content)
    *way, last = chance.choice(list(places(content)))
    owner = content
    for key in way:
        owner = owner[key]
    kind = chance.choice(("strange", "strange", "strange", "gone", "added", "sign", "scaled", "twice", "cut", "bytes"))
    if kind == "strange":
        owner[last] = chance.choice(STRANGE)
    elif kind == "gone":
        del owner[last]
    elif kind == "added" and isinstance(owner, dict):
        owner["added"] = chance.choice(STRANGE)
    elif kind in ("sign", "scaled") and isinstance(owner[last], (int, float)):
        owner[last] = owner[last] * (-1 if kind == "sign" else chance.choice((0, 10, 1e-9, 1e12)))
    text = json.dumps(content)
    if kind == "twice":
        name = json.dumps(chance.choice(list(content)))
        text = f"{text[:-1]}, {name}: 1}}"
    elif kind == "cut":
        text = text[: chance.randrange(len(text))]
    elif kind == "bytes":
        place = chance.randrange(len(text))
        text = text[:place] + chance.choice(('"', "]", "{", "\x00", "é", "9")) + text[place + 1 :]
    return text


def sound_path(path: CameraPath) -> None:
    """What a camera path promises."""
    cameras = path.cameras
    numbers = torch.cat([getattr(cameras, name).flatten() for name in ("camera_to_worlds", "fx", "fy", "cx", "cy")])
    assert bool(numbers.isfinite().all()) and float(cameras.fx.min()) > 0
    rotations = cameras.camera_to_worlds[:, :3, :3].double()
    assert float((rotations.mT @ rotations - torch.eye(3)).abs().max()) < 0.05
    assert float(torch.linalg.det(rotations).min()) > 0.9
    assert 1 <= path.height <= 16384 and 1 <= path.width <= 16384
    assert cameras.times is None or (float(cameras.times.min()) >= 0 and float(cameras.times.max()) <= 1)
    assert path.seconds is None or (math.isfinite(path.seconds) and path.seconds > 0)
    if path.crop is not None:
        assert float(path.crop.box.S.min()) > 0 and float(path.crop.background.min()) >= 0
        assert float(path.crop.background.max()) <= 1


def sound_state(state: PanelState) -> None:
    """What a panel's state promises."""
    check_options(state.query)
    for kinds in state.examples.values():
        for example in kinds.values():
            assert abs(float(example.feature.norm()) - 1) < 0.02 and -1 <= example.level < 1


def read_table(path: Path) -> None:
    """What is read of scores ends in a table."""
    runs = read_runs([path])
    assert all(math.isfinite(value) for run in runs for value in run.totals.values())
    assert "nan" not in average_table(runs).markdown()


def read_marker(path: Path) -> None:
    """A marker says how long a stage took, or that it is to be done again."""
    stage = Stage(path.stem, "a test", lambda: None, path.parent, {"length": 3})
    seconds = finished_seconds(stage, path.parent)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


def panel_state(folder: Path) -> Any:
    feature = torch.tensor([0.6, 0.8])
    state = PanelState(
        QueryConfig(text="[point 1]; mug"), True, False, "rgb", {"[point 1]": {"image": Example(feature, 0.8)}}
    )
    state.save(folder / "state.json")
    return json.loads((folder / "state.json").read_text())


FORMATS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "camera path": (
        lambda folder: viewers_path() | {"crop": CROP},
        lambda path: sound_path(read_camera_path(path)),
    ),
    "panel state": (panel_state, lambda path: sound_state(load_panel_state(path))),
    "scores": (
        lambda folder: {
            "facts": {"Scene": "P01_01", "Method": "divff"},
            "totals": {"psnr": 22.5, "moving_ap": 0.7},
            "baselines": {"nearest": {"totals": {"psnr": 17.0}}},
        },
        read_table,
    ),
    "stage marker": (lambda folder: {"settings": {"version": "0.1.0", "length": 3}, "seconds": 3.5}, read_marker),
}


@pytest.mark.parametrize("name", FORMATS)
def test_files_with_faults_are_refused_in_one_sentence(name, tmp_path):
    make, read = FORMATS[name]
    content, chance = make(tmp_path), random.Random(7)
    path = tmp_path / "fuzz.json"
    path.write_text(json.dumps(content))
    read(path)
    refused = 0
    for _ in range(ROUNDS):
        path.write_text(mutated(content, chance), encoding="utf-8", errors="surrogatepass")
        try:
            read(path)
        except DivffError as error:
            refused += 1
            text = str(error)
            assert "\n" not in text and len(text) < 1000 and text.endswith(".")
    assert name == "stage marker" or refused > ROUNDS / 4


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_file_is_refused(name, tmp_path):
    _, read = FORMATS[name]
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "empty.json").touch()
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "latin.json").write_bytes(b'{"facts": "\xe9"}')
    for path in ("none.json", "folder.json", "empty.json", "deep.json", "latin.json", "empty.json/below.json"):
        if name == "stage marker":
            read(tmp_path / path)
            continue
        with pytest.raises(DivffError):
            read(tmp_path / path)


def options_of(kind: type, path: str = "", prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Where the numbers that can be typed lie in a configuration, what they are typed as, and their types."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if tyro.conf.Suppress in get_args(hint):
            continue
        inner = next((part for part in (hint, *get_args(hint)) if _holds_options(part)), None)
        if inner is not None:
            unnamed = any(getattr(part, "name", None) == "" for part in get_args(hint))
            typed = prefix if unnamed else f"{prefix}{field.name}."
            yield from options_of(inner, f"{path}{field.name}.", typed)  # pyright: ignore
        elif _number(hint):
            yield path + field.name, "--" + (prefix + field.name).replace("_", "-"), hint


def _holds_options(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and isinstance(hint, type)


def _number(hint: Any) -> bool:
    return hint in (int, float) or any(_number(part) for part in get_args(hint))


def _is_float(hint: Any) -> bool:
    return hint is float or any(_is_float(part) for part in get_args(hint))


REQUIRED = {
    "query": ("--load-config", "a", "--text", "mug", "--output", "b"),
    "video": ("--load-config", "a"),
    "export": ("--load-config", "a"),
    "evaluate": ("--load-config", "a"),
    "view": ("--load-config", "a"),
    "objects": ("--load-config", "a"),
    "diary": ("--load-config", "a"),
    "batch": ("a", "--output", "b"),
    "batch status": ("a",),
    "demo": (),
    "demo-scene": ("out",),
    "download": ("epic-diff", "--root", "out"),
    "extract": ("--data", "a"),
    "import": ("a", "--scene", "b", "--output", "c"),
}
TYPED = ("nan", "inf", "-inf", "-1", "0", "1e30", "1" + "0" * 30, "")


def set_option(config: Any, option: str, hint: Any, typed: str) -> Any:
    """A configuration in which a number is what was typed, which need not be one."""
    config = copy.deepcopy(config)
    *parents, last = option.split(".")
    owner = config
    for name in parents:
        owner = getattr(owner, name)
    count = _tuple_of(hint)
    value = float(typed) if _is_float(hint) else int(typed)
    object.__setattr__(owner, last, (value,) * count if count else value)
    return config


def _tuple_of(hint: Any) -> int:
    """How many numbers a tuple's type wants; 0: the type is no tuple's."""
    if get_origin(hint) is tuple:
        return sum(part is not Ellipsis for part in get_args(hint))
    return max(map(_tuple_of, get_args(hint)), default=0)


@pytest.mark.parametrize("command", REQUIRED)
def test_numbers_out_of_range_are_refused(command, capsys):
    """Whatever is given for a number is no number, out of its range, or one to compute with.

    The first few options are typed, which takes the parser long; the others are set.
    """
    module, _, name = COMMANDS[command][0].partition(":")
    kind = getattr(importlib.import_module(module), name)
    usual = tyro.cli(kind, args=REQUIRED[command])
    check_options(usual)
    for i, (option, flag, hint) in enumerate(options_of(kind)):
        for typed in TYPED:
            try:
                if i < 3:
                    words = [typed] * max(1, _tuple_of(hint))
                    config = tyro.cli(kind, args=[*REQUIRED[command], flag, *words])
                else:
                    config = set_option(usual, option, hint, typed)
            except (SystemExit, ValueError):
                assert typed == "" or not _is_float(hint), f"{flag} {typed} was not parsed"
                continue
            try:
                check_options(config)
            except OptionError as error:
                assert str(error).startswith(f"{flag} is ") and "\n" not in str(error)
                continue
            assert typed == "0", f"{flag} {typed} was taken"
    capsys.readouterr()


def test_every_command_is_tried():
    assert REQUIRED.keys() | {"convert"} >= COMMANDS.keys()  # convert's options are tried with its formats
