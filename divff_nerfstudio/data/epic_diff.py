"""Dataparser ``epic-diff``: EPIC-Diff scene folders for nerfstudio."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Optional

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from pydantic import Field

from divff_nerfstudio.data.scene import SceneFolder, load_scene
from divff_nerfstudio.faults import tell_uncaught

_BOX_QUANTILE = 0.05
"""Share of the frustums' far corners that may stick out of the scene box on either side of each axis."""


@dataclass
class EpicDiffDataParserConfig(DataParserConfig):
    """Options of the EPIC-Diff dataparser."""

    _target: type = field(default_factory=lambda: EpicDiff)
    """target class to instantiate"""
    data: Path = Path()
    """Scene folder with meta.json and frames/."""
    time_rows: Optional[Annotated[int, Field(ge=1, le=2**24)]] = None  # noqa: UP045
    """Rows of a time table indexed by frame id (1000 in the published network); None: the scene's own range."""
    video_dir: Optional[Path] = None  # noqa: UP045
    """Folder of the video's frames, if it is not high_res_video in the scene folder."""
    pixel_centres: bool = True
    """Rays through pixel centres; False: through the pixels' upper left corners, as the published network's."""
    downscale_factor: ClassVar[float] = 1.0
    """Set by ``ns-render dataset --downscale-factor``: cameras and frames are smaller by it. No option of training."""


class EpicDiff(DataParser):
    """Gives nerfstudio the frames of a scene with cameras, times and bounds; poses stay as they are."""

    config: EpicDiffDataParserConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    includes_time = True

    def __init__(self, config: EpicDiffDataParserConfig):
        super().__init__(config)
        self.includes_time = True
        tell_uncaught()  # other methods may read our scenes, too

    @cached_property
    def scene(self) -> SceneFolder:
        """The scene, verified when it is first asked for.

        Raises:
            SceneError: If anything in it is wrong.
        """
        return load_scene(self.config.data, video_dir=self.config.video_dir)

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Optional[dict]) -> DataparserOutputs:  # noqa: UP045
        scene = self.scene
        indices = scene.splits[split]  # pyright: ignore[reportArgumentType]
        times = torch.from_numpy(scene.times(self.config.time_rows)[indices])
        cameras = pinhole_cameras(
            torch.from_numpy(scene.camera_to_worlds[indices]),
            scene.intrinsics,
            (scene.width, scene.height),
            times[:, None],
            self.config.pixel_centres,
        )
        return DataparserOutputs(
            image_filenames=[scene.image_paths[i] for i in indices],
            cameras=cameras,
            scene_box=SceneBox(aabb=frustum_box(scene)),
            metadata={
                "scene": scene,
                "frame_ids": torch.from_numpy(scene.frame_ids[indices]),
                "indices": torch.from_numpy(indices),
                "nears": torch.from_numpy(scene.nears[indices]),
                "fars": torch.from_numpy(scene.fars[indices]),
                "times": times,
                "poses": torch.from_numpy(scene.camera_to_worlds[indices]),
                "time_rows": self.config.time_rows,
                "all_times": torch.from_numpy(scene.times(self.config.time_rows)),
                "all_nears": torch.from_numpy(scene.nears),
                "all_fars": torch.from_numpy(scene.fars),
                "all_poses": torch.from_numpy(scene.camera_to_worlds),
            },
        )


def pinhole_cameras(
    camera_to_worlds: Float[torch.Tensor, "frames 3 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    times: Float[torch.Tensor, "frames 1"],
    pixel_centres: bool,
) -> Cameras:
    """Cameras of frames that share their intrinsics.

    Args:
        camera_to_worlds: Poses: columns right, up, back, position.
        intrinsics: In pixels.
        size: Width and height in pixels.
        times: In [0, 1].
        pixel_centres: See `EpicDiffDataParserConfig`.
    """
    # nerfstudio's rays go through pixel centres: half a pixel to the right and below puts them on the corner.
    shift = 0.0 if pixel_centres else 0.5
    return Cameras(
        camera_to_worlds=camera_to_worlds,
        fx=float(intrinsics[0, 0]),
        fy=float(intrinsics[1, 1]),
        cx=float(intrinsics[0, 2]) + shift,
        cy=float(intrinsics[1, 2]) + shift,
        width=size[0],
        height=size[1],
        camera_type=CameraType.PERSPECTIVE,
        times=times,
    )


def frustum_box(scene: SceneFolder) -> Float[torch.Tensor, "2 3"]:
    """Axis-aligned box around what the training cameras see.

    It holds all camera positions and all but a few per cent of the far corners of the cameras' frustums, so that one
    wrong pose or far distance does not blow it up.

    Returns:
        Smallest and largest x, y, z in scene units.
    """
    train = scene.splits["train"]
    poses = scene.camera_to_worlds[train].astype(np.float64)
    pixels = np.array([(x, y, 1.0) for x in (0, scene.width) for y in (0, scene.height)])
    rays = pixels @ np.linalg.inv(scene.intrinsics.astype(np.float64)).T * (1, -1, -1)
    corners = poses[:, None, :, 3] + np.einsum("nij,cj->nci", poses[:, :, :3], rays) * scene.fars[train, None, None]
    low, high = np.quantile(corners.reshape(-1, 3), (_BOX_QUANTILE, 1 - _BOX_QUANTILE), axis=0)
    positions = poses[:, :, 3]
    low, high = np.minimum(low, positions.min(0)), np.maximum(high, positions.max(0))
    return torch.from_numpy(np.stack((low, high)).astype(np.float32))


epic_diff = DataParserSpecification(
    config=EpicDiffDataParserConfig(),
    description="EPIC-Diff: egocentric video with poses, moving masks and video frames.",
)
