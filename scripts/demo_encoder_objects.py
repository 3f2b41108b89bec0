"""Pictures of single things from the demo's world, for training and testing small encoders.

Everything is drawn by the renderer, with the textures, hands and light of the demo scene, but with more kinds,
colours, kitchens, people and views than any one scene has.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from divff_nerfstudio.demo_scene.arrays import Mask, Picture, Vector
from divff_nerfstudio.demo_scene.grasps import grasp_of
from divff_nerfstudio.demo_scene.hands import ActorStyle, HandPose, arm_bodies
from divff_nerfstudio.demo_scene.motions import rotation_about
from divff_nerfstudio.demo_scene.objects import BUILDERS, COLOURS
from divff_nerfstudio.demo_scene.plan import (
    BOARD_TOP,
    CORNERS,
    COUNTER_Z,
    RoomStyle,
)
from divff_nerfstudio.demo_scene.primitives import Rectangle
from divff_nerfstudio.demo_scene.renderer import (
    Body,
    Camera,
    Lighting,
    Part,
    PlacedBodies,
    box_average,
    cast,
    shade,
    to_srgb,
)
from divff_nerfstudio.demo_scene.room import build_room
from divff_nerfstudio.demo_scene.shapes import turn_x, turn_z, vector
from divff_nerfstudio.demo_scene.textures import Colour, Plain, Stone, Texture, TileTexture, Wood

KINDS: tuple[str, ...] = tuple(BUILDERS)
"""Kinds of objects."""

COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)

OBJECT, OTHER, HAND, ARM = 101, 102, 111, 112
STYLES = 12
"""Number of different kitchens behind crops."""

SKINS: tuple[Colour, ...] = (
    (0.86, 0.64, 0.52),
    (0.93, 0.76, 0.66),
    (0.62, 0.42, 0.30),
    (0.42, 0.27, 0.19),
    (0.74, 0.54, 0.40),
)


@lru_cache(maxsize=STYLES)
def kitchen_of(number: int) -> tuple[RoomStyle, PlacedBodies]:
    """One of the kitchens; number 0 is the default scene's."""
    style = RoomStyle() if number == 0 else RoomStyle.sample(np.random.default_rng(7000 + number))
    return style, PlacedBodies(build_room(style))


def sample_lighting(rng: np.random.Generator) -> Lighting:
    """Light that differs a little from the scene's."""
    warm = rng.uniform(-0.04, 0.05)
    lamp = np.array([0.62 + warm, 0.58, 0.50 - warm]) * rng.uniform(0.8, 1.2)
    position = np.array([0.75, -0.15, 2.30]) + rng.uniform(-0.4, 0.4, 3)
    ambient = np.array([0.40, 0.41, 0.43]) * rng.uniform(0.85, 1.12)
    return Lighting(
        ambient=tuple(ambient), lamp_position=tuple(position), lamp=tuple(lamp), exposure=float(rng.uniform(0.85, 1.12))
    )


def sample_actor(rng: np.random.Generator) -> ActorStyle:
    """A person: skin and sleeves."""
    names = list(COLOURS)
    sleeve, stripe = (COLOURS[names[i]] for i in rng.integers(len(names), size=2))
    soft = tuple(0.25 + 0.6 * c for c in stripe)
    return ActorStyle(SKINS[rng.integers(len(SKINS))], tuple(0.8 * c + 0.08 for c in sleeve), soft)  # type: ignore[arg-type]


def make_object(kind: str, colour: str, instance: int = OBJECT) -> Body:
    """An object that stands at the origin."""
    return Body(BUILDERS[kind](COLOURS[colour]), instance=instance, shadow=0.7)


def picture_of(stage: PlacedBodies, camera: Camera, lighting: Lighting, background: Vector | None = None) -> Picture:
    """The supersampled picture, 8-bit."""
    fine = camera.scaled(2)
    linear_colours = shade(stage, fine, cast(stage, fine), lighting, CORNERS, background)
    return to_srgb(box_average(linear_colours, 2))


def _surface(rng: np.random.Generator) -> Texture:
    tone = rng.uniform(0.12, 0.92, 3) * 0.5 + rng.uniform(0.1, 0.9) * 0.5
    colour: Colour = (float(tone[0]), float(tone[1]), float(tone[2]))
    dark = tuple(0.6 * c for c in colour)
    choice = rng.integers(5)
    if choice == 0:
        return Plain(colour)
    if choice == 1:
        return Stone(colour, dark)  # type: ignore[arg-type]
    if choice == 2:
        return TileTexture(colour, dark)  # type: ignore[arg-type]
    wood: Colour = (float(rng.uniform(0.5, 0.85)), float(rng.uniform(0.36, 0.62)), float(rng.uniform(0.2, 0.4)))
    return Wood(wood, tuple(0.64 * c for c in wood), axis=int(rng.integers(2)))  # type: ignore[arg-type]


def _table(rng: np.random.Generator) -> Body:
    """A worktop and the wall behind it, at random: cheaper than a whole room."""
    wall_y, turn = rng.uniform(0.15, 0.5), rng.uniform(-0.5, 0.5)
    wall = Part(Rectangle(3.0, 2.0), _surface(rng), position=(0.0, float(wall_y), 0.0), rotation=turn_x(np.pi / 2))
    top = Part(Rectangle(3.0, 3.0), _surface(rng))
    return Body((top, wall), rotation=turn_z(float(turn)))


def _viewpoint(
    rng: np.random.Generator, target: Vector, distance: float, low: float = 18.0, high: float = 62.0
) -> Vector:
    """A place to look from, on the person's side (-y), between two elevations in degrees."""
    elevation, azimuth = np.radians(rng.uniform(low, high)), np.radians(rng.uniform(-40.0, 40.0))
    return target + distance * np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)]
    )


def arm_of(rng: np.random.Generator, side: int, pose: HandPose, eye: Vector, actor: ActorStyle) -> list[Body]:
    """An arm whose shoulder is below and beside the eye."""
    shoulder = eye + np.array([0.24 * side, 0.05, -0.34]) + rng.normal(0.0, 0.02, 3)
    return arm_bodies(side, pose, shoulder, np.array([0.6 * side, -0.2, -0.7]), actor, HAND, ARM)


def render_object_crop(
    rng: np.random.Generator,
    kind: str,
    colour: str,
    size: int = 64,
    background: str | None = None,
    hand: bool | None = None,
    fill: tuple[float, float] = (0.65, 1.25),
) -> tuple[Picture, Mask]:
    """A picture of one object.

    Args:
        rng: source of pose, light, background, distance, occlusion.
        kind: one of `KINDS`.
        colour: one of `COLOUR_NAMES`.
        size: of the square picture, pixels.
        background: "table" (a worktop and a wall), "plain" (one colour) or "room" (a whole kitchen, slower); at
            random, mostly "table", if None.
        hand: whether a hand holds it; at random, seldom, if None.
        fill: range of the object's diameter in the picture, as a share of the picture's size.

    Returns:
        The picture (size, size, 3) uint8 and the object's visible pixels (size, size) bool.
    """
    if background is None:
        background = str(rng.choice(["table", "plain", "room"], p=[0.6, 0.2, 0.2]))
    if hand is None:
        hand = bool(rng.random() < 0.22)
    obj = make_object(kind, colour)
    low, high = obj.bounds
    lifted = hand or rng.random() < 0.12
    base = np.zeros(3)
    if background == "room":
        base = np.array([rng.uniform(-0.3, 0.35), rng.uniform(0.12, 0.4), COUNTER_Z])
        if -0.2 < base[0] < 0.24 and base[1] < 0.36:
            base[2] = BOARD_TOP
    rotation = turn_z(float(rng.uniform(-np.pi, np.pi) if not hand else rng.uniform(-0.5, 0.5)))
    if lifted:
        base = base + vector(0.0, 0.0, rng.uniform(0.03, 0.2))
        axis = rng.normal(size=3)
        rotation = rotation_about(axis / np.linalg.norm(axis), float(rng.normal(0.0, 0.3))) @ rotation
    obj = obj.placed(rotation, base)
    centre = base + rotation @ ((low + high) / 2)
    radius = float(np.linalg.norm(high - low) / 2)
    target = centre + rng.normal(0.0, 0.12 * radius, 3)
    distance = float(rng.uniform(0.6, 1.1))
    eye = _viewpoint(rng, target, distance)
    focal = size * float(rng.uniform(*fill)) * distance / (2.0 * radius)
    camera = Camera.look_at(size, size, focal, eye, target, float(rng.normal(0.0, 0.06)))
    bodies = [obj]
    if background == "table":
        bodies.append(_table(rng))
    if background != "plain" and rng.random() < 0.3:
        aside = base * [1, 1, 0] + np.array([*rng.choice([-1, 1]) * rng.uniform([1.5, 0.0], [2.4, 1.0]) * radius, 0.0])
        if background == "room":
            aside[2] = COUNTER_Z
        other = make_object(str(rng.choice(KINDS)), str(rng.choice(COLOUR_NAMES)), OTHER)
        bodies.append(other.placed(turn_z(float(rng.uniform(-np.pi, np.pi))), aside))
    if hand:
        side = int(rng.choice([-1, 1]))
        pose = grasp_of(kind, obj.bounds, side).on(rotation, base)
        bodies += arm_of(rng, side, pose, eye * [1, 1, 0] + vector(0, 0, base[2] + 0.65), sample_actor(rng))
    stage = PlacedBodies(bodies)
    if background == "room":
        stage = PlacedBodies.joined(kitchen_of(int(rng.integers(STYLES)))[1], stage)
    plain = rng.uniform(0.0, 0.9, 3).astype(np.float32)
    picture = picture_of(stage, camera, sample_lighting(rng), plain if background == "plain" else None)
    return picture, cast(stage, camera).instance == OBJECT
