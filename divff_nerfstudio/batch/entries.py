"""What a manifest can say of a scene, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import BeforeValidator, Field, ValidationError

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.plugins import ALLOWED, classes_named, is_allowed
from divff_nerfstudio.schema import Record, Words, all_told, split_words

Kind = TypeVar("Kind", bound=Record)
StepName = Literal["convert", "extract", "train", "evaluate", "export"]
STEPS: tuple[StepName, ...] = get_args(StepName)
Method = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""Name of a method; whether there is one is asked where methods are known."""
USUAL_STEPS: tuple[StepName, ...] = ("extract", "train", "evaluate")
_CONVERTERS = ("video", "colmap", "nerfstudio", "epic-fields", "video-frames")
_NO_MODULES = ("image", "video")
"""What questions begin with ("video: cut the bread"), which look like names of classes."""
_OWN_STEPS: tuple[StepName, ...] = ("train", "evaluate", "export")


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


class _RunOptions(Record, extra="forbid"):
    """Options of what is done with each run."""

    train: str = ""
    """Options of ns-train."""
    evaluate: str = ""
    """Options of `divff evaluate`."""
    export: str = ""
    """Options of `divff export`."""


class _Own(_RunOptions, extra="forbid"):
    """What may be said of one method: options behind those for all methods."""

    imported: str = ""
    """Options of `divff import`, the checkpoint first: the run is made of it, in place of being trained."""


class SaidOfAll(_RunOptions, Needs, extra="forbid"):
    """What may be said of one scene, or of all."""

    steps: _Steps | None = None
    """What is done with a scene, in the order of `STEPS` however they are listed."""
    methods: _Methods | None = None
    """What is trained, each as a run of its own."""
    convert: str = ""
    """Options of `divff convert`, kind and source first: "video kitchen.mp4 --num-frames 500"."""
    extract: str = ""
    """Options of `divff extract`."""
    own: dict[Method, _Own] = Field(default_factory=dict)
    """What single methods get."""
    needs: dict[StepName, Needs] = Field(default_factory=dict)
    """What single steps need."""


class SaidOfScene(SaidOfAll, extra="forbid"):
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
    typed: bool = False
    """Whether the steps were typed: a manifest may then say something of others, for which it is started again."""


class Fault(NamedTuple):
    """What is wrong with something that is said."""

    place: tuple[str | int, ...]
    """Keys and numbers that lead to it."""
    words: str
    """What it is."""


def read_as(kind: type[Kind], said: Mapping[str, Any]) -> Kind | list[Fault]:
    """What is said, by its schema, or the faults in it."""
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        return [Fault(place, words) for place, words in all_told(error).items()]


def entry_of(row: SaidOfScene, common: SaidOfAll, base: Path, defaults: Defaults, place: str) -> SceneEntry:
    """A scene of a batch.

    Args:
        row: What is said of it.
        common: What is said of all.
        base: Folder from which its folder is seen.
        defaults: What holds where neither says anything.
        place: Where the manifest names it.

    Raises:
        DivffError: If what is said cannot be: a clause, for a sentence that tells the place.
    """
    scene = _folder_of(row.scene, base)
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
    by_hand = defaults.typed and not row.steps and not common.steps
    if not by_hand and (unused := unused_of(row, steps)):
        raise ManifestError(unused)
    name = row.name or scene.name
    _check_entry(name, row.name is not None, steps, words)
    _refuse_classes(row, common)
    needs: dict[StepName, Needs] = {step: _needs(step, row, common, defaults) for step in steps}
    methods = tuple(dict.fromkeys(row.methods or common.methods or defaults.methods))
    if idle := idle_of(row, methods):
        raise ManifestError(idle)
    own = {method: _own(method, row, common) for method in methods}
    return SceneEntry(name, scene, steps, methods, words, needs, place, own)


def idle_of(said: SaidOfAll, methods: Sequence[Method]) -> str | None:
    """That something is said of a method that is none of those that are trained, if it is so."""
    idle = sorted({*said.own} - {*methods})
    if not idle:
        return None
    return f"own says something of {idle[0]!r:.80}, and the methods are {', '.join(methods)}: name one of these"


def unused_of(said: SaidOfAll, steps: Sequence[StepName]) -> str | None:
    """That something is said of a step that is none of those that are done, if it is so."""
    for step in STEPS:
        own = any(getattr(each, step, "") for each in said.own.values())
        if step not in steps and (getattr(said, step) or step in said.needs or own):
            return f"something is said of {step}, and the steps are {', '.join(steps)}: name it, too, or leave that out"
    return None


def _refuse_classes(*said: SaidOfAll) -> None:
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
    except (OSError, ValueError, RuntimeError) as error:  # a zero in it, links in a circle, no such user
        raise ManifestError(f"scene {text!r:.80} is no path ({error}), name a folder") from None


def _own(method: Method, row: SaidOfScene, common: SaidOfAll) -> dict[str, tuple[str, ...]]:
    """Options of a method: behind those for all scenes come the scene's own; of imports, one counts."""
    said = [told.own[method] for told in (common, row) if method in told.own]
    words = {step: tuple(word for own in said for word in split_words(getattr(own, step), step)) for step in _OWN_STEPS}
    imports = [found for own in said if (found := tuple(split_words(own.imported, "imported")))]
    if imports and imports[-1][0].startswith("-"):
        raise ManifestError(f"imported begins with {imports[-1][0]!r:.80}, write the checkpoint's file first")
    return {**words, "imported": imports[-1] if imports else ()}


def _needs(step: StepName, row: SaidOfScene, common: SaidOfAll, defaults: Defaults) -> Needs:
    """What a step of a scene needs: what is said of the scene goes before what is said of all."""
    found = defaults.needs
    for said in (common, row):
        found = said.needs.get(step, Needs()).over(said.over(found))
    return found


def _check_entry(name: str, given: bool, steps: Sequence[StepName], words: Mapping[StepName, Sequence[str]]) -> None:
    if not given and isinstance(read_as(SaidOfScene, {"scene": ".", "name": name}), list):
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
    for step in ("evaluate", "export"):
        if step in steps and "train" not in steps:
            raise ManifestError(f"the step {step} needs the step train, which is done once and then kept")
