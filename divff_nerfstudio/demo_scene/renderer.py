"""A small ray caster: bodies made of primitives, one camera, deferred shading, supersampling.

Rays are never stored. Seen from a part's own frame a pixel's direction is an outer sum of a row and a column, so each
part is tested only inside the rectangle of pixels that its box can cover. What is in front is shaded afterwards, once
per sample: texture, ambient light with occlusion, a lamp, a window, a highlight, and soft shadows under bodies.
Frames follow OpenGL: the camera looks along its -z; pixel (i, j) has its centre at (i + 0.5, j + 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int16, UInt8
from numpy import ndarray

from divff_nerfstudio.demo_scene.arrays import Bounds, Linear, Picture, Points, Rotation, Scalars, Vector
from divff_nerfstudio.demo_scene.primitives import EPSILON, Primitive
from divff_nerfstudio.demo_scene.textures import Texture

MIN_AHEAD = 0.02
"""A box with a corner nearer to the camera plane than this (metres) is tested in every pixel."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in a metric room."""

    width: int
    height: int
    focal: float
    """In pixels; the principal point is the middle of the picture."""
    rotation: Rotation
    """Camera to world, (3, 3), columns right, up, back."""
    position: Vector
    """In the world, (3,)."""

    def scaled(self, factor: int) -> Camera:
        """The same view in `factor` times as many rows and columns."""
        return replace(self, width=self.width * factor, height=self.height * factor, focal=self.focal * factor)

    @property
    def columns(self) -> Scalars:
        """Horizontal slopes of the pixel centres, (width,)."""
        return (np.arange(self.width) + 0.5 - self.width / 2) / self.focal

    @property
    def rows(self) -> Scalars:
        """Vertical slopes (up is positive) of the pixel centres, (height,)."""
        return -(np.arange(self.height) + 0.5 - self.height / 2) / self.focal

    @staticmethod
    def look_at(width: int, height: int, focal: float, position: Vector, target: Vector, roll: float = 0.0) -> Camera:
        """A camera at `position` with `target` in its middle, rolled by `roll` radians; z is up."""
        back = np.asarray(position, dtype=np.float64) - np.asarray(target, dtype=np.float64)
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        up = np.cross(back, right)
        tilted = np.cos(roll) * right + np.sin(roll) * up
        rotation = np.stack([tilted, np.cross(back, tilted), back], axis=1)
        return Camera(width, height, focal, rotation, np.asarray(position, dtype=np.float64))


@dataclass(frozen=True)
class Part:
    """One primitive with its surface, placed in a body's frame."""

    primitive: Primitive
    texture: Texture
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: Rotation = field(default_factory=lambda: np.eye(3))
    instance: int | None = None
    """Overrides the body's instance."""
    gloss: float = 0.08
    """Strength of the highlight."""
    emission: float = 0.0
    """Share of the texture that is shown as it is, unlit."""
    own_texture: bool = False
    """The texture sees the primitive's frame, not the body's."""
    hollow: float = 0.0
    """Height (metres) over which the inside of an open vessel darkens towards its bottom; 0: no inside."""


@dataclass(frozen=True)
class Body:
    """Parts that move together."""

    parts: tuple[Part, ...]
    instance: int = 0
    rotation: Rotation = field(default_factory=lambda: np.eye(3))
    position: Vector = field(default_factory=lambda: np.zeros(3))
    shadow: float = 0.0
    """Strength of the soft shadow under it; 0: none."""
    fixed: bool = False
    """Belongs to the room: the room's ambient occlusion applies."""

    def placed(self, rotation: Rotation, position: Vector) -> Body:
        """The same body elsewhere."""
        return replace(self, rotation=np.asarray(rotation), position=np.asarray(position))

    @cached_property
    def bounds(self) -> Bounds:
        """Box around all parts in the body's frame, (2, 3)."""
        corners = np.concatenate([_box_corners(p.primitive.bounds) @ p.rotation.T + p.position for p in self.parts])
        return np.stack([corners.min(0), corners.max(0)])


@dataclass(frozen=True)
class Lighting:
    """Light of the room; colours are linear."""

    ambient: tuple[float, float, float] = (0.40, 0.41, 0.43)
    lamp_position: tuple[float, float, float] = (0.75, -0.15, 2.30)
    lamp: tuple[float, float, float] = (0.62, 0.58, 0.50)
    window_direction: tuple[float, float, float] = (-0.42, 0.62, 0.66)
    """Towards the light."""
    window: tuple[float, float, float] = (0.20, 0.24, 0.29)
    exposure: float = 1.0


@dataclass
class PlacedBodies:
    """Bodies ready to be seen: parts with their frames in the world."""

    bodies: Sequence[Body]

    def __post_init__(self) -> None:
        self.parts = [part for body in self.bodies for part in body.parts]
        self.body_of = np.array([i for i, body in enumerate(self.bodies) for _ in body.parts], dtype=np.int64)
        self.instances = np.array(
            [body.instance if part.instance is None else part.instance for body in self.bodies for part in body.parts],
            dtype=np.uint8,
        )
        self.rotations = np.stack([body.rotation @ part.rotation for body in self.bodies for part in body.parts])
        self.positions = np.stack(
            [body.rotation @ np.asarray(part.position) + body.position for body in self.bodies for part in body.parts]
        )
        corners = np.stack([_box_corners(part.primitive.bounds) for part in self.parts])
        self.corners = corners @ self.rotations.transpose(0, 2, 1) + self.positions[:, None]

    @staticmethod
    def joined(*stages: PlacedBodies) -> PlacedBodies:
        """One stage of several, without placing their bodies anew."""
        whole = object.__new__(PlacedBodies)
        whole.bodies = [body for stage in stages for body in stage.bodies]
        whole.parts = [part for stage in stages for part in stage.parts]
        offsets = np.cumsum([0, *(len(stage.bodies) for stage in stages[:-1])])
        whole.body_of = np.concatenate([stage.body_of + offset for stage, offset in zip(stages, offsets, strict=True)])
        whole.instances = np.concatenate([stage.instances for stage in stages])
        whole.rotations = np.concatenate([stage.rotations for stage in stages])
        whole.positions = np.concatenate([stage.positions for stage in stages])
        whole.corners = np.concatenate([stage.corners for stage in stages])
        return whole


@dataclass(frozen=True)
class Visible:
    """What each pixel's centre sees."""

    depth: Float[np.ndarray, "height width"]
    """z along the optical axis, metres, (H, W); infinite where there is nothing."""
    part: Int16[np.ndarray, "height width"]
    """Index into the stage's parts, (H, W) int16; -1 where there is nothing."""
    instance: UInt8[np.ndarray, "height width"]
    """(H, W) uint8; 0 where there is nothing."""


def _box_corners(bounds: Bounds) -> ndarray:
    choice = np.array([[(k >> axis) & 1 for axis in range(3)] for k in range(8)])
    return np.take_along_axis(bounds, choice, axis=0)


def _windows(stage: PlacedBodies, camera: Camera) -> ndarray:
    """For every part the pixels that its box can cover: first column, end column, first row, end row, (P, 4)."""
    corners: ndarray = np.subtract(stage.corners, camera.position) @ camera.rotation
    ahead = np.negative(corners[..., 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        x = corners[..., 0] / ahead * camera.focal + camera.width / 2
        y = camera.height / 2 - corners[..., 1] / ahead * camera.focal
    limits = np.stack([x.min(1) - 0.5, x.max(1) + 0.5, y.min(1) - 0.5, y.max(1) + 0.5], axis=1)
    size = np.array([camera.width, camera.width, camera.height, camera.height])
    near = ahead.min(1) < MIN_AHEAD
    limits[near] = [0, camera.width, 0, camera.height]
    limits = np.clip(np.where(np.isfinite(limits), limits, 0.0), 0, size)
    windows = np.stack(
        [np.floor(limits[:, 0]), np.ceil(limits[:, 1]), np.floor(limits[:, 2]), np.ceil(limits[:, 3])], axis=1
    ).astype(np.int64)
    windows[ahead.max(1) < MIN_AHEAD] = 0
    return windows


def cast(stage: PlacedBodies, camera: Camera, dtype: type = np.float32) -> Visible:
    """Find what every pixel centre sees.

    Args:
        stage: the bodies.
        camera: the view.
        dtype: float32 for pictures, float64 for ground truth.

    Returns:
        Depth, part and instance per pixel.
    """
    columns, rows = camera.columns.astype(dtype), camera.rows.astype(dtype)[:, None]
    depth = np.full((camera.height, camera.width), np.inf, dtype=dtype)
    index = np.full((camera.height, camera.width), -1, dtype=np.int16)
    to_part = stage.rotations.transpose(0, 2, 1)
    turn = to_part @ camera.rotation
    origins = ((camera.position - stage.positions)[:, None] @ stage.rotations)[:, 0].astype(dtype)
    for k, (left, right, top, bottom) in enumerate(_windows(stage, camera)):
        if right <= left or bottom <= top:
            continue
        matrix = turn[k].astype(dtype)
        x, y = columns[left:right], rows[top:bottom]
        direction = tuple(matrix[axis, 0] * x + (matrix[axis, 1] * y - matrix[axis, 2]) for axis in range(3))
        t = stage.parts[k].primitive.hit(origins[k], direction)
        window = depth[top:bottom, left:right]
        closer = t < window
        window[closer] = t[closer]
        index[top:bottom, left:right][closer] = k
    instance = np.concatenate([stage.instances, [0]]).astype(np.uint8)[index]
    return Visible(depth, index, instance)


def _room_occlusion(points: Points, normals: Points, corner: RoomCorners) -> Scalars:
    """Darkness in the room's corners: along the back wall, above and below the counter, under the wall cupboards."""
    y, z = points[:, 1], points[:, 2]
    facing_wall = np.abs(normals[:, 1])
    level = np.abs(normals[:, 2])
    light = 1.0 - 0.42 * np.exp(-np.abs(corner.wall - y) / 0.07) * (1.0 - facing_wall)
    above = z - corner.counter
    light *= 1.0 - 0.38 * np.exp(-np.abs(above) / 0.06) * (above > -0.002) * (1.0 - level)
    light *= 1.0 - 0.55 * np.exp(np.minimum(above + 0.03, 0.0) / 0.10) * (above < -0.03) * (1.0 - level)
    under = (z < corner.cupboard) & (y > corner.cupboard_front)
    light *= 1.0 - 0.35 * np.exp(-np.abs(corner.cupboard - z) / 0.12) * under
    light *= 1.0 - 0.5 * np.exp(-np.abs(z) / 0.10) * (1.0 - level)
    return light


@dataclass(frozen=True)
class RoomCorners:
    """Where the room's surfaces meet (metres)."""

    wall: float
    counter: float
    cupboard: float
    cupboard_front: float


def _shadows(points: Points, body: ndarray, stage: PlacedBodies, lamp: Vector) -> Scalars:
    """Share of the direct light that soft shadows under bodies leave at points that look up, (n,)."""
    light = np.ones(len(points), dtype=np.float32)
    for k, caster in enumerate(stage.bodies):
        if caster.shadow <= 0.0:
            continue
        low, high = caster.bounds
        centre = caster.rotation @ ((low + high) / 2) + caster.position
        axes = caster.rotation * ((high - low) / 2)
        base = centre[2] - np.abs(axes[2]).sum()
        gap = np.maximum(base - points[:, 2], 0.0)
        away = (centre[:2] - lamp[:2]) / max(lamp[2] - centre[2], 0.5)
        reach = np.abs(axes[:2]).sum(1).max() * 1.6 + 0.12
        near = (
            (np.abs(points[:, 0] - centre[0]) < reach)
            & (np.abs(points[:, 1] - centre[1]) < reach)
            & (points[:, 2] < base + 0.02)
            & (gap < 0.45)
            & (body != k)
        )
        chosen = np.flatnonzero(near)
        if not len(chosen):
            continue
        gap = gap[chosen]
        offset = points[chosen, :2] - centre[:2] - gap[:, None] * away
        spread = axes[:2] @ axes[:2].T + 0.012**2 * np.eye(2)
        soft = np.square(0.35 * gap)
        a, b, c = spread[0, 0] + soft, spread[0, 1], spread[1, 1] + soft
        x, y = offset[:, 0], offset[:, 1]
        square = (c * x * x - 2 * b * x * y + a * y * y) / (a * c - b * b)
        light[chosen] *= 1.0 - caster.shadow * np.exp(-gap / 0.22) / (1.0 + np.power(square, 1.5))
    return light


def shade(
    stage: PlacedBodies,
    camera: Camera,
    visible: Visible,
    lighting: Lighting,
    corners: RoomCorners | None = None,
    background: Vector | None = None,
) -> Linear:
    """Colour what the camera sees.

    Args:
        stage: the bodies.
        camera: the view that `visible` was cast with.
        visible: result of `cast`.
        lighting: lamps.
        corners: where to darken the room, if the stage has one.
        background: linear colour (3,) of pixels that see nothing; black if None.

    Returns:
        Linear colours (H, W, 3) float32, not clipped.
    """
    ids = visible.part.ravel()
    order = np.argsort(ids, kind="stable")
    order = order[np.searchsorted(ids[order], 0) :]
    depth = visible.depth.ravel()[order].astype(np.float32)
    slope = np.stack(
        [
            np.broadcast_to(camera.columns, visible.part.shape).ravel()[order],
            np.broadcast_to(camera.rows[:, None], visible.part.shape).ravel()[order],
            np.full(len(order), -1.0),
        ],
        axis=1,
    ).astype(np.float32)
    rays = slope @ camera.rotation.T.astype(np.float32)
    points = camera.position.astype(np.float32) + rays * depth[:, None]
    normals, albedo = np.empty_like(points), np.empty_like(points)
    gloss, emission, occlusion = (np.zeros(len(order), dtype=np.float32) for _ in range(3))
    fixed = np.zeros(len(order), dtype=bool)
    seen = ids[order]
    found, begin = np.unique(seen, return_index=True)
    for k, start, end in zip(map(int, found), begin.tolist(), [*begin[1:].tolist(), len(order)], strict=True):
        part, body = stage.parts[k], stage.bodies[int(stage.body_of[k])]
        rotation = stage.rotations[k].astype(np.float32)
        own = (points[start:end] - stage.positions[k].astype(np.float32)) @ rotation
        facing = part.primitive.normals(own).astype(np.float32)
        inward = (facing * (rays[start:end] @ rotation)).sum(1) > 0.0
        facing[inward] *= -1.0
        if part.own_texture:
            albedo[start:end] = part.texture(own, facing)
        else:
            frame = part.rotation.T.astype(np.float32)
            albedo[start:end] = part.texture(own @ frame + np.asarray(part.position, np.float32), facing @ frame)
        normals[start:end] = facing @ rotation.T
        gloss[start:end] = part.gloss
        emission[start:end] = part.emission
        occlusion[start:end] = 1.0
        if part.hollow > 0.0:
            bottom = part.primitive.bounds[0, 2]
            height = np.clip((own[:, 2] - bottom) / part.hollow, 0.0, 1.0)
            radial = (facing[:, :2] * own[:, :2]).sum(1)
            inside = (radial < -EPSILON) | ((facing[:, 2] > 0.7) & (height < 0.3))
            occlusion[start:end] = np.where(inside, 0.45 + 0.5 * height, 1.0)
        fixed[start:end] = body.fixed
    if corners is not None:
        room = np.flatnonzero(fixed)
        occlusion[room] *= _room_occlusion(points[room], normals[room], corners)
    lamp = np.asarray(lighting.lamp_position, dtype=np.float32)
    to_lamp = lamp - points
    to_lamp /= np.linalg.norm(to_lamp, axis=1, keepdims=True)
    direct = np.clip((normals * to_lamp).sum(1), 0.0, 1.0)
    side = np.asarray(lighting.window_direction, dtype=np.float32)
    daylight = np.clip(0.3 + 0.7 * (normals @ (side / np.linalg.norm(side))), 0.0, 1.0)
    upward = np.flatnonzero(normals[:, 2] > 0.5)
    shadow = np.ones(len(order), dtype=np.float32)
    shadow[upward] = _shadows(points[upward], stage.body_of[seen[upward]], stage, lamp)
    ambient = (0.68 + 0.32 * normals[:, 2]) * occlusion * (0.35 + 0.65 * shadow)
    light = (
        ambient[:, None] * np.asarray(lighting.ambient, np.float32)
        + (direct * shadow * (0.4 + 0.6 * occlusion))[:, None] * np.asarray(lighting.lamp, np.float32)
        + (daylight * (0.5 + 0.5 * shadow) * occlusion)[:, None] * np.asarray(lighting.window, np.float32)
    )
    half = to_lamp - rays / np.linalg.norm(rays, axis=1, keepdims=True)
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    shine = gloss * np.power(np.clip((normals * half).sum(1), 0.0, 1.0), 36) * shadow
    colour = albedo * light * 1.25 + shine[:, None] * np.asarray(lighting.lamp, np.float32)
    colour += (albedo - colour) * emission[:, None]
    out = np.zeros((len(ids), 3), dtype=np.float32)
    if background is not None:
        out[:] = background
    out[order] = colour * np.float32(lighting.exposure)
    return out.reshape(*visible.part.shape, 3)


def box_average(picture: Linear, factor: int) -> Linear:
    """Mean over `factor` x `factor` pixels of a picture (H, W, C)."""
    height, width, channels = picture.shape
    return picture.reshape(height // factor, factor, width // factor, factor, channels).mean(axis=(1, 3))


def to_srgb(picture: Linear) -> Picture:
    """Linear light (..., 3) to 8-bit sRGB."""
    return (np.power(np.clip(picture, 0.0, 1.0), 1.0 / 2.2) * 255.0 + 0.5).astype(np.uint8)
