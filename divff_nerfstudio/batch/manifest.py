"""Manifests: files or folders that name scenes, and what is to be done with each."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError

from divff_nerfstudio.batch.yaml_lines import Lined, YamlFaultError, read_yaml
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.plugins import ALLOWED, classes_named, is_allowed
from divff_nerfstudio.schema import Record, Words, read_text, split_words, told

StepName = Literal["convert", "extract", "train", "evaluate", "export"]
STEPS: tuple[StepName, ...] = get_args(StepName)
Method = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""Name of a method; whether there is one is asked where methods are known."""
USUAL_STEPS: tuple[StepName, ...] = ("extract", "train", "evaluate")
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm")
"""How files end that are taken for videos in a folder that is a manifest."""
_CONVERTERS = ("video", "colmap", "nerfstudio", "epic-fields", "video-frames")
_NO_MODULES = ("image", "video")
"""What questions begin with ("video: cut the bread"), which look like names of classes."""
_OWN_STEPS: tuple[StepName, ...] = ("train", "evaluate", "export")
_MAX_BYTES = 16 * 2**20
_MAX_SCENES = 100_000
_TOO_MANY = f"it is scene {_MAX_SCENES + 1}, make batches of at most {_MAX_SCENES}"


class ManifestError(DivffError):
    """A manifest has faults, each of which is said in a sentence."""


def _listed(value: Any) -> Any:
    """A list of words may be written as one text."""
    if isinstance(value, str):
        return tuple(value.replace(",", " ").split())
    return tuple(value) if isinstance(value, list) else value


_Steps = Annotated[tuple[StepName, ...], BeforeValidator(_listed), Field(min_length=1)]
_Methods = Annotated[tuple[Method, ...], BeforeValidator(_listed), Field(min_length=1)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
_Whole = Annotated[int, Field(strict=False, ge=0, le=1024)]
_Some = Annotated[float, Field(strict=False, gt=0, le=1e5)]
_Minutes = Annotated[int, Field(strict=False, ge=1, le=10**6)]


class Needs(Record, extra="forbid"):
    """What a step needs of a machine; what is not said is as the command line, or the engine, has it."""

    cpus: Annotated[int, Field(strict=False, ge=1, le=1024)] | None = None
    """Cores."""
    gigabytes: _Some | None = None
    """Memory."""
    gpus: _Whole | None = None
    """Cards."""
    minutes: _Minutes | None = None
    """After that long a cluster ends the job, which goes on from its last checkpoint when it is started again."""

    def over(self, others: Needs) -> Needs:
        """These, and of others what these do not say."""
        mine = {name: value for name in Needs.model_fields if (value := getattr(self, name)) is not None}
        return others.model_copy(update=mine)


class _Own(Record, extra="forbid"):
    """What may be said of one method: options behind those for all methods."""

    imported: str = ""
    """Options of `divff import`, the checkpoint first: the run is made of it, in place of being trained."""
    train: str = ""
    """Options of ns-train."""
    evaluate: str = ""
    """Options of `divff evaluate`."""
    export: str = ""
    """Options of `divff export`."""


class _Told(Needs, extra="forbid"):
    """What may be said of one scene, or of all."""

    steps: _Steps | None = None
    """What is done with a scene, in the order of `STEPS` however they are listed."""
    methods: _Methods | None = None
    """What is trained, each as a run of its own."""
    convert: str = ""
    """Options of `divff convert`, kind and source first: "video kitchen.mp4 --num-frames 500"."""
    extract: str = ""
    """Options of `divff extract`."""
    train: str = ""
    """Options of ns-train."""
    evaluate: str = ""
    """Options of `divff evaluate`."""
    export: str = ""
    """Options of `divff export`."""
    own: dict[Method, _Own] = Field(default_factory=dict)
    """What single methods get."""
    needs: dict[StepName, Needs] = Field(default_factory=dict)
    """What single steps need."""


class _Row(_Told, extra="forbid"):
    """A scene in a manifest."""

    scene: Words
    """Its folder, as seen from the manifest's folder."""
    name: _Name | None = None
    """What it is called in the batch; by default as its folder."""


@dataclass(frozen=True)
class SceneEntry:
    """A scene of a batch, with everything settled that a manifest can say."""

    name: str
    """What it is called; its folders have this name."""
    scene: Path
    """Its folder."""
    steps: tuple[StepName, ...]
    """What is done, in order."""
    methods: tuple[Method, ...]
    """What is trained."""
    words: Mapping[StepName, tuple[str, ...]]
    """Options of each step's command."""
    needs: Mapping[StepName, Needs]
    """What each step needs."""
    place: str = ""
    """Where the manifest names it: "line 3"."""
    own: Mapping[Method, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Options of single methods by step, and of an import ("imported")."""

    def options(self, step: StepName, method: Method) -> tuple[str, ...]:
        """Options of a step's command for a method."""
        return (*self.words[step], *self.own.get(method, {}).get(step, ()))

    def imported(self, method: Method) -> tuple[str, ...]:
        """Options of the import that a method's run is made by; none where it is trained."""
        return self.own.get(method, {}).get("imported", ())


@dataclass(frozen=True)
class Defaults:
    """What holds where a manifest says nothing."""

    steps: tuple[StepName, ...] = USUAL_STEPS
    """What is done."""
    methods: tuple[Method, ...] = ("divff",)
    """What is trained."""
    words: Mapping[StepName, tuple[str, ...]] = field(default_factory=dict)
    """Options of each step's command, before those of the manifest."""
    needs: Needs = field(default_factory=Needs)
    """What each step needs."""


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


def read_manifest(path: Path, defaults: Defaults | None = None) -> Manifest:
    """Reads a manifest.

    Args:
        path: A .csv file, one scene a row, with the columns' names in its first line; a .yaml or .yml file; or a
            folder, in which each folder with a meta.json is a scene and each video is to become one.
        defaults: What holds where it says nothing.

    Raises:
        ManifestError: If it cannot be read, or anything in it is wrong: a sentence for each fault, with its line.
    """
    defaults = defaults or Defaults()
    if path.is_dir():
        entries, faults = _from_folder(path, defaults)
    elif path.suffix.lower() == ".csv":
        entries, faults = _from_csv(path, _text(path), defaults)
    elif path.suffix.lower() in (".yaml", ".yml"):
        entries, faults = _from_yaml(path, _text(path), defaults)
    else:
        _text(path)
        raise ManifestError(f"{path} is no manifest: give a .csv or a .yaml file, or a folder of scenes.")
    faults += _twins(entries)
    if faults:
        if len(faults) == 1:
            raise ManifestError(f"{path}, {faults[0]}: mend that line.")
        shown = [f"\n- {fault}" for fault in faults[:50]] + ["\n- ..."] * (len(faults) > 50)
        raise ManifestError(f"{path} has {len(faults)} faults, mend them:{''.join(shown)}")
    if not entries:
        what = "folder with a meta.json, and no video" if path.is_dir() else "scene"
        raise ManifestError(f"{path} names no scene (there is no {what} in it): name at least one.")
    return Manifest(path, tuple(entries))


def _text(path: Path) -> str:
    try:
        return read_text(path, _MAX_BYTES)
    except ValueError as fault:
        raise ManifestError(f"{path} is no manifest ({fault}): give a .csv or a .yaml file, or a folder.") from None


_Read = tuple[list[SceneEntry], list[str]]
"""Scenes, and faults with their lines."""


def _from_csv(path: Path, text: str, defaults: Defaults) -> _Read:
    first = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    entries: list[SceneEntry] = []
    faults: list[str] = []
    names: list[str] = []
    line = 0
    try:
        for cells in reader:
            line = reader.line_num
            if not any(cell.strip() for cell in cells) or cells[0].lstrip().startswith("#"):
                continue
            if not names:
                names = [cell.strip().lower() for cell in cells]
                if fault := _columns(names):
                    return [], [f"line {line}: {fault}"]
                continue
            if len(cells) > len(names):
                faults.append(
                    f"line {line}: it has {len(cells)} cells where there are {len(names)} columns, quote texts"
                )
                continue
            row = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if cell.strip()}
            _take(row, {}, f"line {line}", path, defaults, entries, faults)
    except csv.Error as error:
        faults.append(f"line {reader.line_num or line}: it is no CSV ({error})")
    return entries, faults


def _columns(names: Sequence[str]) -> str | None:
    """What is wrong with the names of a CSV file's columns, if anything."""
    known = [name for name in _Row.model_fields if name not in ("needs", "own")]
    if "scene" not in names:
        return f"the first line names the columns, and has no column scene (there may be {', '.join(known)})"
    if unknown := [name for name in names if name not in known]:
        return f"there is no column {unknown[0]!r:.80} (there may be {', '.join(known)})"
    return "a column is there twice" if len(set(names)) < len(names) else None


def _from_yaml(path: Path, text: str, defaults: Defaults) -> _Read:
    try:
        lined = read_yaml(text)
    except YamlFaultError as fault:
        return [], [str(fault)]
    content = lined.value
    if isinstance(content, list):
        content = {"scenes": content}
        lined = Lined(content, {("scenes", *place): line for place, line in lined.lines.items()})
    if not isinstance(content, dict) or not isinstance(content.get("scenes"), list):
        return [], ["line 1: it has no list of scenes (scenes: and below it a line `- FOLDER` for each)"]
    entries: list[SceneEntry] = []
    faults: list[str] = []
    common = {key: value for key, value in content.items() if key != "scenes"}
    fault = _fault(_Told, common)
    if fault is not None:
        return [], [f"line {lined.line(fault[0])}: {fault[1]}"]
    for number, said in enumerate(content["scenes"]):
        place = ("scenes", number)
        row = {"scene": said} if isinstance(said, str) else said
        if not isinstance(row, dict):
            faults.append(f"line {lined.line(place)}: a scene is its folder, or a mapping with the key scene")
            continue
        fault = _fault(_Row, row)
        at = f"line {lined.line((*place, *(fault[0] if fault is not None else ())))}"
        _take(row, common, at, path, defaults, entries, faults)
    return entries, faults


def _from_folder(path: Path, defaults: Defaults) -> _Read:
    entries: list[SceneEntry] = []
    faults: list[str] = []
    for child in sorted(path.iterdir()):
        if child.name.startswith("."):
            continue
        row: dict[str, Any] | None = None
        if (child / "meta.json").is_file():
            row = {"scene": child.name}
        elif child.suffix.lower() in VIDEOS and child.is_file():
            steps = ["convert", *(step for step in defaults.steps if step != "convert")]
            row = {"scene": child.stem, "steps": steps, "convert": f"video {_quoted(child.name)}"}
        if row is not None:
            _take(row, {}, child.name, path, defaults, entries, faults)
    return entries, faults


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _fault(kind: type[Record], row: Mapping[str, Any]) -> tuple[tuple[str | int, ...], str] | None:
    """Where the first fault of a row is, and what it is; None if there is none."""
    try:
        kind.model_validate(row)
    except ValidationError as error:
        return tuple(error.errors(include_url=False)[0]["loc"]), told(error)
    return None


def _take(
    row: Mapping[str, Any],
    common: Mapping[str, Any],
    at: str,
    path: Path,
    defaults: Defaults,
    entries: list[SceneEntry],
    faults: list[str],
) -> None:
    """Adds the scene that a row names, or its faults."""
    if len(entries) >= _MAX_SCENES:
        if not faults or not faults[-1].endswith(_TOO_MANY):
            faults.append(f"{at}: {_TOO_MANY}")
        return
    fault = _fault(_Row, row)
    if fault is not None:
        faults.append(f"{at}: {fault[1]}")
        return
    try:
        entries.append(_entry(_Row.model_validate(row), _Told.model_validate(common), path, defaults, at))
    except DivffError as error:
        faults.append(f"{at}: {error}".rstrip("."))


def _entry(row: _Row, common: _Told, path: Path, defaults: Defaults, at: str) -> SceneEntry:
    scene = _folder_of(row.scene, path if path.is_dir() else path.parent)
    chosen = row.steps or common.steps or defaults.steps
    steps: tuple[StepName, ...] = tuple(step for step in STEPS if step in chosen)
    words: dict[StepName, tuple[str, ...]] = {
        step: (
            *defaults.words.get(step, ()),
            *split_words(getattr(common, step), step),
            *split_words(getattr(row, step), step),
        )
        for step in STEPS
    }
    name = row.name or scene.name
    _check_entry(name, row.name is not None, steps, words)
    _refuse_classes(row, common)
    needs: dict[StepName, Needs] = {step: _needs(step, row, common, defaults) for step in steps}
    methods = tuple(dict.fromkeys(row.methods or common.methods or defaults.methods))
    own = {method: _own(method, row, common) for method in methods}
    return SceneEntry(name, scene, steps, methods, words, needs, at, own)


def _refuse_classes(*said: _Told) -> None:
    """A manifest may come from a stranger, and files do not decide what is imported."""
    options = (getattr(each, step) for one in said for each in (one, *one.own.values()) for step in _OWN_STEPS)
    for name in classes_named((*options, *(one.extract for one in said))):
        if name.partition(":")[0] not in _NO_MODULES and not is_allowed(name):
            raise ManifestError(
                f"it names the class {name:.80}, which files may not, give it on the command line (--extract=...), or "
                f"allow it by {ALLOWED}={name:.80} in the environment"
            )


def _folder_of(text: str, base: Path) -> Path:
    """A scene's folder, as seen from the manifest's."""
    try:
        return (base / Path(text).expanduser()).resolve()
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # a zero or half a letter in it, links in a circle, no such user
        raise ManifestError(f"scene {text!r:.80} is no path ({error}), name a folder") from None


def _own(method: Method, row: _Row, common: _Told) -> dict[str, tuple[str, ...]]:
    """Options of a method: behind those for all scenes come the scene's own; of imports, one counts."""
    said = [told.own[method] for told in (common, row) if method in told.own]
    words = {step: tuple(word for own in said for word in split_words(getattr(own, step), step)) for step in _OWN_STEPS}
    imports = [found for own in said if (found := tuple(split_words(own.imported, "imported")))]
    if imports and imports[-1][0].startswith("-"):
        raise ManifestError(f"imported begins with {imports[-1][0]!r:.80}, write the checkpoint's file first")
    return {**words, "imported": imports[-1] if imports else ()}


def _needs(step: StepName, row: _Row, common: _Told, defaults: Defaults) -> Needs:
    """What a step of a scene needs: what is said of the scene goes before what is said of all."""
    found = defaults.needs
    for said in (common, row):
        found = said.needs.get(step, Needs()).over(said.over(found))
    return found


def _check_entry(name: str, given: bool, steps: Sequence[StepName], words: Mapping[StepName, Sequence[str]]) -> None:
    if not given and _fault(_Row, {"scene": ".", "name": name}) is not None:
        raise ManifestError(
            f"the folder's name {name!r:.80} is none for a scene of a batch, give it a name of letters, digits, dots "
            "and dashes (name)"
        )
    if "convert" in steps:
        kind = words["convert"][0] if words["convert"] else ""
        if kind not in _CONVERTERS or len(words["convert"]) < 2 or words["convert"][1].startswith("-"):
            raise ManifestError(
                f"convert is {' '.join(words['convert'])!r:.80}, write the kind ({', '.join(_CONVERTERS)}) and the "
                "source first, as in `video kitchen.mp4`"
            )
    for step, ahead in (("evaluate", "train"), ("export", "train")):
        if step in steps and ahead not in steps:
            raise ManifestError(f"the step {step} needs the step {ahead}, which is done once and then kept")


def _twins(entries: Sequence[SceneEntry]) -> list[str]:
    """Scenes of one name, which would write to one folder."""
    seen: dict[str, SceneEntry] = {}
    faults = []
    for entry in entries:
        other = seen.setdefault(entry.name.lower(), entry)  # file systems may not tell capitals apart
        if other is not entry:
            faults.append(f"{entry.place}: the name {entry.name} is taken by {other.place}, give it another (name)")
    return faults
