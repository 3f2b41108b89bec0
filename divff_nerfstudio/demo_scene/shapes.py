"""Parts put between points: rods, bent tubes, discs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from divff_nerfstudio.demo_scene.arrays import Points, Rotation, Vector
from divff_nerfstudio.demo_scene.primitives import RoundCone
from divff_nerfstudio.demo_scene.renderer import Part
from divff_nerfstudio.demo_scene.textures import Texture


def frame_along(axis: Vector) -> Rotation:
    """A rotation (3, 3) whose z column is `axis` and whose x column is as near to the x, or y, axis as it can be."""
    z = np.asarray(axis, dtype=np.float64)
    z = z / np.linalg.norm(z)
    near = np.array([1.0, 0.0, 0.0]) if abs(z[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
    y = np.cross(z, near)
    y /= np.linalg.norm(y)
    return np.stack([np.cross(y, z), y, z], axis=1)


def vector(x: float, y: float, z: float) -> Vector:
    """A point or an offset, (3,)."""
    return np.array([x, y, z], dtype=np.float64)


def turn_z(angle: float) -> Rotation:
    """Rotation about z by `angle` radians, (3, 3)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def turn_x(angle: float) -> Rotation:
    """Rotation about x by `angle` radians, (3, 3)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])


def turn_y(angle: float) -> Rotation:
    """Rotation about y by `angle` radians, (3, 3)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])


def rod(
    start: Sequence[float] | ndarray,
    end: Sequence[float] | ndarray,
    radius: float,
    end_radius: float | None,
    texture: Texture,
    **options: object,
) -> Part:
    """A round cone from `start` to `end`; `options` go to `Part`."""
    begin, finish = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    length = float(np.linalg.norm(finish - begin))
    return Part(
        RoundCone(length, radius, radius if end_radius is None else end_radius),
        texture,
        position=tuple(begin),
        rotation=frame_along(finish - begin) if length > 0.0 else np.eye(3),
        **options,  # type: ignore[arg-type]
    )


def tube(points: Points, radii: Sequence[float] | ndarray | float, texture: Texture, **options: object) -> tuple:
    """A bent tube: round cones through points (n, 3)."""
    widths = np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(points),))
    return tuple(
        rod(points[i], points[i + 1], float(widths[i]), float(widths[i + 1]), texture, **options)
        for i in range(len(points) - 1)
    )


def arc(radius: float, start: float, end: float, count: int) -> Points:
    """Points (count, 3) on a circle in the plane x-z around the origin; angles from x towards z, degrees."""
    angle = np.radians(np.linspace(start, end, count))
    return np.stack([radius * np.cos(angle), np.zeros(count), radius * np.sin(angle)], axis=1)
