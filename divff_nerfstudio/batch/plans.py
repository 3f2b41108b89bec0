"""What is done for a scene: steps, each a command that a user could type, with what tells that it is finished."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from divff_nerfstudio.batch.contents import (
    FeaturesAreWhole,
    PointsAreWhole,
    SceneIsWhole,
    ScoresAreWhole,
    TrainingIsWhole,
    option,
)
from divff_nerfstudio.batch.entries import Needs, SceneEntry, StepName
from divff_nerfstudio.batch.manifest import Manifest
from divff_nerfstudio.stages import Stage

PROGRAMS = {"divff_nerfstudio.cli": "divff", "nerfstudio.scripts.train": "ns-train"}
"""What is typed to run a module."""
VIDEO_FRAMES = "video-frames"
"""The kind of conversion that adds to a scene, in place of making one."""
PASSING = ("--overwrite", "--wait")
"""Options of `divff convert` and `divff extract` that do not change what they give."""


@dataclass(frozen=True)
class Step:
    """A command of a scene's."""

    name: str
    """What it is called among the scene's steps, as "train-divff"."""
    kind: StepName
    """What kind of step it is."""
    purpose: str
    """What it does, in words."""
    module: str
    """Module that is run as a program."""
    words: tuple[str, ...]
    """What follows it on the command line."""
    leaves: Path
    """A file of it that the next steps need."""
    check: Callable[[], str | None]
    """Says what is wrong with what it has left."""
    needs: Needs = field(default_factory=Needs)
    """What it needs of a machine."""
    after: tuple[str, ...] = ()
    """Names of the steps whose files it uses."""
    requires: Callable[[], str | None] | None = None
    """Says what is wrong with what it reads, so that nothing heavy is started for it."""
    resumes: Path | None = None
    """Folder of a run whose last checkpoint it goes on from."""
    method: str = ""
    """The method whose run it makes, if it makes one."""
    once: bool = False
    """Whether its command refuses to do again what is there."""

    @property
    def typed(self) -> str:
        """The command as a user would type it."""
        return shlex.join((PROGRAMS.get(self.module, f"python -m {self.module}"), *self.words))

    def stage(self, run: Callable[[Step], object]) -> Stage:
        """The step for `run_stages`.

        Args:
            run: Runs it; raises if it does not succeed.
        """
        settings = {"command": [self.module, *(word for word in self.words if word not in PASSING)]}
        return Stage(
            self.name,
            self.purpose,
            lambda: run(self),
            self.leaves,
            settings,
            self.after,
            self.typed,
            self.check,
            lasting=self.kind == "convert",  # which refuses to do again what is there
        )


@dataclass(frozen=True)
class Plan:
    """All that is done for a scene."""

    name: str
    """What the scene is called."""
    scene: Path
    """The scene's folder."""
    folder: Path
    """Where notes about it lie: heartbeat, log, what is finished."""
    base: Path
    """Folder in which its commands are run."""
    steps: tuple[Step, ...]
    """The steps in their order."""

    @property
    def phases(self) -> list[tuple[Step, ...]]:
        """Steps that follow each other and need the same of a machine: each phase is a job."""
        phases: list[tuple[Step, ...]] = []
        for step in self.steps:
            if phases and phases[-1][-1].needs == step.needs:
                phases[-1] = (*phases[-1], step)
            else:
                phases.append((step,))
        return phases

    @property
    def runs(self) -> list[Path]:
        """Folders of its runs."""
        return [step.leaves.parent for step in self.steps if step.method]


def plans_of(manifest: Manifest, output: Path, usual: Needs) -> list[Plan]:
    """What is done for each scene of a manifest.

    Args:
        manifest: The manifest.
        output: The batch's folder.
        usual: What steps need where nothing is said.
    """
    return [_plan(entry, manifest.base, output.resolve(), usual) for entry in manifest.entries]


def _plan(entry: SceneEntry, base: Path, output: Path, usual: Needs) -> Plan:
    steps: list[Step] = []
    needs = {step: entry.needs[step].over(usual) for step in entry.steps}
    if "convert" in entry.steps:
        steps.append(_convert(entry, needs["convert"]))
    if "extract" in entry.steps:
        steps.append(_extract(entry, base, needs["extract"], _names(steps)))
    for method in entry.methods if "train" in entry.steps else ():
        if entry.imported(method):
            train = _import(entry, method, needs["train"], base, output)
        else:
            train = _train(entry, method, needs["train"], output, _names(steps, ("convert", "extract")))
        steps.append(train)
        if "evaluate" in entry.steps:
            steps.append(_evaluate(entry, method, needs["evaluate"], output, train))
        if "export" in entry.steps:
            steps.append(_export(entry, method, needs["export"], output, train))
    return Plan(entry.name, entry.scene, output / "scenes" / entry.name, base, tuple(steps))


def _names(steps: Sequence[Step], kinds: Sequence[str] | None = None) -> tuple[str, ...]:
    return tuple(step.name for step in steps if kinds is None or step.kind in kinds)


def convert_words(words: Sequence[str], scene: str) -> tuple[str, ...]:
    """Options of a manifest as those of `divff convert`, which they are without the scene."""
    kind, source, *rest = words
    return (kind, source, *(("--data",) if kind == VIDEO_FRAMES else ()), scene, *rest)


def _convert(entry: SceneEntry, needs: Needs) -> Step:
    own, scene = entry.words["convert"], SceneIsWhole(entry.scene)
    words = ("convert", *convert_words(own, str(entry.scene)))
    if own[0] == VIDEO_FRAMES:
        check, leaves = SceneIsWhole(entry.scene, video_frames=True), entry.scene / "high_res_video"
        purpose = "the frames between the sampled ones"
        return Step("convert", "convert", purpose, "divff_nerfstudio.cli", words, leaves, check, needs, (), scene)
    check, meta = scene, entry.scene / "meta.json"
    return Step("convert", "convert", "a scene folder", "divff_nerfstudio.cli", words, meta, check, needs)


def _extract(entry: SceneEntry, base: Path, needs: Needs, after: tuple[str, ...]) -> Step:
    own = entry.words["extract"]
    words = ("extract", "--data", str(entry.scene), "--wait", *own)
    given = option(own, "--output")
    root = base / given[0] if given else None
    wanted = tuple(option(own, "--sources")) or ("image", "video", "regulariser")
    check, meta = FeaturesAreWhole(entry.scene, root, wanted), entry.scene / "meta.json"
    purpose = "features of every frame"
    scene = SceneIsWhole(entry.scene)
    return Step("extract", "extract", purpose, "divff_nerfstudio.cli", words, meta, check, needs, after, scene)


def _train(entry: SceneEntry, method: str, needs: Needs, output: Path, after: tuple[str, ...]) -> Step:
    """A training; with other options it has another folder, so that no foreign checkpoint is resumed."""
    own = entry.options("train", method)
    stamp = _stamp(str(entry.scene), _origin(entry), _deciding(entry, "extract"), own)
    run = output / "runs" / entry.name / method / stamp
    words = (
        *(method, "--data", str(entry.scene), "--output-dir", str(output / "runs")),
        *("--experiment-name", entry.name, "--timestamp", stamp, "--vis", "tensorboard", *own),
    )
    check, leaves = TrainingIsWhole(run), run / "config.yml"
    name, module = f"train-{method}", "nerfstudio.scripts.train"
    scene = SceneIsWhole(entry.scene)
    return Step(name, "train", f"training of {method}", module, words, leaves, check, needs, after, scene, run, method)


def _import(entry: SceneEntry, method: str, needs: Needs, base: Path, output: Path) -> Step:
    """A run of somebody's checkpoint; of another file in another folder."""
    own = entry.imported(method)
    file = base / own[0]
    state = [file.stat().st_size, file.stat().st_mtime_ns] if file.is_file() else []
    run = output / "runs" / entry.name / method / _stamp(str(entry.scene), _origin(entry), own, state)
    words = ("import", *own, "--scene", str(entry.scene), "--output", str(run))
    check, leaves = TrainingIsWhole(run, imported=True), run / "config.yml"
    name, purpose, scene = f"import-{method}", f"a run of the checkpoint of {method}", SceneIsWhole(entry.scene)
    module = "divff_nerfstudio.cli"
    step = Step(name, "train", purpose, module, words, leaves, check, needs, requires=scene, method=method)
    return replace(step, once=True)


def _deciding(entry: SceneEntry, step: StepName) -> list[str]:
    """Options of a step, if it is among the steps, that change what it gives: what is made of that has other runs."""
    return [word for word in entry.words[step] if word not in PASSING] if step in entry.steps else []


def _origin(entry: SceneEntry) -> list[str]:
    """What a scene comes from: how it is converted, or, where it is there before, what its meta.json holds."""
    words, meta = _deciding(entry, "convert"), entry.scene / "meta.json"
    if words and words[0] != VIDEO_FRAMES:
        return words
    try:
        return [*words, hashlib.sha256(meta.read_bytes()).hexdigest()]
    except OSError:  # it is not there, or may not be read, which its own job tells
        return words


def _stamp(*parts: object) -> str:
    """A name of a folder for what was made with these settings."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _evaluate(entry: SceneEntry, method: str, needs: Needs, output: Path, train: Step) -> Step:
    folder = output / "scores" / entry.name / method
    words = ("evaluate", "--load-config", str(train.leaves), "--output", str(folder))
    words += entry.options("evaluate", method)
    check, leaves = ScoresAreWhole(folder), folder / "scores.json"
    name, purpose = f"evaluate-{method}", f"scores of {method}"
    return Step(name, "evaluate", purpose, "divff_nerfstudio.cli", words, leaves, check, needs, (train.name,))


def _export(entry: SceneEntry, method: str, needs: Needs, output: Path, train: Step) -> Step:
    own = entry.options("export", method)
    folder = output / "exports" / entry.name / method
    path = folder if option(own, "--what") == ["gaussians"] else folder / "pointcloud.ply"
    words = ("export", "--load-config", str(train.leaves), "--output", str(path), *own)
    name, purpose = f"export-{method}", f"an export of {method}"
    check = PointsAreWhole(path)
    return Step(name, "export", purpose, "divff_nerfstudio.cli", words, path, check, needs, (train.name,))
