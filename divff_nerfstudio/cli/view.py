"""``divff view``: nerfstudio's viewer, for this machine alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from divff_nerfstudio.cli.opening import load_run
from divff_nerfstudio.schema import Port, Words
from divff_nerfstudio.viewer.listening import require_listening


@dataclass
class ViewConfig:
    """Opens nerfstudio's viewer on a trained scene, for this machine alone unless told otherwise."""

    load_config: Path
    """The run's config.yml; refused if it could execute code."""
    host: Words = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets every machine of the network in."""
    port: Optional[Port] = None  # noqa: UP045
    """Port to listen on; by default the first free one from 7007."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""

    def main(self) -> None:
        """Runs the viewer until it is interrupted."""
        require_listening(self.host, self.port, "--host")
        run = load_run(self.load_config, self.data)
        from nerfstudio.configs.base_config import ViewerConfig
        from nerfstudio.scripts.viewer.run_viewer import _start_viewer

        run.config.vis, rays = "viewer", run.config.viewer.num_rays_per_chunk
        run.config.viewer = ViewerConfig(websocket_host=self.host, websocket_port=self.port, num_rays_per_chunk=rays)
        _start_viewer(run.config, run.pipeline, run.step)
