"""The paper's tables from downloaded data, in one command that goes on where it was interrupted.

Usage: ``python scripts/reproduce.py epic-diff --root DATA --output reproduction [--dry-run]``. It fetches data, looks
for what is missing, writes a manifest, has `divff batch` do it, and makes the tables.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from nerfstudio.utils.rich_utils import CONSOLE
from reproduce_ground import IMPORTED, Ground
from reproduce_tables import LAYOUTS, PUBLISHED_NUMBERS, published_numbers, write_page
from rich.markup import escape

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.batch.run import BatchOptions
from divff_nerfstudio.cli.batch import BatchConfig, registered_methods
from divff_nerfstudio.cli.evaluate import EvaluateConfig
from divff_nerfstudio.download.catalogue import SCENES
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.baselines.base import BASELINES
from divff_nerfstudio.evaluation.options import TaskGroup
from divff_nerfstudio.evaluation.tables import SCORES_FILE
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.schema import split_words
from divff_nerfstudio.stages import Stage, StageError, run_module, run_stages

PUBLISHED_FEATURES = (
    *("--segments.codes", "--dinov2.statistics", "half"),
    *("--egovideo.preprocessing", "divff", "--egovideo.lookup", "floor", "--egovideo.padding", "black"),
    "--egovideo.no-normalise-text",
)
"""Options of `divff extract` for the features that the published fields were taught."""


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
    methods: tuple[str, ...] = ("divff", "divff-paper", "divff-published")
    """Methods: trained here (divff, divff-paper, divff-splat, or your own that is registered), or published checkpoints
    (divff-published, with features; neuraldiff-published, geometry alone). Baselines are scored with the first that is
    trained."""
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
    """Print the commands, and what is missing; run nothing."""
    jobs: Annotated[BatchOptions, tyro.conf.arg(name="")] = field(default_factory=BatchOptions)
    """How jobs are run, as for `divff batch`."""

    def main(self) -> None:
        """Runs what is not finished.

        Raises:
            DivffError: If an option makes no sense, data or weights are missing, or scenes have failed.
        """
        Reproduction(self).run()


class Reproduction:
    """The manifest, what it stands on, and the tables.

    Args:
        config: The options.

    Raises:
        DivffError: If an option makes no sense.
    """

    def __init__(self, config: ReproduceConfig):
        self.config = config
        self.root, self.output = config.root.resolve(), config.output.resolve()
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
        known = registered_methods() if self.trained else {}
        for method in self.trained:
            if method not in known:
                raise DivffError(f"There is no method {method}: choose among {', '.join((*sorted(known), *IMPORTED))}.")
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
            default: Any = known[method]
            _parsed(tyro.conf.FlagConversionOff[type(default)], options, f"--train-options {method}=...", default)
        return words

    def _published_folder(self, method: str) -> Path:
        """Where the checkpoints of an imported method lie."""
        given = self.config.checkpoints if method == "divff-published" else self.config.neuraldiff
        return (given or self.root / "checkpoints" / IMPORTED[method]).resolve()

    def run(self) -> None:
        """Fetches, looks at what is there, and has it done."""
        if not self.config.skip_download:
            self._fetch()
        faults, notes = self.ground.survey()
        for note in notes:
            CONSOLE.print(f"[yellow]{escape(note)}", soft_wrap=True, highlight=False)
        if self.config.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                self._batch(Path(folder))
            for fault in faults:
                CONSOLE.print(f"[yellow]Missing:[/] {escape(fault)}", soft_wrap=True, highlight=False)
            return
        if faults:
            told = "\n".join(f"- {fault}" for fault in faults)
            raise DivffError(
                f"Before hours are spent, mend this:\n{told}\nOptions that these sentences name go into "
                "--extract-options (--egovideo.weights ...) and --evaluate-options (--models.ooal ...)."
            )
        run_stages(self.first_stages, self.output / "stages")
        self._batch(self.output)
        tables, scores = self.output / "tables.md", [self._scores(*run) for run in self.runs]
        write_page(
            tables, [name for name in LAYOUTS if LAYOUTS[name].task in self.config.tasks], scores, self.config.numbers
        )
        CONSOLE.rule("[bold green]Done")
        CONSOLE.print(f"The tables are in {escape(str(tables))}, and tables.tex beside it.", soft_wrap=True)

    def _fetch(self) -> None:
        """Runs `divff download` for what is not there; what is refused is named by the survey that follows."""
        for item in self.ground.lacking():
            words = ("download", "epic-diff", "--root", str(self.root), "--scenes", *self.config.scenes, "--what", item)
            line = f"download: {item}\n    divff {shlex.join(words)}"
            CONSOLE.print(escape(line), soft_wrap=True, highlight=False)
            if not self.config.dry_run:
                with contextlib.suppress(StageError):  # its reason is on the screen
                    run_module("divff_nerfstudio.cli", *words)

    @property
    def first_stages(self) -> list[Stage]:
        """What is looked at before the first hour is spent, and does not change what follows."""
        if not self.ground.baseline_models:
            return []
        settings = {"models": repr(self.ground.models), "baselines": list(self.ground.baselines)}
        typed = "(loads the models of the baselines once, one after the other)"
        purpose = "all weights of the baselines are at hand"
        return [Stage("models", purpose, self.ground.load_models, self.root, settings, (), typed)]

    @property
    def runs(self) -> list[tuple[str, str]]:
        """Scenes and methods of which there is to be a run: published ones where there is a checkpoint."""
        return [(scene, method) for scene in self.config.scenes for method in self._methods(scene)]

    def _methods(self, scene: str) -> list[str]:
        return [
            method
            for method in self.config.methods
            if method not in IMPORTED or self.ground.checkpoint(method, scene) is not None
        ]

    def _scores(self, scene: str, method: str) -> Path:
        """Where `divff batch` has a run's scores written."""
        return self.output / "scores" / scene / method / SCORES_FILE

    def _batch(self, folder: Path) -> None:
        """Writes the manifest into a folder, and has `divff batch` do it."""
        scenes = [self._entry(scene) for scene in self.config.scenes if self._methods(scene)]
        if not scenes:
            return
        path = folder / "manifest.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(yaml.safe_dump({"scenes": scenes}, sort_keys=False, width=1000), encoding="utf-8")
        BatchConfig(path, self.output, jobs=self.config.jobs, dry_run=self.config.dry_run).main()

    def _entry(self, scene: str) -> dict[str, object]:
        """A scene in the manifest: its video's frames are cut, features extracted, and runs made and scored."""
        entry: dict[str, object] = {"scene": str(self.root / scene), "name": scene}
        steps = ["train", "evaluate"]
        if self.trained:
            steps.append("extract")
            entry["extract"] = shlex.join(self.extract_words)
        video = self.ground.video(scene)
        if video is not None and self.ground.wants_clips:
            steps.append("convert")
            entry["convert"] = shlex.join(("video-frames", str(video.resolve())))
        methods = self._methods(scene)
        first = next((method for method in methods if method in self.trained), methods[0])
        own = {method: self._own(scene, method, scores_baselines=method == first) for method in methods}
        return {**entry, "steps": steps, "methods": methods, "own": own}

    def _own(self, scene: str, method: str, scores_baselines: bool) -> dict[str, str]:
        """A method's options; baselines, which every run would score alike, are scored with one."""
        tasks = [task for task in self.config.tasks if task == "masks" or method != "neuraldiff-published"]
        baselines = self.ground.baselines if scores_baselines else ()
        words = ("--name", method, "--tasks", *tasks, "--baselines", *baselines, *self.evaluate_words)
        making = "imported" if method in IMPORTED else "train"
        made = self._import_words(scene, method) if method in IMPORTED else self.train_words[method]
        return {making: shlex.join(made), "evaluate": shlex.join(words)}

    def _import_words(self, scene: str, method: str) -> list[str]:
        """Options of `divff import` for a published checkpoint."""
        checkpoint, autoencoder = self.ground.checkpoint(method, scene) or (Path(), None)
        weights = self.ground.egovideo
        words = [str(checkpoint), "--image-encoder", self.extract.encoder]
        words += [] if autoencoder is None else ["--autoencoder", str(autoencoder)]
        return words + ([] if weights is None else ["--video-encoder", str(weights)])


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
