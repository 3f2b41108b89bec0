"""Manifests: files or folders that name scenes, and what is to be done with each."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divff_nerfstudio.batch.entries import (
    STEPS,
    Defaults,
    ManifestError,
    SaidOfAll,
    SaidOfScene,
    SceneEntry,
    StepName,
    entry_of,
    idle_of,
    read_as,
    unused_of,
)
from divff_nerfstudio.batch.yaml_lines import YamlFaultError, read_yaml
from divff_nerfstudio.data.video_files import VIDEO_SUFFIXES
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import read_text

_MAX_BYTES = 16 * 2**20
_MAX_SCENES = 100_000
_TOO_MANY = f"it is scene {_MAX_SCENES + 1}, make batches of at most {_MAX_SCENES}"


@dataclass(frozen=True)
class Manifest:
    """The scenes of a batch."""

    path: Path
    """The file or folder."""
    entries: tuple[SceneEntry, ...]
    """The scenes."""

    @property
    def base(self) -> Path:
        """Folder from which paths in it are seen."""
        return (self.path if self.path.is_dir() else self.path.parent).resolve()


Look = Callable[[Sequence[SceneEntry]], Sequence[str]]
"""Tells further faults of scenes, each beginning with the place of its scene."""


def read_manifest(path: Path, defaults: Defaults | None = None, look: Look | None = None) -> Manifest:
    """Reads a manifest.

    Args:
        path: A .csv file, one scene a row, with the columns' names in its first line; a .yaml or .yml file; or a
            folder, in which each folder with a meta.json is a scene and each video is to become one.
        defaults: What holds where it says nothing.
        look: What else the scenes are looked at by, so that all faults are told at once.

    Raises:
        ManifestError: If it cannot be read, or anything in it is wrong: a sentence for each fault, with its line.
    """
    scenes = _Scenes(path if path.is_dir() else path.parent, defaults or Defaults())
    if path.is_dir():
        _from_folder(path, scenes)
    elif path.suffix.lower() == ".csv":
        _from_csv(_text(path), scenes)
    elif path.suffix.lower() in (".yaml", ".yml"):
        _from_yaml(_text(path), scenes)
    else:
        _text(path)
        raise ManifestError(f"{path} is no manifest: give a .csv or a .yaml file, or a folder of scenes.")
    faults = [*scenes.faults, *_twins(scenes.entries)]
    trained = {method for entry in scenes.entries for method in entry.methods}
    if scenes.common and not scenes.faults and (idle := idle_of(scenes.common, sorted(trained))):
        faults.append(idle)
    done: tuple[StepName, ...] = tuple(s for s in STEPS if any(s in entry.steps for entry in scenes.entries))
    by_hand = scenes.defaults.typed and scenes.common is not None and not scenes.common.steps
    if scenes.common and not scenes.faults and done and not by_hand and (unused := unused_of(scenes.common, done)):
        faults.append(unused)
    faults += () if look is None else look(scenes.entries)
    if faults:
        faults.sort(key=_line)
        if len(faults) == 1:
            raise ManifestError(f"{path}, {faults[0]}: mend that line.")
        shown = [f"\n- {fault}" for fault in faults[:50]] + ["\n- ..."] * (len(faults) > 50)
        raise ManifestError(f"{path} has {len(faults)} faults, mend them:{''.join(shown)}")
    if not scenes.entries:
        what = "folder with a meta.json, and no video" if path.is_dir() else "scene"
        raise ManifestError(f"{path} names no scene (there is no {what} in it): name at least one.")
    return Manifest(path, tuple(scenes.entries))


def _text(path: Path) -> str:
    try:
        return read_text(path, _MAX_BYTES)
    except ValueError as fault:
        raise ManifestError(f"{path} is no manifest ({fault}): give a .csv or a .yaml file, or a folder.") from None


class _Scenes:
    """Scenes as they are found, and faults with their lines.

    Args:
        base: Folder from which paths are seen.
        defaults: What holds where nothing is said.
    """

    def __init__(self, base: Path, defaults: Defaults):
        self.base, self.defaults = base, defaults
        self.common: SaidOfAll | None = SaidOfAll()  # None: it has faults, and what follows from it is not known
        self.entries: list[SceneEntry] = []
        self.faults: list[str] = []

    def take(self, said: Mapping[str, Any], line: Callable[[tuple[str | int, ...]], str]) -> None:
        """Adds a scene, or its faults.

        Args:
            said: What is said of it.
            line: Tells where what these keys lead to stands.
        """
        at = line(())
        if len(self.entries) >= _MAX_SCENES:
            if not self.faults or not self.faults[-1].endswith(_TOO_MANY):
                self.faults.append(f"{at}: {_TOO_MANY}")
            return
        row = read_as(SaidOfScene, said)
        if isinstance(row, list):
            self.faults += [f"{line(fault.place)}: {fault.words}" for fault in row]
            return
        if self.common is None:
            return
        try:
            self.entries.append(entry_of(row, self.common, self.base, self.defaults, at))
        except DivffError as error:
            self.faults.append(f"{at}: {error}".rstrip("."))


def _from_csv(text: str, scenes: _Scenes) -> None:
    first = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    at = "line 0"
    try:
        for cells in reader:
            at = f"line {reader.line_num}"
            if not any(cell.strip() for cell in cells) or cells[0].lstrip().startswith("#"):
                continue
            if not names:
                names = [cell.strip().lower() for cell in _without_blank_end(cells)]
                if fault := _columns(names):
                    scenes.faults.append(f"{at}: {fault}")
                    return
                continue
            if (count := len(_without_blank_end(cells))) > len(names):
                scenes.faults.append(f"{at}: it has {count} cells where there are {len(names)} columns, quote texts")
                continue
            row = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if cell.strip()}
            scenes.take(row, lambda _, at=at: at)
    except csv.Error as error:
        scenes.faults.append(f"line {reader.line_num}: it is no CSV ({error})")


def _without_blank_end(cells: list[str]) -> list[str]:
    """Cells up to the last one that says something; spreadsheets leave blank ones behind it."""
    return cells[: max((i for i, cell in enumerate(cells, 1) if cell.strip()), default=0)]


def _columns(names: Sequence[str]) -> str | None:
    """What is wrong with the names of a CSV file's columns, if anything."""
    known = [name for name in SaidOfScene.model_fields if name not in ("needs", "own")]
    if "scene" not in names:
        return f"the first line names the columns, and has no column scene (there may be {', '.join(known)})"
    if unknown := [name for name in names if name not in known]:
        return f"there is no column {unknown[0]!r:.80} (there may be {', '.join(known)})"
    return "a column is there twice" if len(set(names)) < len(names) else None


def _from_yaml(text: str, scenes: _Scenes) -> None:
    try:
        lined = read_yaml(text)
    except YamlFaultError as fault:
        scenes.faults.append(str(fault))
        return
    content, above = lined.value, ("scenes",)
    if isinstance(content, list):
        content, above = {"scenes": content}, ()
    if not isinstance(content, dict) or not isinstance(content.get("scenes"), list):
        scenes.faults.append("line 1: it has no list of scenes (scenes: and below it a line `- FOLDER` for each)")
        return
    common = read_as(SaidOfAll, {key: value for key, value in content.items() if key != "scenes"})
    if isinstance(common, list):
        scenes.faults += [f"line {lined.line(fault.place)}: {fault.words}" for fault in common]
    scenes.common = None if isinstance(common, list) else common
    for number, said in enumerate(content["scenes"]):

        def line(place: tuple[str | int, ...], scene: tuple[str | int, ...] = (*above, number)) -> str:
            return f"line {lined.line((*scene, *place))}"

        row = {"scene": said} if isinstance(said, str) else said
        if isinstance(row, dict):
            scenes.take(row, line)
        else:
            scenes.faults.append(f"{line(())}: a scene is its folder, or a mapping with the key scene")


def _from_folder(path: Path, scenes: _Scenes) -> None:
    children = [child for child in sorted(path.iterdir()) if not child.name.startswith(".")]
    videos = [child for child in children if child.suffix.lower() in VIDEO_SUFFIXES and child.is_file()]
    becoming = {video.stem for video in videos}  # a video's scene, once it is there, is that video's
    for child in children:
        if (child / "meta.json").is_file() and child.name not in becoming:
            scenes.take({"scene": child.name}, lambda _, name=child.name: name)
        elif child in videos:
            steps = ["convert", *(step for step in scenes.defaults.steps if step != "convert")]
            row = {"scene": child.stem, "steps": steps, "convert": f"video {shlex.quote(child.name)}"}
            scenes.take(row, lambda _, name=child.name: name)


def _line(fault: str) -> int:
    """The line that a fault is told of; those that are of no line come first."""
    found = re.match(r"line (\d+)", fault)
    return int(found[1]) if found else 0


def _twins(entries: Sequence[SceneEntry]) -> list[str]:
    """Scenes of one name, which would write to one folder."""
    seen: dict[str, SceneEntry] = {}
    faults = []
    for entry in entries:
        other = seen.setdefault(entry.name.lower(), entry)  # file systems may not tell capitals apart
        if other is not entry:
            faults.append(f"{entry.place}: the name {entry.name} is taken by {other.place}, give it another (name)")
    return faults
