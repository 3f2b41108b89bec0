"""``divff video``: a video of a trained scene."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional, Union

from nerfstudio.utils.rich_utils import CONSOLE
from pydantic import Field
from rich.markup import escape
from rich.progress import track

from divff_nerfstudio.cli.opening import open_scene
from divff_nerfstudio.evaluation.options import EvaluationError, Features, MovingLayer, asked_kind
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.outputs import check_output_file
from divff_nerfstudio.schema import Amount, Count, PicturesPerSecond, Words

if TYPE_CHECKING:
    from divff_nerfstudio.evaluation.trained_scene import TrainedScene
    from divff_nerfstudio.viewer.camera_paths import CameraPath


@dataclass
class VideoConfig:
    """Writes a video of a trained scene: its own trajectory above, the same times from another viewpoint below."""

    load_config: Path
    """The run's config.yml."""
    output: Optional[Path] = None  # noqa: UP045
    """The .mp4 file; by default "video.mp4" beside the config.yml."""
    layout: Literal["published", "own", "other", "masks", "relevancy", "prediction"] = "published"
    """What stands where: published (own trajectory above, other viewpoint below; target, prediction, static, dynamic,
    actor, relevancies), one of its rows (own, other), with the layers' masks (masks), relevancies alone (relevancy), or
    only what the other viewpoint sees (prediction)."""
    queries: tuple[Words, ...] = ()
    """Phrases whose relevancies are shown, a column each; "video: cut the bread" asks the other features than
    --features says. By default those of the run's configuration."""
    features: Features = "image"
    """Which features answer the queries."""
    hide: tuple[MovingLayer, ...] = ()
    """Layers to leave out: actor, dynamic."""
    camera_path: Optional[Path] = None  # noqa: UP045
    """Camera path of nerfstudio's viewer: the other viewpoint. A picture for each of its cameras, at its time. What the
    panel asked and hid when it was saved is asked and hidden, unless --queries or --hide say otherwise."""
    fixed: Optional[Amount] = None  # noqa: UP045
    """Id of the frame whose viewpoint is the other one; by default the published one of EPIC-Diff's scenes, else the
    most central."""
    frames: Union[Literal["all"], Count] = "all"  # noqa: UP007
    """How many pictures, evenly spaced over the scene or the camera path."""
    fps: Optional[PicturesPerSecond] = None  # noqa: UP045
    """Pictures per second; by default as many as make the film as long as the camera path says, else 10."""
    cell_height: Annotated[int, Field(ge=16, le=2160)] = 180
    """Height of each picture in the video, in pixels. What a camera path sees is rendered at this height."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""

    def main(self) -> Path:
        """Runs the command."""
        if self.camera_path is not None and self.fixed is not None:
            raise EvaluationError("--camera-path and --fixed both name the other viewpoint: leave one of them out.")
        file = check_output_file(self.output or self.load_config.resolve().parent / "video.mp4", ".mp4")
        asked = [asked_kind(typed, self.features) for typed in self.queries]
        path = self._path()
        trained, hide = open_scene(self.load_config, self.data, (self.fixed,)), self.hide
        from divff_nerfstudio.evaluation.tiles import cell_size
        from divff_nerfstudio.evaluation.videos import (
            FPS,
            LAYOUTS,
            fixed_moments,
            path_moments,
            video_pictures,
            write_video,
        )
        from divff_nerfstudio.evaluation.viewpoints import fixed_viewpoint
        from divff_nerfstudio.viewer.camera_reach import require_in_reach

        if path is not None:
            require_in_reach(path.file, path.cameras.camera_to_worlds[:, :3, 3].numpy(), trained.scene, path.crop)
        layout = LAYOUTS[self.layout]
        wanted, fps = None if self.frames == "all" else int(self.frames), self.fps
        shape = trained.scene.height, trained.scene.width
        if path is not None:
            hide = self._as_in_the_panel(trained)
            steps = evenly_spaced(len(path.cameras), wanted).tolist()
            fps = fps or path.pictures_per_second(len(steps))
            if layout.rows == ("other",):
                shape = path.height, path.width
            moments = path_moments(trained, path, steps, cell_size(*shape, self.cell_height))
        else:
            viewpoint = fixed_viewpoint(trained.scene, self.fixed)
            moments = fixed_moments(trained, evenly_spaced(len(trained.scene), wanted).tolist(), viewpoint)
        queries = asked or trained.standing_queries
        if self.layout == "relevancy" and not queries:
            raise EvaluationError("--layout relevancy shows answers, and nothing is asked: give --queries.")
        pictures = video_pictures(trained, moments, layout, queries, hide, cell_size(*shape, self.cell_height))
        shown = track(pictures, "Rendering the video ...", total=len(moments), console=CONSOLE, transient=True)
        count = write_video(file, shown, fps or FPS)
        CONSOLE.print(f"Written: {escape(str(file))} ({count} frames)")
        return file

    def _path(self) -> CameraPath | None:
        """The camera path, if there is one."""
        if self.camera_path is None:
            return None
        from divff_nerfstudio.viewer.camera_paths import read_camera_path

        return read_camera_path(self.camera_path)

    def _as_in_the_panel(self, trained: TrainedScene) -> tuple[MovingLayer, ...]:
        """Asks what the panel had asked when the camera path was saved; the layers that it had hidden."""
        from divff_nerfstudio.viewer.panel_state import load_panel_state, panel_state_path

        assert self.camera_path is not None
        saved = panel_state_path(self.camera_path)
        if not os.path.lexists(saved):
            return self.hide
        state = load_panel_state(saved)
        if not self.queries:
            state.ask(trained.query)
        switches: dict[MovingLayer, bool] = {"actor": state.hide_actor, "dynamic": state.hide_dynamic}
        return self.hide or tuple(layer for layer, hidden in switches.items() if hidden)
