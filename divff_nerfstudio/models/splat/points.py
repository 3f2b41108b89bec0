"""Where the first Gaussians are: points of a reconstruction, or places in the cameras' frustums."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from divff_nerfstudio.convert import colmap_binary
from divff_nerfstudio.data.scene import SceneError, SceneFolder
from divff_nerfstudio.ply import read_vertices
from divff_nerfstudio.schema import MAX_NUMBER

if TYPE_CHECKING:
    from divff_nerfstudio.models.splat.gaussians import GaussianLayer

PLACES = (
    "points3D.ply",
    "points3D.bin",
    "sparse/0/points3D.bin",
    "colmap/points3D.bin",
    "colmap/sparse/0/points3D.bin",
)
"""Where a scene folder may have points, in its poses' coordinates."""

Points = tuple[Float[Tensor, "points 3"], Float[Tensor, "points 3"]]
"""Positions in scene units and colours in [0, 1]."""


def first_points(scene: SceneFolder, given: Path | None, start: int, max_points: int) -> Points:
    """The points that Gaussians start from.

    Args:
        scene: The scene.
        given: A file of points; None: the scene's, if it has one.
        start: How many there are at random places where there is no file: training checks that there is, and whoever
            opens a checkpoint needs none.
        max_points: How many are taken of a file.
    """
    path = given or find_points(scene)
    if path is None or not path.is_file():
        return random_points(scene, start)
    positions, colours = read_points(path)
    chosen = torch.randperm(len(positions))[:max_points]
    return positions[chosen], colours[chosen]


def find_points(scene: SceneFolder) -> Path | None:
    """The scene's file of points, if it has one."""
    return next((scene.root / place for place in PLACES if (scene.root / place).is_file()), None)


def read_points(path: Path) -> Points:
    """Points of a PLY file, or of COLMAP's points3D.bin or points3D.txt.

    Raises:
        SceneError: If there is no such file, or it has no points with colours.
    """
    if not path.is_file():
        raise SceneError(f"{path} does not exist: give a PLY file, or points3D.bin or .txt of a COLMAP model.")
    try:
        positions, colours = _read_ply(path) if path.suffix.lower() == ".ply" else _read_colmap(path)
    except Exception as error:  # whatever the readers of foreign formats raise
        reason = str(error) or type(error).__name__
        raise SceneError(f"{path} holds no coloured points ({reason}): give another file as points.") from error
    if not len(positions) or not (np.abs(positions) <= MAX_NUMBER).all():
        raise SceneError(f"{path} has no point, or one that is not finite: give another file as points.")
    return torch.from_numpy(positions.astype(np.float32)), torch.from_numpy(colours.astype(np.float32) / 255)


def _read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    vertices = read_vertices(path)
    positions, colours = (np.stack([vertices[n] for n in names], -1) for names in (("x", "y", "z"), _COLOURS))
    return positions.astype(np.float64), _of_8_bits(colours)


def _of_8_bits(colours: np.ndarray) -> np.ndarray:
    """Colours from 0 to 255, of which programs also write shares, and 16 bits.

    Raises:
        ValueError: If they are neither.
    """
    if colours.dtype == np.uint16:
        return colours / 257
    if colours.dtype.kind == "f" and colours.size and colours.max() <= 1:
        colours = colours * 255
    if not ((colours >= 0) & (colours <= 255)).all():
        raise ValueError("its colours are not from 0 to 255")
    return colours


_COLOURS = ("red", "green", "blue")


def _read_colmap(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from nerfstudio.data.utils.colmap_parsing_utils import read_points3D_binary, read_points3D_text

    if path.suffix == ".bin":
        colmap_binary.read_points(path)  # within the file's size, where nerfstudio's reader believes every count
    points = (read_points3D_binary if path.suffix == ".bin" else read_points3D_text)(str(path)).values()
    return np.stack([point.xyz for point in points]), np.stack([point.rgb for point in points])


def random_points(scene: SceneFolder, count: int) -> Points:
    """Points at random in the frustums of training frames, between near and far, coloured as their pixels.

    Drawn from torch's global generator.
    """
    frames = torch.from_numpy(scene.splits["train"])[torch.randint(len(scene.splits["train"]), (count,))].numpy()
    rows, columns = torch.randint(scene.height, (count,)).numpy(), torch.randint(scene.width, (count,)).numpy()
    near, far = scene.nears[frames], scene.fars[frames]
    depths = near + (far - near) * torch.rand(count).numpy()
    K = scene.intrinsics
    across, down = (columns + 0.5 - K[0, 2]) / K[0, 0], (rows + 0.5 - K[1, 2]) / K[1, 1]
    places = np.stack((across, -down, -np.ones(count)), -1) * depths[:, None]
    poses = scene.camera_to_worlds[frames]
    positions = np.einsum("nij,nj->ni", poses[:, :, :3], places) + poses[:, :, 3]
    colours = scene.frames[frames, rows, columns] / np.float32(255)
    return torch.from_numpy(positions.astype(np.float32)), torch.from_numpy(colours.astype(np.float32))


def place(points: Points, layer: GaussianLayer, length: float | Tensor) -> None:
    """Makes the Gaussians of a layer those of points.

    Args:
        points: The points.
        layer: The layer; what it has is replaced.
        length: The scene's, in scene units.
    """
    positions, colours = points[0] / length, points[1]
    layer.make_room(len(positions))
    for name, row in layer.new_rows(positions, spacing(positions), colours, opacity=0.1).items():
        layer.rows[name].data = row


def spacing(positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points"]:
    """Mean distance of each point to the next three, which their Gaussians start as wide as."""
    if len(positions) < 4:
        return positions.new_full((len(positions),), 0.01)
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=4).fit(positions.numpy()).kneighbors(positions.numpy())
    return torch.from_numpy(distances[:, 1:].mean(-1).astype(np.float32)).clamp_min(1e-7)
