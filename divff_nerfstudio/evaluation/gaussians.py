"""The command `divff gaussians`: the layers of a run of divff-splat for viewers of Gaussians."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from divff_nerfstudio.evaluation.runs import RunError, open_scene
from divff_nerfstudio.evaluation.viewpoints import central_frame


@dataclass
class GaussiansConfig:
    """Writes the layers of a run of divff-splat as PLY files that viewers of Gaussians open."""

    load_config: Path
    """The run's config.yml."""
    output: Optional[Path] = None  # noqa: UP045
    """Folder for static.ply, dynamic.ply and actor.ply; by default "gaussians" beside the config.yml."""
    frame: Optional[int] = None  # noqa: UP045
    """Id of the frame whose time and camera are taken; by default the most central."""

    def main(self) -> list[Path]:
        """Runs the command.

        Raises:
            RunError: If it is a run of another method.
            SceneError: If the scene has no such frame.
        """
        from divff_nerfstudio.splat.model import SplatModel
        from divff_nerfstudio.splat.ply import write_layers

        trained = open_scene(self.load_config)
        if not isinstance(trained.model, SplatModel):
            raise RunError(f"{self.load_config} is a run without Gaussians: give one of `ns-train divff-splat`.")
        scene = trained.scene
        index = central_frame(scene) if self.frame is None else scene.index_of(self.frame)
        camera = trained.cameras[index : index + 1]
        folder = self.output or self.load_config.resolve().parent / "gaussians"
        paths = list(write_layers(trained.model, folder, camera).values())
        CONSOLE.print(f"Written: {escape(str(folder))}: {', '.join(path.name for path in paths)}")
        return paths
