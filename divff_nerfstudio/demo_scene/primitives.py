"""Analytic ray intersections of a few solids, each in its own canonical frame.

Every primitive answers three questions: where does a ray first meet it, what is its outward normal there, and which
box holds it. Rays have one common origin (a camera), so the origin is three numbers and only directions are arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy import ndarray

from divff_nerfstudio.demo_scene.arrays import Bounds, Directions, Distances, Points, Vector

EPSILON = 1e-6
"""Hits closer than this (in units of the direction) are ignored."""
SLACK = 6e-5
"""By how much (metres) the segments of a lathe reach over their ends: single precision leaves no gaps then."""


class Primitive(Protocol):
    """A surface in its own frame; lengths in metres."""

    @property
    def bounds(self) -> Bounds:
        """Corners of the axis-aligned box around it, (2, 3)."""
        ...

    def hit(self, origin: Vector, direction: Directions) -> Distances:
        """First intersections.

        Args:
            origin: where all rays start, (3,).
            direction: x, y and z of the directions, not necessarily of unit length, each of any one shape S.

        Returns:
            Ray parameters t > 0 of the first hits (point = origin + t * direction), of shape S; infinite on a miss.
        """
        ...

    def normals(self, points: Points) -> Points:
        """Outward unit normals (n, 3) at points (n, 3) of the surface."""
        ...


def _nearest(best: Distances, t: Distances, valid: ndarray) -> Distances:
    return np.where(valid & (t > EPSILON) & (t < best), t, best)


def _sphere_hit(origin: Vector, direction: Directions, centre_z: float, radius: float, square: Distances) -> Distances:
    """First entry into a sphere on the z axis; `square` is the squared length of the directions."""
    ox, oy, oz = origin[0], origin[1], origin[2] - centre_z
    dx, dy, dz = direction
    half_b = ox * dx + oy * dy + oz * dz
    discriminant = half_b * half_b - square * (ox * ox + oy * oy + oz * oz - radius * radius)
    t = (-half_b - np.sqrt(np.maximum(discriminant, 0.0))) / square
    return np.where((discriminant > 0.0) & (t > EPSILON), t, np.inf)


@dataclass(frozen=True)
class Rectangle:
    """A rectangle in the plane z = 0, seen from both sides."""

    half_x: float
    half_y: float

    @property
    def bounds(self) -> Bounds:
        return np.array([[-self.half_x, -self.half_y, 0.0], [self.half_x, self.half_y, 0.0]])

    def hit(self, origin: Vector, direction: Directions) -> Distances:
        dx, dy, dz = direction
        with np.errstate(divide="ignore", invalid="ignore"):
            t = -origin[2] / dz
            inside = (np.abs(origin[0] + t * dx) <= self.half_x) & (np.abs(origin[1] + t * dy) <= self.half_y)
        return np.where(inside & (t > EPSILON), t, np.inf)

    def normals(self, points: Points) -> Points:
        normals = np.zeros_like(points)
        normals[:, 2] = 1.0
        return normals


@dataclass(frozen=True)
class Box:
    """A box around the origin."""

    half: tuple[float, float, float]

    @property
    def bounds(self) -> Bounds:
        half = np.asarray(self.half)
        return np.stack([-half, half])

    def hit(self, origin: Vector, direction: Directions) -> Distances:
        entry: ndarray | None = None
        leave: ndarray | None = None
        with np.errstate(divide="ignore", invalid="ignore"):
            for position, step, half in zip(origin, direction, self.half, strict=True):
                inverse = 1.0 / step
                middle, reach = -position * inverse, half * np.abs(inverse)
                near, far = middle - reach, middle + reach
                entry = near if entry is None else np.maximum(entry, near)
                leave = far if leave is None else np.minimum(leave, far)
        assert entry is not None and leave is not None
        t = np.where(entry > EPSILON, entry, leave)
        return np.where((leave >= entry) & (t > EPSILON), t, np.inf)

    def normals(self, points: Points) -> Points:
        axis = np.argmin(np.asarray(self.half, dtype=points.dtype) - np.abs(points), axis=1)
        rows = np.arange(len(points))
        normals = np.zeros_like(points)
        normals[rows, axis] = np.sign(points[rows, axis])
        return normals


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid around the origin."""

    radii: tuple[float, float, float]

    @property
    def bounds(self) -> Bounds:
        radii = np.asarray(self.radii)
        return np.stack([-radii, radii])

    def hit(self, origin: Vector, direction: Directions) -> Distances:
        rx, ry, rz = self.radii
        dx, dy, dz = direction[0] / rx, direction[1] / ry, direction[2] / rz
        scaled = origin / np.asarray(self.radii, dtype=origin.dtype)
        return _sphere_hit(scaled, (dx, dy, dz), 0.0, 1.0, dx * dx + dy * dy + dz * dz)

    def normals(self, points: Points) -> Points:
        normals = points / np.square(np.asarray(self.radii, dtype=points.dtype))
        return normals / np.linalg.norm(normals, axis=1, keepdims=True)


@dataclass(frozen=True)
class RoundCone:
    """The hull of two spheres on the z axis, at 0 and at `length`: a capsule if their radii are equal."""

    length: float
    radius_start: float
    radius_end: float

    @property
    def bounds(self) -> Bounds:
        widest = max(self.radius_start, self.radius_end)
        low = min(-self.radius_start, self.length - self.radius_end)
        high = max(self.radius_start, self.length + self.radius_end)
        return np.array([[-widest, -widest, low], [widest, widest, high]])

    @property
    def _sine(self) -> float:
        """Sine of the angle between the flank and the axis; at least 1: one sphere swallows the other."""
        return (self.radius_start - self.radius_end) / max(self.length, EPSILON)

    def hit(self, origin: Vector, direction: Directions) -> Distances:
        dx, dy, dz = direction
        flat = dx * dx + dy * dy
        square = flat + dz * dz
        sine = self._sine
        if abs(sine) >= 1.0:
            start = self.radius_start >= self.radius_end
            return _sphere_hit(
                origin,
                direction,
                0.0 if start else self.length,
                self.radius_start if start else self.radius_end,
                square,
            )
        best = np.minimum(
            _sphere_hit(origin, direction, 0.0, self.radius_start, square),
            _sphere_hit(origin, direction, self.length, self.radius_end, square),
        )
        cosine = np.sqrt(1.0 - sine * sine)
        return _flank_hit(
            best,
            origin,
            direction,
            flat,
            (self.radius_start * cosine, self.radius_start * sine),
            (self.radius_end * cosine, self.length + self.radius_end * sine),
        )

    def normals(self, points: Points) -> Points:
        sine = self._sine
        if abs(sine) >= 1.0:
            centre = np.full(len(points), 0.0 if self.radius_start >= self.radius_end else self.length)
        else:
            radial = np.hypot(points[:, 0], points[:, 1])
            centre = np.clip(points[:, 2] - radial * sine / np.sqrt(1.0 - sine * sine), 0.0, self.length)
        normals = points.copy()
        normals[:, 2] -= centre
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), EPSILON)


def _flank_hit(
    best: Distances,
    origin: Vector,
    direction: Directions,
    flat: Distances,
    start: tuple[float, float],
    end: tuple[float, float],
) -> Distances:
    """The nearer of `best` and the first hit of the cone around z from (radius, z) `start` to `end`."""
    (r0, z0), (r1, z1) = start, end
    dx, dy, dz = direction
    slope = (r1 - r0) / (z1 - z0)
    radius = r0 + slope * (origin[2] - z0)
    a = flat - (slope * slope) * (dz * dz)
    half_b = origin[0] * dx + origin[1] * dy - (slope * radius) * dz
    discriminant = half_b * half_b - a * (origin[0] ** 2 + origin[1] ** 2 - radius * radius)
    crossed = discriminant >= 0.0
    if not crossed.any():
        return best
    root = np.sqrt(np.maximum(discriminant, 0.0))
    low, high = min(z0, z1) - SLACK, max(z0, z1) + SLACK
    with np.errstate(divide="ignore", invalid="ignore"):
        for t in ((-half_b - root) / a, (-half_b + root) / a):
            z = origin[2] + t * dz
            best = _nearest(best, t, crossed & (z >= low) & (z <= high))
    return best


@dataclass(frozen=True)
class Lathe:
    """A surface of revolution around z: straight segments between (radius, z) points, open where its profile is.

    Mugs, bowls, bottles, plates and pans are lathes. Corners of less than `smooth` degrees are shaded round.
    """

    profile: tuple[tuple[float, float], ...]
    smooth: float = 50.0

    @property
    def bounds(self) -> Bounds:
        radius = max(r for r, _ in self.profile)
        heights = [z for _, z in self.profile]
        return np.array([[-radius, -radius, min(heights)], [radius, radius, max(heights)]])

    def hit(self, origin: Vector, direction: Directions) -> Distances:
        dx, dy, dz = direction
        flat = dx * dx + dy * dy
        best = np.full(np.shape(flat), np.inf, dtype=flat.dtype)
        for (r0, z0), (r1, z1) in zip(self.profile[:-1], self.profile[1:], strict=True):
            if abs(z1 - z0) > EPSILON:
                best = _flank_hit(best, origin, direction, flat, (r0, z0), (r1, z1))
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                t = (z0 - origin[2]) / dz
                square = np.square(origin[0] + t * dx) + np.square(origin[1] + t * dy)
                ring = (square >= max(min(r0, r1) - SLACK, 0.0) ** 2) & (square <= (max(r0, r1) + SLACK) ** 2)
            best = _nearest(best, t, ring)
        return best

    @cached_property
    def _corner_normals(self) -> tuple[ndarray, ndarray, ndarray, ndarray]:
        """Per segment: its start, its step, and the (radial, z) normals at its two ends."""
        corners = np.asarray(self.profile, dtype=np.float64)
        step = np.diff(corners, axis=0)
        face = np.stack([step[:, 1], -step[:, 0]], axis=1)
        face /= np.linalg.norm(face, axis=1, keepdims=True)
        begin, end = face.copy(), face.copy()
        for i in range(len(face) - 1):
            if np.degrees(np.arccos(np.clip(face[i] @ face[i + 1], -1.0, 1.0))) < self.smooth:
                mean = face[i] + face[i + 1]
                end[i] = begin[i + 1] = mean / np.linalg.norm(mean)
        return corners[:-1], step, begin, end

    def normals(self, points: Points) -> Points:
        start, step, begin, end = self._corner_normals
        radial = np.hypot(points[:, 0], points[:, 1])
        flat = np.stack([radial, points[:, 2]], axis=1)[:, None, :]
        along = np.clip(((flat - start) * step).sum(-1) / (step * step).sum(-1), 0.0, 1.0)
        distance = np.square(flat - start - along[..., None] * step).sum(-1)
        nearest = distance.argmin(axis=1)
        share = np.take_along_axis(along, nearest[:, None], axis=1)
        normal = begin[nearest] * (1.0 - share) + end[nearest] * share
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), EPSILON)
        outward = points[:, :2] / np.maximum(radial, EPSILON)[:, None]
        return np.concatenate([outward * normal[:, :1], normal[:, 1:]], axis=1).astype(points.dtype)


@dataclass(frozen=True)
class Prism:
    """A convex polygon in the xy plane (corners counter-clockwise), `half_thickness` to either side along z."""

    polygon: tuple[tuple[float, float], ...]
    half_thickness: float

    @property
    def bounds(self) -> Bounds:
        corners = np.asarray(self.polygon)
        return np.concatenate(
            [
                np.stack([corners.min(0), corners.max(0)]),
                [[-self.half_thickness], [self.half_thickness]],
            ],
            axis=1,
        )

    @cached_property
    def _planes(self) -> tuple[ndarray, ndarray]:
        """Outward normals (m, 3) and offsets (m,) of the faces."""
        corners = np.asarray(self.polygon)
        step = np.roll(corners, -1, axis=0) - corners
        sides = np.stack([step[:, 1], -step[:, 0], np.zeros(len(step))], axis=1)
        sides /= np.linalg.norm(sides, axis=1, keepdims=True)
        offsets = (sides[:, :2] * corners).sum(1)
        caps = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
        return np.concatenate([sides, caps]), np.concatenate([offsets, np.full(2, self.half_thickness)])

    def hit(self, origin: Vector, direction: Directions) -> Distances:
        dx, dy, dz = direction
        entry = np.full(np.shape(dx), -np.inf, dtype=dx.dtype)
        leave = np.full(np.shape(dx), np.inf, dtype=dx.dtype)
        with np.errstate(divide="ignore", invalid="ignore"):
            for normal, offset in zip(*self._planes, strict=True):
                closing = float(normal[0]) * dx + float(normal[1]) * dy + float(normal[2]) * dz
                t = float(offset - normal @ origin) / closing
                entry = np.where(closing < 0.0, np.maximum(entry, t), entry)
                leave = np.where(closing > 0.0, np.minimum(leave, t), leave)
        t = np.where(entry > EPSILON, entry, leave)
        return np.where((leave >= entry) & (t > EPSILON), t, np.inf)

    def normals(self, points: Points) -> Points:
        faces, offsets = self._planes
        face = np.abs(points.astype(np.float64) @ faces.T - offsets).argmin(axis=1)
        return faces[face].astype(points.dtype)


def smooth_profile(points: Sequence[tuple[float, float]], steps: int = 3) -> tuple[tuple[float, float], ...]:
    """A rounded profile: a Catmull-Rom curve through (radius, z) points with `steps` segments between two."""
    corners = np.asarray([points[0], *points, points[-1]], dtype=np.float64)
    share = np.arange(steps)[:, None] / steps
    curve = []
    for p0, p1, p2, p3 in zip(corners[:-3], corners[1:-2], corners[2:-1], corners[3:], strict=True):
        bend = 2 * p0 - 5 * p1 + 4 * p2 - p3
        curve.append(0.5 * (2 * p1 + share * (p2 - p0) + share**2 * bend + share**3 * (3 * (p1 - p2) + p3 - p0)))
    curve = np.concatenate([*curve, corners[-1:]])
    curve[:, 0] = np.maximum(curve[:, 0], 0.0)
    return tuple((float(r), float(z)) for r, z in curve)
