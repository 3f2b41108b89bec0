"""Procedural surfaces: colour as a function of the place on a body.

A texture is a small frozen dataclass that is called with points and normals in its body's frame (metres) and gives
linear albedo. Noise comes from one fixed table, so a texture looks the same in every process and on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy import ndarray

from divff_nerfstudio.demo_scene.arrays import Points, Scalars

Colour = tuple[float, float, float]
"""sRGB, 0..1."""

TABLE = 256


class Texture(Protocol):
    """Something that colours points of a surface."""

    def __call__(self, points: Points, normals: Points) -> Points:
        """Linear albedo (n, 3) at points (n, 3) with unit normals (n, 3), both in the body's frame."""
        ...


def linear(colour: Colour | ndarray) -> ndarray:
    """sRGB to linear light (the 2.2 power law is close enough for painting)."""
    return np.power(np.asarray(colour, dtype=np.float32), 2.2)


@lru_cache(maxsize=1)
def _noise_table() -> ndarray:
    """Tileable fractal noise in 0..1, (TABLE, TABLE) float32."""
    rng = np.random.default_rng(20240229)
    total = np.zeros((TABLE, TABLE))
    for octave in range(2, 8):
        cells = 2**octave
        coarse = rng.random((cells, cells))
        position = np.arange(TABLE) * cells / TABLE
        low = position.astype(int)
        share = position - low
        share = share * share * (3 - 2 * share)
        high = (low + 1) % cells
        rows = coarse[low] * (1 - share)[:, None] + coarse[high] * share[:, None]
        total += (rows[:, low] * (1 - share) + rows[:, high] * share) / 2 ** (octave * 0.8)
    low, high = np.quantile(total, [0.005, 0.995])
    return np.clip((total - low) / (high - low), 0.0, 1.0).astype(np.float32)


def noise(u: Scalars, v: Scalars) -> Scalars:
    """Fractal noise in 0..1, period 1 in u and v, bilinear."""
    table = _noise_table()
    x, y = u * TABLE, v * TABLE
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = (x - x0).astype(np.float32), (y - y0).astype(np.float32)
    i, j = x0.astype(np.int64) % TABLE, y0.astype(np.int64) % TABLE
    i1, j1 = (i + 1) % TABLE, (j + 1) % TABLE
    top = table[j, i] * (1 - fx) + table[j, i1] * fx
    bottom = table[j1, i] * (1 - fx) + table[j1, i1] * fx
    return top * (1 - fy) + bottom * fy


def hashed(*cells: ndarray) -> Scalars:
    """A random number in 0..1 per integer cell."""
    state = np.full(np.shape(cells[0]), 2166136261, dtype=np.uint32)
    for cell in cells:
        state = (state ^ cell.astype(np.int64).astype(np.uint32)) * np.uint32(16777619)
        state ^= state >> np.uint32(13)
    state *= np.uint32(1274126177)
    return ((state >> np.uint32(8)) & np.uint32(0xFFFF)).astype(np.float32) / 65535.0


def planar(points: Points, normals: Points) -> tuple[ndarray, ndarray]:
    """Two coordinates on the face that the normal looks out of: (y, z), (x, z) or (x, y)."""
    axis = np.abs(normals).argmax(axis=1)
    u = np.where(axis == 0, points[:, 1], points[:, 0])
    v = np.where(axis == 2, points[:, 1], points[:, 2])
    return u, v


def _mix(first: ndarray, second: ndarray, share: ndarray) -> Points:
    return first + (second - first) * share[..., None]


def _striped(colour: Colour, along: Scalars, stripes: tuple[tuple[float, float, Colour], ...]) -> Points:
    """A colour with stripes over it, each from, to and its colour."""
    found = np.broadcast_to(linear(colour), (len(along), 3))
    for low, high, stripe in stripes:
        found = np.where(((along >= low) & (along < high))[:, None], linear(stripe), found)
    return found


@dataclass(frozen=True)
class Plain:
    """One colour with faint mottling."""

    colour: Colour
    mottle: float = 0.12
    scale: float = 0.7

    def __call__(self, points: Points, normals: Points) -> Points:
        shade = noise(points[:, 0] / self.scale + 0.37 * points[:, 2], (points[:, 1] + 0.7 * points[:, 2]) / self.scale)
        return linear(self.colour) * (1.0 + self.mottle * (shade - 0.5))[:, None]


@dataclass(frozen=True)
class Wood:
    """Planks with grain along one axis."""

    colour: Colour
    grain: Colour
    axis: int = 0
    plank: float = 0.09
    length: float = 0.8

    def __call__(self, points: Points, normals: Points) -> Points:
        across = points[:, (self.axis + 1) % 3] + (points[:, (self.axis + 2) % 3] if self.axis != 2 else 0.0)
        along = points[:, self.axis]
        row = np.floor(across / self.plank)
        along = along + self.length * hashed(row)
        column = np.floor(along / self.length)
        tone = hashed(row, column)
        wave = noise(along * 0.35 + tone * 3.1, across * 3.0 + tone)
        rings = 0.5 + 0.5 * np.sin(34.0 * wave + 60.0 * across)
        fibre = noise(along * 0.8, across * 11.0)
        colour = _mix(linear(self.colour), linear(self.grain), np.clip(0.55 * rings * wave + 0.45 * fibre, 0.0, 1.0))
        seam = np.minimum(across / self.plank - row, 1.0 - (across / self.plank - row)) * self.plank
        shade = (0.8 + 0.4 * tone) * np.where(seam < 0.0012, 0.62, 1.0)
        return colour * shade[:, None]


@dataclass(frozen=True)
class TileTexture:
    """Square or oblong tiles with grout, tones that differ a little, and now and then one in an accent colour."""

    colour: Colour
    grout: Colour
    width: float = 0.15
    height: float = 0.15
    joint: float = 0.006
    accent: Colour | None = None
    accent_share: float = 0.12
    chequer: Colour | None = None

    def __call__(self, points: Points, normals: Points) -> Points:
        u, v = planar(points, normals)
        u, v = u / self.width, v / self.height
        i, j = np.floor(u), np.floor(v)
        tone = hashed(i, j)
        colour = np.broadcast_to(linear(self.colour), (len(u), 3))
        if self.chequer is not None:
            colour = np.where(((i + j) % 2 > 0.5)[:, None], linear(self.chequer), colour)
        if self.accent is not None:
            colour = np.where((tone < self.accent_share)[:, None], linear(self.accent), colour)
        colour = colour * (0.86 + 0.2 * hashed(j, i) + 0.12 * (noise(u * 0.21, v * 0.21) - 0.5))[:, None]
        edge = np.minimum(np.minimum(u - i, i + 1 - u) * self.width, np.minimum(v - j, j + 1 - v) * self.height)
        return np.where((edge < self.joint / 2)[:, None], linear(self.grout), colour)


@dataclass(frozen=True)
class Stone:
    """Speckled stone."""

    colour: Colour
    speck: Colour

    def __call__(self, points: Points, normals: Points) -> Points:
        u, v = planar(points, normals)
        grain = noise(29.3 * u + 17.9 * v, 29.3 * v - 17.9 * u) + noise(16.1 * u - 25.7 * v, 16.1 * v + 25.7 * u)
        speck = np.clip(3.0 * grain - 3.2, 0.0, 1.0)
        return _mix(linear(self.colour), linear(self.speck), speck) * (0.85 + 0.3 * noise(u * 0.9, v * 0.9))[:, None]


@dataclass(frozen=True)
class Metal:
    """Brushed metal; the brushing runs along x."""

    colour: Colour = (0.72, 0.73, 0.75)

    def __call__(self, points: Points, normals: Points) -> Points:
        streak = noise(points[:, 0] * 0.5, (points[:, 1] + points[:, 2]) * 6.0)
        sheen = 0.72 + 0.5 * np.square(np.clip(normals[:, 2] * 0.6 + normals[:, 1] * -0.5 + 0.4, 0.0, 1.0))
        return linear(self.colour) * (sheen * (0.85 + 0.3 * streak))[:, None]


@dataclass(frozen=True)
class Bands:
    """Horizontal bands: (from height, to height, colour) over a base colour."""

    colour: Colour
    bands: tuple[tuple[float, float, Colour], ...]

    def __call__(self, points: Points, normals: Points) -> Points:
        colour = _striped(self.colour, points[:, 2], self.bands)
        return colour * (0.95 + 0.1 * noise(points[:, 0] * 2.0, points[:, 2] * 2.0))[:, None]


@dataclass(frozen=True)
class Rings:
    """Concentric rings around z: (from radius, to radius, colour) over a base colour."""

    colour: Colour
    rings: tuple[tuple[float, float, Colour], ...]

    def __call__(self, points: Points, normals: Points) -> Points:
        return _striped(self.colour, np.hypot(points[:, 0], points[:, 1]), self.rings)


@dataclass(frozen=True)
class Holes:
    """A colander's skin: rows of dark holes between two heights."""

    colour: Colour
    hole: Colour
    low: float
    high: float
    rows: int = 5
    around: int = 22
    size: float = 0.3

    def __call__(self, points: Points, normals: Points) -> Points:
        v = (points[:, 2] - self.low) / (self.high - self.low) * self.rows
        row = np.floor(v)
        u = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) * self.around + 0.5 * row
        distance = np.hypot(u - np.floor(u) - 0.5, v - row - 0.5)
        inside = (distance < self.size) & (v > 0.0) & (v < self.rows)
        return np.where(inside[:, None], linear(self.hole), linear(self.colour))


@dataclass(frozen=True)
class Carton:
    """A printed box: coloured faces, a light band, a round badge on front and back, a bar of 'text'."""

    colour: Colour
    band: Colour
    badge: Colour
    height: float
    width: float

    def __call__(self, points: Points, normals: Points) -> Points:
        u, v = planar(points, normals)
        v = points[:, 2] / self.height
        front = np.abs(normals[:, 1]) > 0.7
        colour = np.broadcast_to(linear(self.colour), points.shape)
        band = (v > 0.68) & (v < 0.86) & (np.abs(normals[:, 2]) < 0.7)
        colour = np.where(band[:, None], linear(self.band), colour)
        text = band & (np.abs(v - 0.77) < 0.035) & (np.sin(u * 260.0) > -0.2) & front
        colour = np.where(text[:, None], linear(self.colour) * 0.5, colour)
        round_badge = front & (np.hypot(u / self.width, (v - 0.36) * self.height / self.width) < 0.3)
        colour = np.where(round_badge[:, None], linear(self.badge), colour)
        core = front & (np.hypot(u / self.width - 0.08, (v - 0.38) * self.height / self.width) < 0.13)
        return np.where(core[:, None], linear(self.band), colour)


@dataclass(frozen=True)
class Panel:
    """A cupboard door: a frame around a sunk field, in the plane x-z, centred at `centre`."""

    colour: Colour
    centre: tuple[float, float]
    half: tuple[float, float]
    frame: float = 0.055

    def __call__(self, points: Points, normals: Points) -> Points:
        dx = self.half[0] - np.abs(points[:, 0] - self.centre[0])
        dz = self.half[1] - np.abs(points[:, 2] - self.centre[1])
        edge = np.minimum(dx, dz)
        shade = np.where(np.abs(edge - self.frame) < 0.006, 0.62, np.where(edge > self.frame, 0.9, 1.0))
        shade = np.where(edge < 0.003, 0.75, shade)
        grain = noise(points[:, 0] * 2.2, points[:, 2] * 0.3)
        return linear(self.colour) * (shade * (0.92 + 0.16 * grain))[:, None]


@dataclass(frozen=True)
class Outdoors:
    """The view through a window: sky, clouds, hedge, tree and lawn; in the plane x-z, `centre`, `half` size."""

    centre: tuple[float, float]
    half: tuple[float, float]

    def __call__(self, points: Points, normals: Points) -> Points:
        u = (points[:, 0] - self.centre[0]) / self.half[0]
        v = (points[:, 2] - self.centre[1]) / self.half[1]
        sky = _mix(linear((0.86, 0.92, 0.97)), linear((0.48, 0.70, 0.93)), np.clip(0.5 * v + 0.3, 0.0, 1.0))
        cloud = np.clip(3.0 * noise(u * 0.21 + 0.1, v * 0.34) - 1.5, 0.0, 1.0)
        colour = _mix(sky, linear((0.98, 0.98, 0.98)), cloud)
        hedge = v < -0.62 + 0.16 * noise(u * 0.6, u * 0.13)
        green = _mix(linear((0.18, 0.34, 0.14)), linear((0.42, 0.58, 0.24)), noise(u * 1.7, v * 1.7))
        tree = np.hypot((u - 0.42) * 1.1, v - 0.05) < 0.42 + 0.2 * noise(u * 0.9, v * 0.9)
        trunk = (np.abs(u - 0.42) < 0.06) & (v < 0.0)
        colour = np.where(trunk[:, None], linear((0.36, 0.26, 0.18)), colour)
        colour = np.where((tree | hedge)[:, None], green, colour)
        i, j = np.floor(u * 26.0), np.floor(v * 24.0)
        middle = np.hypot(u * 26.0 - i - 0.5, v * 24.0 - j - 0.5)
        bloom = hedge & (hashed(i, j) > 0.86) & (middle < 0.25 + 0.3 * hashed(j, i))
        colour = np.where(bloom[:, None], linear((0.92, 0.48, 0.56)), colour)
        lawn = _mix(linear((0.42, 0.60, 0.26)), linear((0.62, 0.76, 0.38)), noise(u * 2.3, v * 9.0))
        return np.where((v < -0.86)[:, None], lawn, colour)


@dataclass(frozen=True)
class Painting:
    """A framed picture of hills and a sun; in the plane x-z."""

    centre: tuple[float, float]
    half: tuple[float, float]

    def __call__(self, points: Points, normals: Points) -> Points:
        u = (points[:, 0] - self.centre[0]) / self.half[0]
        v = (points[:, 2] - self.centre[1]) / self.half[1]
        colour = _mix(linear((0.98, 0.78, 0.42)), linear((0.86, 0.40, 0.36)), np.clip(0.5 + 0.6 * v, 0.0, 1.0))
        colour = np.where((np.hypot(u + 0.3, v - 0.25) < 0.22)[:, None], linear((1.0, 0.95, 0.7)), colour)
        colour = np.where((v < -0.1 + 0.2 * np.sin(3.0 * u + 1.0))[:, None], linear((0.30, 0.36, 0.56)), colour)
        colour = np.where((v < -0.4 + 0.15 * np.sin(4.0 * u - 0.5))[:, None], linear((0.16, 0.24, 0.34)), colour)
        rim = np.maximum(np.abs(u), np.abs(v))
        return np.where((rim > 0.86)[:, None], linear((0.30, 0.20, 0.12)), colour)


@dataclass(frozen=True)
class Knit:
    """A sleeve's cloth: stripes along the local z axis and a fine weave."""

    colour: Colour
    stripe: Colour
    period: float = 0.05

    def __call__(self, points: Points, normals: Points) -> Points:
        phase = points[:, 2] / self.period
        striped = (phase - np.floor(phase)) < 0.35
        weave = 0.9 + 0.2 * noise(points[:, 0] * 9.0 + points[:, 1] * 7.0, points[:, 2] * 9.0)
        return np.where(striped[:, None], linear(self.stripe), linear(self.colour)) * weave[:, None]
