"""The paper's tables from downloaded data, in one command that goes on where it was interrupted.

Usage: ``python scripts/reproduce.py epic-diff --root DATA --output reproduction [--dry-run]``. Each stage is one of the
commands that a user would type; `--dry-run` prints them, and what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from nerfstudio.utils.rich_utils import CONSOLE
from reproduce_ground import IMPORTED, Ground
from reproduce_tables import LAYOUTS, PUBLISHED_NUMBERS, published_numbers, write_page
from rich.markup import escape

from divff_nerfstudio.cli.evaluate import EvaluateConfig
from divff_nerfstudio.download.catalogue import SCENES
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.baselines import BASELINES
from divff_nerfstudio.evaluation.run import TaskGroup
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.schema import split_words
from divff_nerfstudio.stages import Stage, StageError, finished_seconds, run_module, run_stages, words_to_resume

Method = Literal["divff", "divff-paper", "divff-splat", "divff-published", "neuraldiff-published"]
PUBLISHED_FEATURES = (
    *("--segments.codes", "--dinov2.statistics", "half"),
    *("--egovideo.preprocessing", "divff", "--egovideo.lookup", "floor", "--egovideo.padding", "black"),
    "--egovideo.no-normalise-text",
)
"""Options of `divff extract` for the features that the published fields were taught."""
PROGRAMS = {"divff_nerfstudio.cli": "divff", "nerfstudio.scripts.train": "ns-train"}
"""What is typed to run a module."""
PASSING = ("--overwrite", "--wait")
"""Options of `divff extract` that do not change what it gives."""


@dataclass(frozen=True)
class Command:
    """One of the commands that a user types."""

    module: str
    """Module that is run."""
    words: tuple[str, ...]
    """What follows."""

    def __call__(self, *more: str) -> None:
        """Runs it, with further words."""
        run_module(self.module, *self.words, *more)

    def __str__(self) -> str:
        return shlex.join((PROGRAMS[self.module], *self.words))


def divff(*words: object) -> Command:
    """A subcommand of `divff`."""
    return Command("divff_nerfstudio.cli", tuple(map(str, words)))


@dataclass
class ReproduceConfig:
    """Makes the paper's tables: fetches the data, extracts features, trains or imports, evaluates, and tabulates. What
    is finished is kept: the same line, typed again, goes on.
    """

    dataset: Annotated[Literal["epic-diff"], tyro.conf.Positional]
    """The data set."""
    root: Path
    """Folder of the data set, with a folder for each scene; fetched where it is not there."""
    output: Path = Path("reproduction")
    """Folder for runs, scores and tables."""
    scenes: tuple[str, ...] = SCENES
    """Scenes, by default the ten of the paper."""
    methods: tuple[Method, ...] = ("divff", "divff-paper", "divff-published")
    """Methods: trained here (divff, divff-paper, divff-splat), or published checkpoints (divff-published, with
    features; neuraldiff-published, geometry alone). Baselines are scored with the first that is trained."""
    tasks: tuple[TaskGroup, ...] = ("masks", "objects", "affordances", "views")
    """What to evaluate, as for `divff evaluate`; class scores come under both conventions."""
    baselines: tuple[str, ...] = tuple(BASELINES)
    """Baselines, as for `divff evaluate`."""
    skip_baselines: bool = False
    """Score none of them."""
    skip_download: bool = False
    """Fetch nothing: what is missing is named."""
    features: Literal["published", "sound"] = "published"
    """Extract features as DIV-FF's fields were taught them, or with the defaults of `divff extract`."""
    videos: Path | None = None
    """Folder with the video's frames of each scene, as SCENE.tar, SCENE.mp4 or SCENE/, which clips of video features
    are cut from; not needed where SCENE/high_res_video is there."""
    sampled_clips: bool = False
    """Make clips of the sampled frames where the video's frames are missing: other features than the paper's."""
    checkpoints: Path | None = None
    """Folder of DIV-FF's checkpoints and autoencoders; a file belongs to the scene that its path names. By default
    ROOT/checkpoints/divff."""
    neuraldiff: Path | None = None
    """The same of NeuralDiff's; by default ROOT/checkpoints/neuraldiff."""
    extract_options: str = ""
    """Further options of `divff extract`, quoted and with an equals sign: --extract-options="--device cuda"."""
    train_options: tuple[str, ...] = ()
    """Further options of ns-train, each as METHOD=OPTIONS: "divff=--max-num-iterations 500"."""
    evaluate_options: str = ""
    """Further options of `divff evaluate`, quoted and with an equals sign: --evaluate-options="--frames 5"."""
    numbers: Path = PUBLISHED_NUMBERS
    """JSON file of published numbers that stand beside ours."""
    dry_run: bool = False
    """Print the stages, their commands, what is finished and what is missing; run nothing."""

    def main(self) -> None:
        """Runs what is not finished.

        Raises:
            DivffError: If an option makes no sense, data or weights are missing, or a stage has failed.
        """
        Reproduction(self).run()


class Reproduction:
    """The stages and what they share.

    Args:
        config: The options.

    Raises:
        DivffError: If an option makes no sense.
    """

    def __init__(self, config: ReproduceConfig):
        self.config = config
        self.root, self.output = config.root.resolve(), config.output.resolve()
        self.markers, self.page = self.output / "stages", self.output / "tables.md"
        self.trained = [method for method in config.methods if method not in IMPORTED]
        self._check_choices()
        published = PUBLISHED_FEATURES if config.features == "published" else ()
        self.extract_words = (*published, *split_words(config.extract_options, "--extract-options"))
        self.extract = _parsed(ExtractConfig, ("--data", str(self.root), *self.extract_words), "--extract-options")
        self.evaluate_words = split_words(config.evaluate_options, "--evaluate-options")
        self.train_words = self._train_words()
        self.ground = Ground(
            root=self.root,
            scenes=config.scenes,
            tasks=config.tasks,
            baselines=() if config.skip_baselines else config.baselines,
            extract=self.extract if self.trained else None,
            models=_parsed(EvaluateConfig, self.evaluate_words, "--evaluate-options").models,
            published={method: self._published_folder(method) for method in config.methods if method in IMPORTED},
            videos=config.videos,
            sampled_clips=config.sampled_clips,
        )

    def _check_choices(self) -> None:
        config = self.config
        for name, chosen in (("scenes", config.scenes), ("methods", config.methods), ("tasks", config.tasks)):
            if not chosen or len(set(chosen)) < len(chosen):
                what = "one twice" if chosen else "none"
                raise DivffError(f"--{name} names {what}: give each once, or leave the option out.")
        for scene in config.scenes:
            if scene not in SCENES:
                raise DivffError(f"EPIC-Diff has no scene {scene}: choose among {', '.join(SCENES)}.")
        if "neuraldiff-published" in config.methods and "masks" not in config.tasks:
            raise DivffError("neuraldiff-published is geometry alone: add masks to --tasks, or leave the method out.")
        if not config.numbers.is_file():
            raise DivffError(f"{config.numbers} is missing: give --numbers a JSON file of published numbers.")
        published_numbers(config.numbers)

    def _train_words(self) -> dict[str, list[str]]:
        """Options of training by method, looked at as ns-train will."""
        from divff_nerfstudio import registry

        words: dict[str, list[str]] = {method: [] for method in self.trained}
        for text in self.config.train_options:
            method, equals, options = text.partition("=")
            if not equals or method not in words:
                raise DivffError(
                    f"--train-options {text} names none of the methods that are trained "
                    f"({', '.join(words) or 'none'}): write METHOD=OPTIONS."
                )
            words[method] += split_words(options, "--train-options")
        for method, options in words.items():
            known: Any = getattr(registry, method.replace("-", "_")).config
            _parsed(tyro.conf.FlagConversionOff[type(known)], options, f"--train-options {method}=...", known)
        return words

    def _published_folder(self, method: str) -> Path:
        """Where the checkpoints of an imported method lie."""
        given = self.config.checkpoints if method == "divff-published" else self.config.neuraldiff
        return (given or self.root / "checkpoints" / IMPORTED[method]).resolve()

    def run(self) -> None:
        """Fetches, looks at what is there, and runs the stages."""
        if not self.config.skip_download:
            self._fetch()
        faults, notes = self.ground.survey()
        for note in notes:
            CONSOLE.print(f"[yellow]{escape(note)}", soft_wrap=True, highlight=False)
        if self.config.dry_run:
            self._tell(faults)
            return
        if faults:
            told = "\n".join(f"- {fault}" for fault in faults)
            raise DivffError(
                f"Before hours are spent, mend this:\n{told}\nOptions that these sentences name go into "
                "--extract-options (--egovideo.weights ...) and --evaluate-options (--models.ooal ...)."
            )
        run_stages(self.first_stages, self.markers)
        run_stages(self.stages, self.markers, keep_going=True)
        CONSOLE.rule("[bold green]Done")
        CONSOLE.print(f"The tables are in {escape(str(self.page))}, and tables.tex beside it.", soft_wrap=True)

    def _fetch(self) -> None:
        """Runs `divff download` for what is not there; what is refused is named by the survey that follows."""
        for item in self.ground.lacking():
            places = ("--root", self.root, "--scenes", *self.config.scenes, "--what", item)
            command = divff("download", "epic-diff", *places)
            CONSOLE.print(escape(f"download: {item}\n    {command}"), soft_wrap=True, highlight=False)
            if not self.config.dry_run:
                with contextlib.suppress(StageError):  # its reason is on the screen
                    command()

    def _tell(self, faults: Sequence[str]) -> None:
        """Prints the stages, and what is missing."""
        stages = self.first_stages + self.stages
        for number, stage in enumerate(stages, start=1):
            state = "to do" if finished_seconds(stage, self.markers) is None else "finished"
            line = f"{number}/{len(stages)} {stage.name}: {stage.purpose} ({state})\n    {stage.typed}"
            CONSOLE.print(escape(line), soft_wrap=True, highlight=False)
        for fault in faults:
            CONSOLE.print(f"[yellow]Missing:[/] {escape(fault)}", soft_wrap=True, highlight=False)

    @property
    def first_stages(self) -> list[Stage]:
        """What is looked at before the first hour is spent, and does not change what follows."""
        if not self.ground.baseline_models:
            return []
        settings = {"models": repr(self.ground.models), "baselines": list(self.ground.baselines)}
        typed = "(loads the models of the baselines once, one after the other)"
        purpose = "all weights of the baselines are at hand"
        return [Stage("models", purpose, self.ground.load_models, self.root, settings, (), typed)]

    @cached_property
    def stages(self) -> list[Stage]:
        """Everything else to do, in order."""
        stages: list[Stage] = []
        scored: list[Stage] = []
        for scene in self.config.scenes:
            data = self._data_stages(scene)
            stages += data
            for method in self.config.methods:
                if method in IMPORTED and self.ground.checkpoint(method, scene) is None:
                    continue
                made = self._imported(scene, method) if method in IMPORTED else self._trained(scene, method, data)
                stages += [made, self._scores(scene, method, made)]
                scored.append(stages[-1])
        tables = self._tables(scored)
        return [*stages, *tables, self._page(tables, scored)]

    def _data_stages(self, scene: str) -> list[Stage]:
        """Cuts the video's frames of a scene, and extracts features."""
        folder, stages = self.root / scene, []
        video = self.ground.video(scene)
        if video is not None and self.ground.wants_clips:
            cut = divff("convert", "video-frames", video, "--data", folder)
            stages.append(_stage(f"{scene}-video", "the frames between the sampled ones", cut, folder, ()))
        if self.trained:
            extract = divff("extract", "--data", folder, *self.extract_words)
            after = tuple(stage.name for stage in stages)
            stages.append(_stage(f"{scene}-features", "features of every frame", extract, folder / "meta.json", after))
        return stages

    def _trained(self, scene: str, method: str, data: Sequence[Stage]) -> Stage:
        """Trains a method on a scene; other options have another folder, so that no foreign checkpoint is resumed."""
        options = self.train_words[method]
        stamp = _digest(options, _lasting(self.extract_words))
        command = Command(
            "nerfstudio.scripts.train",
            (
                *(method, "--data", str(self.root / scene), "--output-dir", str(self.output / "runs")),
                *("--experiment-name", scene, "--timestamp", stamp, "--vis", "tensorboard", *options),
            ),
        )
        run = self.output / "runs" / scene / method / stamp
        leaves, after = run / "config.yml", tuple(stage.name for stage in data)
        return _stage(f"{scene}-{method}", "training", command, leaves, after, partial(_train, command, run))

    def _imported(self, scene: str, method: str) -> Stage:
        """Makes a run of a published checkpoint; of another file in another folder."""
        checkpoint, autoencoder = self.ground.checkpoint(method, scene) or (Path(), None)
        state, weights = checkpoint.stat(), self.ground.egovideo
        words: list[object] = ["import", checkpoint, "--scene", self.root / scene]
        words += [] if autoencoder is None else ["--autoencoder", autoencoder]
        words += ["--image-encoder", self.extract.encoder]
        words += [] if weights is None else ["--video-encoder", weights]
        run = self.output / "runs" / scene / method / _digest(list(map(str, words)), [state.st_size, state.st_mtime_ns])
        command = divff(*words, "--output", run)
        leaves = run / "config.yml"
        purpose = "a run of the published checkpoint"
        return _stage(f"{scene}-{method}", purpose, command, leaves, (), partial(_import, command, leaves))

    def _scores(self, scene: str, method: str, made: Stage) -> Stage:
        """Evaluates a run; baselines, which every run would score alike, with the first method alone."""
        folder = self.output / "scores" / scene / method
        tasks = [task for task in self.config.tasks if task == "masks" or method != "neuraldiff-published"]
        first = (*self.trained, *self.config.methods)[0]
        command = divff(
            *("evaluate", "--load-config", made.leaves, "--name", method, "--output", folder, "--tasks", *tasks),
            *("--baselines", *(self.ground.baselines if method == first else ()), *self.evaluate_words),
        )
        return _stage(f"{made.name}-scores", "scores", command, folder / "scores.json", (made.name,))

    def _tables(self, scored: Sequence[Stage]) -> list[Stage]:
        """The tables over scenes."""
        runs, names = [stage.leaves for stage in scored], tuple(stage.name for stage in scored)
        stages = []
        for name, layout in LAYOUTS.items():
            if layout.task in self.config.tasks:
                folder = self.output / "tables" / name
                words = ("--average", *runs, "--columns", *layout.columns, "--output", folder)
                command = divff("evaluate", *words)
                stages.append(_stage(f"table-{name}", layout.title, command, folder / "average.md", names))
        return stages

    def _page(self, tables: Sequence[Stage], scored: Sequence[Stage]) -> Stage:
        """All tables on a page, beside published numbers."""
        numbers = self.config.numbers
        folders = {stage.name.removeprefix("table-"): stage.leaves.parent for stage in tables}
        run = partial(write_page, self.page, folders, [stage.leaves for stage in scored], numbers)
        settings = {"numbers": numbers.read_text(encoding="utf-8"), "tables": list(folders)}
        typed = f"(puts the tables together, beside the numbers of {numbers})"
        return Stage("page", "all tables", run, self.page, settings, tuple(stage.name for stage in tables), typed)


def _stage(
    name: str,
    purpose: str,
    command: Command,
    leaves: Path,
    after: tuple[str, ...],
    run: Callable[[], None] | None = None,
) -> Stage:
    """A stage that runs a command, and is done again when that changes."""
    return Stage(name, purpose, run or command, leaves, {"command": _lasting(command.words)}, after, str(command))


def _train(command: Command, run: Path) -> None:
    """Trains, from the last checkpoint of an interrupted training if there is one and it is not the final one."""
    resumed = words_to_resume(run)
    if resumed is not None:
        command(*resumed)


def _import(command: Command, config: Path) -> None:
    """Imports; a run that is there is whole, since an import is written at once."""
    if not config.is_file():
        command()


def _lasting(words: Sequence[str]) -> list[str]:
    """Words of a command that its result depends on."""
    return [word for word in words if word not in PASSING]


def _digest(*parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _parsed(kind: Any, words: Sequence[str], option: str, default: Any = None) -> Any:
    """Options as the command that they are for will read them, before it is run."""
    given = {} if default is None else {"default": default}
    try:
        return tyro.cli(kind, args=list(words), **given)
    except SystemExit:
        raise DivffError(f"{option} is not as the command wants it: see above, and mend it.") from None


if __name__ == "__main__":
    try:
        tyro.cli(ReproduceConfig, description=__doc__).main()
    except DivffError as error:
        CONSOLE.print(f"[red]{escape(str(error))}", soft_wrap=True)
        sys.exit(1)
