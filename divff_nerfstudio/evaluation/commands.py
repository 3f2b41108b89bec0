"""The commands that look at a trained scene: `divff evaluate`, `divff video`, `divff view`."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from divff_nerfstudio.evaluation.report import Gallery, Report, save_report, save_scores
from divff_nerfstudio.evaluation.results import Evaluation
from divff_nerfstudio.evaluation.run import evaluate
from divff_nerfstudio.evaluation.videos import write_two_row_video
from divff_nerfstudio.files import DivffError, check_config_yaml

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig


class RunError(DivffError):
    """A run directory is not what a command needs."""


def open_run(load_config: Path) -> tuple[Any, int]:
    """Loads a trained run, wherever its folder lies now.

    nerfstudio's own loader executes what the file says and looks for the checkpoints below the folder that training
    was started in; here the file is checked first, and the checkpoints are those beside it.

    Args:
        load_config: The run's config.yml.

    Returns:
        The pipeline in evaluation mode, on the test frames, and the checkpoint's step.

    Raises:
        RunError: If there is no checkpoint, or it is another method's run.
        UnsafeConfigError: If the file asks for anything that no run of ours needs.
    """
    check_config_yaml(load_config)
    folder = load_config.resolve().parent

    def relocated(config: TrainerConfig) -> TrainerConfig:
        config.output_dir, config.experiment_name, config.method_name, config.timestamp = folder, ".", ".", "."
        if not any(config.get_checkpoint_dir().glob("step-*.ckpt")):
            raise RunError(f"{config.get_checkpoint_dir()} has no checkpoint: train the scene with `ns-train divff`.")
        return config

    from nerfstudio.utils.eval_utils import eval_setup

    _, pipeline, _, step = eval_setup(load_config, update_config_callback=relocated)
    if not hasattr(pipeline, "query"):
        raise RunError(f"{load_config} is no run of divff: give the config.yml that `ns-train divff` wrote.")
    return pipeline, step


def run_facts(pipeline: Any, step: int) -> dict[str, str]:
    """What a report says about a run before its scores: scene, frames, step, features, hardware."""
    scene = pipeline.datamanager.train_dataset.metadata["scene"]
    counts = ", ".join(f"{len(scene.splits[split])} {split}" for split in ("train", "val", "test"))
    return {
        "Scene": scene.name,
        "Frames": f"{len(scene)} at {scene.width}x{scene.height} ({counts})",
        "Training steps": str(step + 1),
        "Features": ", ".join(pipeline.query.kinds) or "none",
        "Hardware": hardware(),
    }


def hardware() -> str:
    """The processors at hand, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} CPU cores ({platform.machine()})"


@dataclass
class EvaluateConfig:
    """Scores a trained scene on its test frames: a page, figures, and all numbers as JSON."""

    load_config: Path
    """The run's config.yml."""
    output: Optional[Path] = None  # noqa: UP045
    """Folder for scores.json, report.html and frames/; by default "evaluation" beside the config.yml."""

    def main(self) -> Evaluation:
        """Runs the command."""
        pipeline, step = open_run(self.load_config)
        folder = self.output or self.load_config.resolve().parent / "evaluation"
        gallery, start = Gallery(folder / "frames"), time.perf_counter()
        evaluation = evaluate(pipeline.model, pipeline.datamanager, pipeline.query, gallery.add)
        facts = run_facts(pipeline, step) | {"Evaluation": f"{time.perf_counter() - start:.0f} s"}
        save_scores(folder / "scores.json", evaluation, facts)
        name = facts["Scene"]
        introduction = "Scores and pictures of the test frames, which training has never seen."
        save_report(folder / "report.html", Report(name, introduction, evaluation, gallery, facts))
        for key, value in evaluation.totals.items():
            CONSOLE.print(f"{key:>24} {value:8.3f}")
        CONSOLE.print(f"Written: {escape(str(folder / 'report.html'))} and scores.json beside it")
        return evaluation


@dataclass
class VideoConfig:
    """Writes the two-row video of a trained scene: its own trajectory above, a fixed viewpoint below."""

    load_config: Path
    """The run's config.yml."""
    output: Optional[Path] = None  # noqa: UP045
    """The .mp4 file; by default "video.mp4" beside the config.yml."""
    query: str = ""
    """Phrase whose relevancy is shown; several are separated by ";". Empty: that of the run's configuration."""
    features: Literal["image", "video"] = "image"
    """Which features answer the query."""
    frames: Optional[int] = None  # noqa: UP045
    """How many frames of the scene, evenly spaced; by default all."""
    fixed_frame: Optional[int] = None  # noqa: UP045
    """Id of the frame whose viewpoint is the fixed one; by default the most central."""
    hide_actor: bool = False
    """Leave the camera wearer out."""
    hide_dynamic: bool = False
    """Leave out the objects that move."""
    fps: float = 10.0
    """Frames per second."""
    cell_height: int = 180
    """Height of each picture in the video, in pixels."""

    def main(self) -> Path:
        """Runs the command."""
        pipeline, _ = open_run(self.load_config)
        if self.query:
            pipeline.query.ask(text=self.query, features=self.features)
        pipeline.model.visibility.hide_actor = self.hide_actor
        pipeline.model.visibility.hide_dynamic = self.hide_dynamic
        path = self.output or self.load_config.resolve().parent / "video.mp4"
        count = write_two_row_video(
            path,
            pipeline.model,
            pipeline.datamanager,
            pipeline.query,
            frames=self.frames,
            fixed_frame=self.fixed_frame,
            fps=self.fps,
            cell_height=self.cell_height,
        )
        CONSOLE.print(f"Written: {escape(str(path))} ({count} frames)")
        return path


@dataclass
class ViewConfig:
    """Opens nerfstudio's viewer on a trained scene, for this machine alone unless told otherwise."""

    load_config: Path
    """The run's config.yml; refused if it could execute code."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets every machine of the network in."""
    port: Optional[int] = None  # noqa: UP045
    """Port to listen on; by default the first free one from 7007."""

    def main(self) -> None:
        """Runs the viewer until it is interrupted."""
        check_config_yaml(self.load_config)
        from nerfstudio.scripts.viewer.run_viewer import RunViewer, ViewerConfigWithoutNumRays

        viewer = ViewerConfigWithoutNumRays(websocket_host=self.host, websocket_port=self.port)
        RunViewer(load_config=self.load_config, viewer=viewer).main()
