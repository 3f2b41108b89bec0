"""`divff demo`: from nothing to a trained, evaluated and queried scene, in stages that are not done twice."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import tyro
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from divff_nerfstudio import __version__
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.heartbeat import peak_memory
from divff_nerfstudio.schema import Count, Words, split_words
from divff_nerfstudio.stages import Stage, run_module, run_stages, words_to_resume

TARGETS = {"moving_ap": 0.80, "object_ap": 0.50, "affordance_ap": 0.35, "psnr_static_room": 22.0}
"""What the demo should reach on its test frames."""
PSNR_ABOVE_NEAREST = 3.0
"""How far its PSNR should be above that of copying the training frame next in time, in dB."""
KITCHEN_STEPS = 3500
"""Training steps for the kitchen on a CPU: what the method's own number adds is little, and takes minutes."""


@dataclass
class DemoConfig:
    """Makes a scene, its features, a trained model, scores, a video and a report. A second call goes on where the first
    one was interrupted, and repeats nothing.
    """

    output: Path = Path("divff-demo")
    """Folder for everything."""
    scene: Optional[Path] = None  # noqa: UP045
    """Scene of your own in EPIC-Diff's layout; by default a procedural kitchen is made."""
    encoder: Words = "demo"
    """Encoder of the features, as for `divff extract`; "demo" ships with the package and knows its world only."""
    query: str = ""
    """Phrase shown in the video and set in the run's configuration; by default an object of the scene's annotations."""
    video_frames: Count = 24
    """Frames of the video, evenly spaced over the scene."""
    steps: Optional[Count] = None  # noqa: UP045
    """Training steps. None: for the kitchen on a CPU 3500, so that all of it is done in eight minutes of two cores;
    otherwise the method's own number, 5000 on a CPU and 10,000 on a card."""
    train_options: str = ""
    """Further options of ns-train, quoted and with an equals sign: --train-options="--pipeline.model.evidence off"."""

    def main(self) -> None:
        """Runs the demo.

        Raises:
            DivffError: If something fails that a user can mend; options of the training are looked at first.
        """
        demo = Demo(self)
        if self.train_options:
            check_train_words(demo.train_words)
        demo.run()


def check_train_words(words: Sequence[str]) -> None:
    """Has ns-train read its options before a scene is drawn and features are extracted.

    Raises:
        DivffError: If it does not take them.
    """
    from divff_nerfstudio.option_ranges import check_config
    from divff_nerfstudio.registry import divff

    usual = divff.config
    try:
        typed = tyro.cli(tyro.conf.FlagConversionOff[type(usual)], args=words, default=usual, prog="ns-train divff")
    except SystemExit:
        raise DivffError("`ns-train divff` does not understand --train-options: see above, and mend it.") from None
    check_config(typed)


def _device(options: Sequence[str]) -> str:
    """The device that ns-train takes: the one that its options name last, otherwise the card, if there is one."""
    named = None
    for word, following in zip(options, (*options[1:], ""), strict=False):
        name, joined, value = word.partition("=")
        if name.replace("_", "-") == "--machine.device-type":
            named = value if joined else following
    if named is not None:
        return named
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Demo:
    """The stages of the demo and what they share.

    Args:
        config: Its options.
    """

    def __init__(self, config: DemoConfig):
        self.config = config
        self.output = config.output.resolve()
        self.scene = (config.scene or self.output / "scene").resolve()
        options = split_words(config.train_options, "--train-options")
        self.train_words = (*self._steps(options), *options)
        self.training = {"scene": str(self.scene), "query": config.query, "options": [*self.train_words]}
        self.video = self.output / "video.mp4"
        self.report = self.output / "report.html"
        self.seconds: dict[str, float] = {}

    def _steps(self, options: Sequence[str]) -> tuple[str, ...]:
        """What tells ns-train the number of steps.

        Args:
            options: Its further options, which may name a device.
        """
        steps = self.config.steps
        if steps is None and self.config.scene is None:
            steps = KITCHEN_STEPS if _device(options) == "cpu" else None
        return () if steps is None else ("--max-num-iterations", str(steps))

    @cached_property
    def run_folder(self) -> Path:
        """Where training writes; another one for other options, so that no foreign checkpoint is resumed."""
        options = hashlib.sha256(json.dumps([__version__, self.training]).encode()).hexdigest()[:8]
        return self.output / "runs" / "demo" / "divff" / options

    @property
    def run_config(self) -> Path:
        """The run's config.yml."""
        return self.run_folder / "config.yml"

    @property
    def stages(self) -> list[Stage]:
        """Everything to do, in order."""
        features, meta = {"scene": str(self.scene), "encoder": self.config.encoder}, self.scene / "meta.json"
        video = {"frames": self.config.video_frames}
        made = [Stage("scene", "a procedural kitchen", self.make_scene, meta)] if self.config.scene is None else []
        return [
            *made,
            Stage("features", "image, video and regulariser features of every frame", self.extract, meta, features),
            Stage("training", "geometry, then features, then both", self.train, self.run_config, self.training),
            Stage("video", "what the camera saw, and a fixed viewpoint", self.render, self.video, video),
            Stage("report", "scores of the test frames, on one page", self.evaluate, self.report),
        ]

    def run(self) -> None:
        """Runs what is not done yet, and says what to do next."""
        start = time.perf_counter()
        run_stages(self.stages, self.output / "stages", self.seconds)
        CONSOLE.rule("[bold green]Done")
        CONSOLE.print(f"This call took {time.perf_counter() - start:.0f} s. Open {escape(str(self.report))}")
        CONSOLE.print(f"Ask the scene yourself:\n\n  {escape(self.viewer_command)}\n", soft_wrap=True)

    @property
    def viewer_command(self) -> str:
        """The line that opens the viewer on the trained scene."""
        command = ["ns-viewer", "--load-config", str(self.run_config), "--viewer.websocket-host", "127.0.0.1"]
        return shlex.join(command)

    @cached_property
    def query(self) -> str:
        """What is asked in the video."""
        if self.config.query:
            return self.config.query
        from divff_nerfstudio.data.annotations import object_annotations
        from divff_nerfstudio.data.scene import load_scene

        objects = object_annotations(load_scene(self.scene))
        return objects.names[0] if objects is not None and objects.names else ""

    @cached_property
    def trained(self) -> Any:
        """The trained run."""
        from divff_nerfstudio.evaluation.runs import load_run

        return load_run(self.run_config)

    def make_scene(self) -> None:
        """Writes the procedural kitchen."""
        run_module("divff_nerfstudio.cli", "demo-scene", str(self.scene))

    def extract(self) -> None:
        """Extracts the features of the scene, all by one encoder, so that no further weights are needed."""
        from divff_nerfstudio.features.sources import DEMO_SOURCES

        run_module(
            "divff_nerfstudio.cli",
            "extract",
            *("--data", str(self.scene), "--encoder", self.config.encoder),
            *("--sources", *DEMO_SOURCES.values(), "--segments.segmenter", "outlines"),
        )

    def train(self) -> None:
        """Trains, from the last checkpoint of an interrupted training if there is one and it is not the final one."""
        resumed = words_to_resume(self.run_folder)
        if resumed is None:
            return
        run_module(
            "nerfstudio.scripts.train",
            "divff",
            *("--data", str(self.scene)),
            *("--output-dir", str(self.output / "runs"), "--experiment-name", "demo"),
            *("--timestamp", self.run_folder.name),
            *("--vis", "tensorboard", "--pipeline.query.text", self.query),
            *resumed,
            *self.train_words,
        )

    def render(self) -> None:
        """Writes the two-row video."""
        from divff_nerfstudio.evaluation.trained_scene import TrainedScene
        from divff_nerfstudio.evaluation.videos import LAYOUTS, fixed_moments, video_pictures, write_video
        from divff_nerfstudio.evaluation.viewpoints import fixed_viewpoint

        pipeline = self.trained.pipeline
        trained = TrainedScene(pipeline.model, pipeline.datamanager, pipeline.query)
        frames = evenly_spaced(len(trained.scene), self.config.video_frames).tolist()
        moments = fixed_moments(trained, frames, fixed_viewpoint(trained.scene))
        write_video(self.video, video_pictures(trained, moments, LAYOUTS["published"], trained.standing_queries))

    def evaluate(self) -> None:
        """Scores the test frames and writes the page."""
        from divff_nerfstudio.evaluation.report import Gallery, Report, save_report, save_scores
        from divff_nerfstudio.evaluation.run import Wanted, evaluate
        from divff_nerfstudio.evaluation.runs import run_facts

        pipeline, step = self.trained.pipeline, self.trained.step
        gallery = Gallery(self.output / "frames")
        wanted = Wanted(tasks=("masks", "objects", "affordances"), baselines=("nearest", "mean", "extracted"))
        start = time.perf_counter()
        evaluation = evaluate(pipeline.model, pipeline.datamanager, pipeline.query, gallery.add, wanted)
        facts = run_facts(pipeline, step) | {"Evaluation": f"{time.perf_counter() - start:.0f} s"}
        taken = {name.capitalize(): f"{duration:.0f} s" for name, duration in self.seconds.items()}
        facts |= {name if name == "Training" else f"{name}, made in": text for name, text in taken.items()}
        if (peak := peak_memory()) is not None:
            facts["Peak memory of this call"] = f"{peak / 2**30:.1f} GiB"
        targets = dict(TARGETS)
        if "psnr_nearest_frame" in evaluation.totals:
            targets["psnr"] = evaluation.totals["psnr_nearest_frame"] + PSNR_ABOVE_NEAREST
        save_scores(self.output / "scores.json", evaluation, facts)
        scene = pipeline.datamanager.train_dataset.metadata["scene"]
        introduction = (
            f"Learned from {len(scene.splits['train'])} frames of one egocentric video. All scores and figures are of "
            f"the {len(scene.splits['test'])} test frames, which training has never seen."
        )
        another = shlex.join(["divff", "video", "--load-config", str(self.run_config), "--queries", self.query])
        commands = [("Ask the scene in the browser:", self.viewer_command), ("Another query in the video:", another)]
        save_report(
            self.report,
            Report(scene.name, introduction, evaluation, gallery, facts, targets, self.video, commands),
        )
