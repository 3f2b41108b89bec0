"""The command `divff demo-scene`."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import Count, Size

FULL = (228, 128, 300)
SMALL = (114, 64, 80)
"""Width, height and number of frames with and without `full`."""


class DemoSceneError(DivffError):
    """A demo scene cannot be written as asked."""


@dataclass
class DemoSceneConfig:
    """Write a procedural egocentric kitchen, with ground truth, in the layout of EPIC-Diff."""

    output: Annotated[Path, tyro.conf.Positional]
    """Folder of the scene; it must not exist, or be empty."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Everything random depends on it: colours of the kitchen, places, timing, the head's sway, the world's axes."""
    full: bool = False
    """300 frames of 228x128 (video 456x256) instead of 80 of 114x64 (video 228x128)."""
    num_frames: Count | None = None
    """Number of frames; every third frame of the video is one."""
    width: Size | None = None
    """Of the frames, pixels; the video's are twice as large."""
    height: Size | None = None
    """Of the frames, pixels."""
    num_objects: Annotated[int, Field(ge=4, le=10)] = 8
    """Number of objects, 4 to 10; six of eight are moved."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 2
    """Processes that draw; the scene does not depend on it."""
    overwrite: bool = False
    """Delete the scene that is in the folder first."""

    def main(self) -> None:
        """Draws the scene and writes it.

        Raises:
            DemoSceneError: An option is out of its range, or the folder holds something.
        """
        from nerfstudio.utils.rich_utils import CONSOLE
        from rich.progress import track

        from divff_nerfstudio.demo_scene.choreography import MIN_PROPS, PROPS
        from divff_nerfstudio.demo_scene.world import Settings
        from divff_nerfstudio.demo_scene.writer import render_frames, write_annotations

        width, height, num_frames = (
            given if given is not None else default
            for given, default in zip(
                (self.width, self.height, self.num_frames), FULL if self.full else SMALL, strict=True
            )
        )
        if num_frames < 8 or min(width, height) < 16:
            raise DemoSceneError(
                "A scene has at least 8 frames of at least 16x16 pixels: give --num-frames, --width, --height so."
            )
        if num_frames > 1000:
            raise DemoSceneError("A scene has at most 1000 frames: give a smaller --num-frames.")
        if not MIN_PROPS <= self.num_objects <= len(PROPS):
            raise DemoSceneError(f"A demo scene has {MIN_PROPS} to {len(PROPS)} objects: give --num-objects so.")
        if self.workers < 1:
            raise DemoSceneError("Somebody must draw the scene: give --workers 1 or more.")
        if self.overwrite and self.output.is_dir() and any(self.output.iterdir()):
            if not (self.output / "meta.json").is_file():
                raise DemoSceneError(f"{self.output} is no scene, so it is not deleted: give another folder.")
            shutil.rmtree(self.output)
        elif self.output.is_dir() and not any(self.output.iterdir()):
            self.output.rmdir()
        if self.output.exists():
            raise DemoSceneError(f"{self.output} holds something already: give another folder or --overwrite.")
        settings = Settings(self.seed, num_frames, width, height, self.num_objects)
        with atomic_path(self.output) as folder:
            try:
                folder.mkdir(parents=True)
                workers = min(self.workers, os.cpu_count() or 1)
                frames = render_frames(settings, folder, workers)
                for _ in track(frames, description="Drawing the kitchen", total=settings.video_frames):
                    pass
                write_annotations(settings, folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        line = shlex.join(["divff", "extract", "--data", str(self.output), "--encoder", "demo"])
        CONSOLE.print(f"{num_frames} frames of {width}x{height} lie in {self.output}. Next: {line}", soft_wrap=True)
