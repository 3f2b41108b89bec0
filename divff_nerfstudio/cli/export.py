"""``divff export``: a trained scene as points or as Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Optional

import numpy as np
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from divff_nerfstudio.cli.opening import open_scene
from divff_nerfstudio.evaluation.options import CloudOptions, EvaluationError, Features, asked_kind
from divff_nerfstudio.outputs import check_output_file, check_output_folder
from divff_nerfstudio.run_folder import RunError
from divff_nerfstudio.schema import Share, Words

if TYPE_CHECKING:
    from divff_nerfstudio.evaluation.trained_scene import TrainedScene


@dataclass
class ExportConfig:
    """Writes a trained scene at one moment for other programs: a point cloud of several views, or Gaussians, as PLY."""

    load_config: Path
    """The run's config.yml."""
    what: Literal["pointcloud", "gaussians"] = "pointcloud"
    """What to write. "gaussians": each layer of a run of divff-splat, as viewers of Gaussians open it."""
    output: Optional[Path] = None  # noqa: UP045
    """The .ply file, or the folder of the layers' files; by default "pointcloud.ply" or "gaussians" beside the
    config.yml."""
    queries: tuple[Words, ...] = ()
    """Phrases whose relevancy each point gets; "video: cut the bread" asks the other features than --features says."""
    features: Features = "image"
    """Which features answer, and are written."""
    time: Optional[Share] = None  # noqa: UP045
    """The moment, 0 to 1; by default the middle of the video."""
    cloud: CloudOptions = field(default_factory=CloudOptions)
    """Views, sizes, and what is left out."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""

    def main(self) -> Path:
        """Runs the command."""
        folder = self.load_config.resolve().parent
        if self.what == "gaussians":
            if self.queries or self.features != "image" or self.cloud != CloudOptions():
                raise EvaluationError(
                    "--queries, --features and --cloud are of point clouds: leave them out, or give --what pointcloud."
                )
            return self._gaussians(check_output_folder(self.output or folder / "gaussians"))
        queries = [asked_kind(typed, self.features) for typed in self.queries]
        path = check_output_file(self.output or folder / "pointcloud.ply", ".ply")
        trained = open_scene(self.load_config, self.data)
        from divff_nerfstudio.evaluation.pointcloud import write_cloud

        count = write_cloud(path, trained, self._moment(trained), queries, self.features, self.cloud)
        CONSOLE.print(f"Written: {escape(str(path))} ({count} points)")
        return path

    def _moment(self, trained: TrainedScene) -> float:
        return float(np.median(trained.times)) if self.time is None else self.time

    def _gaussians(self, folder: Path) -> Path:
        """Writes the layers, the actor where it is for the camera of the frame next to the time."""
        trained = open_scene(self.load_config, self.data)
        from divff_nerfstudio.models.splat.model import SplatModel
        from divff_nerfstudio.models.splat.ply import write_layers

        time = self._moment(trained)
        if not isinstance(trained.model, SplatModel):
            raise RunError(f"{self.load_config} is a run without Gaussians: give one of `ns-train divff-splat`.")
        camera = trained.camera_at(trained.frame_at(time), time)
        names = [path.name for path in write_layers(trained.model, folder, camera).values()]
        CONSOLE.print(f"Written: {escape(str(folder))} ({', '.join(names)})")
        return folder
