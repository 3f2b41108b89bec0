"""Short clips of actions from the demo's world, for training and testing small encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from divff_nerfstudio.demo_scene.arrays import Film, Scalars, Vector
from divff_nerfstudio.demo_scene.catalogue import (
    COLOUR_NAMES,
    KINDS,
    OTHER,
    PLACES,
    STYLES,
    arm_of,
    kitchen_of,
    make_object,
    picture_of,
    sample_actor,
    sample_lighting,
)
from divff_nerfstudio.demo_scene.grasps import CUT_POSITION, CUT_ROTATION, cut_grasp, grasp_of, support_of
from divff_nerfstudio.demo_scene.hands import HandPose, hand_rotation
from divff_nerfstudio.demo_scene.motions import repeated, smooth_step
from divff_nerfstudio.demo_scene.plan import (
    BOARD,
    BOARD_TOP,
    COUNTER_Z,
    HOB_TOP,
    PLATES,
    SINK,
    SINK_FLOOR,
    RoomStyle,
)
from divff_nerfstudio.demo_scene.renderer import Body, Camera, Stage
from divff_nerfstudio.demo_scene.room import DOORS, open_door
from divff_nerfstudio.demo_scene.shapes import turn_x, turn_z, vector

ACTIONS: dict[str, tuple[str, ...]] = {
    "take": KINDS,
    "put": KINDS,
    "wash": (
        "colander",
        "mug",
        "bowl",
        "plate",
        "pan",
        "pot",
        "apple",
        "carrot",
        "spoon",
        "jar",
        "glass",
        "sponge",
        "knife",
    ),
    "cut": ("carrot", "banana", "apple", "lemon"),
    "stir": ("pan", "pot", "bowl", "mug"),
    "cook": ("pan", "pot"),
    "pour": ("bottle", "milk carton", "kettle", "mug", "glass", "jar", "teapot", "can"),
    "wipe": ("sponge", "towel"),
    "open": tuple(DOORS),
    "none": ("sink", "hob", "cutting board", "counter", "cupboard", "drawer"),
}
"""Actions and what each can be done with (for "none", nobody acts, the view is of a place)."""


@dataclass(frozen=True)
class _Moment:
    """One instant of an action: what is there beside the room."""

    bodies: list[Body]
    hands: list[tuple[int, HandPose]]
    focus: Vector


def _reached(pose: HandPose, share: float, side: int) -> HandPose:
    """The hand on its way to a grasp: 0 far away and open, 1 there."""
    away = (1.0 - smooth_step(share)) * np.array([0.14 * side, -0.20, 0.12])
    return HandPose(pose.position + away, pose.rotation, 0.12 + (pose.curl - 0.12) * smooth_step(share))


def _transfer(rng: np.random.Generator, kind: str, colour: str, times: Scalars, reverse: bool) -> list[_Moment]:
    """Taking an object up (or, reversed, putting it down)."""
    start = np.array([rng.uniform(-0.3, 0.35), rng.uniform(0.14, 0.36), COUNTER_Z])
    if -0.22 < start[0] < 0.26:
        start[2] = BOARD_TOP
    lift = np.array([rng.uniform(-0.12, 0.12), rng.uniform(-0.18, 0.0), rng.uniform(0.12, 0.24)])
    rotation, side = turn_z(float(rng.uniform(-0.5, 0.5))), int(rng.choice([-1, 1]))
    obj = make_object(kind, colour)
    grasp = grasp_of(kind, obj.bounds, side)
    moments = []
    for time in 1.0 - times if reverse else times:
        position = start + lift * smooth_step((time - 0.45) / 0.55)
        pose = _reached(grasp.on(rotation, position), time / 0.40, side)
        moments.append(_Moment([obj.placed(rotation, position)], [(side, pose)], start + 0.5 * lift))
    return moments


def _at_work(rng: np.random.Generator, action: str, kind: str, colour: str, turns: Scalars) -> list[_Moment]:
    """A repeated movement at its place: washing, cutting, stirring, cooking, pouring, wiping."""
    obj = make_object(kind, colour)
    bounds = obj.bounds
    flat = turn_z(float(rng.uniform(-0.25, 0.25)))
    moments = []
    plate = PLATES[rng.integers(4)]
    spot = np.array([rng.uniform(-0.3, 0.3), rng.uniform(0.12, 0.3), COUNTER_Z])
    colour_of_tool = str(rng.choice(COLOUR_NAMES))
    vessel = make_object(str(rng.choice(["pan", "pot", "bowl", "glass"])), str(rng.choice(COLOUR_NAMES)), OTHER)
    idle_hand = rng.random() < 0.5
    for turn in turns:
        shift, tilt = repeated(action, float(turn))
        if action == "wash":
            base = np.array([SINK[0], SINK[1] + 0.02, SINK_FLOOR + 0.05])
            held = obj.placed(tilt @ flat, base + shift)
            rub, _ = repeated("stir", float(turn) * 1.3)
            other = support_of(kind, bounds, -1).on(flat, base + shift)
            moments.append(
                _Moment(
                    [held],
                    [
                        (1, grasp_of(kind, bounds, 1).on(tilt @ flat, base + shift)),
                        (-1, HandPose(other.position + 0.5 * rub, other.rotation, other.curl)),
                    ],
                    base + vector(0.0, 0.0, 0.06),
                )
            )
        elif action == "cut":
            base = np.array([*BOARD, BOARD_TOP])
            tool = make_object("knife", colour_of_tool, OTHER)
            at, upright = base + CUT_POSITION + shift, tilt @ CUT_ROTATION
            moments.append(
                _Moment(
                    [obj.placed(flat, base), tool.placed(upright, at)],
                    [(1, cut_grasp().on(upright, at)), (-1, support_of(kind, bounds, -1).on(flat, base))],
                    base + vector(0.02, 0.0, 0.04),
                )
            )
        elif action in ("stir", "cook"):
            base = np.array([*plate, HOB_TOP]) if kind in ("pan", "pot") else spot
            turned = turn_z(-0.9) @ flat if kind == "pan" else flat
            if action == "cook":
                here = base + shift
                hands = [(1, grasp_of(kind, bounds, 1).on(turned, here))]
                moments.append(_Moment([obj.placed(turned, here)], hands, base + vector(0.05, -0.05, 0.06)))
                continue
            tool = make_object("spoon", colour_of_tool, OTHER)
            upright = turn_x(-0.95)
            middle = (bounds[0] + bounds[1]) / 2 * [0 if kind in ("pan", "mug") else 1, 1, 1]
            at = (
                base
                + middle * [1, 1, 0]
                + [0.0, -0.06, 0.105 + 0.5 * bounds[1, 2]]
                + shift * (0.25 if kind == "mug" else 1)
            )
            hands = [(1, grasp_of("spoon", tool.bounds, 1).on(upright @ turn_z(0.3), at))]
            if idle_hand:
                hands.append((-1, support_of(kind, bounds, -1).on(flat, base)))
            moments.append(
                _Moment([obj.placed(turned, base), tool.placed(upright, at)], hands, base + vector(0, -0.03, 0.08))
            )
        elif action == "pour":
            into = np.array([*plate, HOB_TOP]) if vessel.bounds[1, 0] > 0.05 and idle_hand else spot
            height = vessel.bounds[1, 2]
            at = into + vector(0.10 + 0.35 * bounds[1, 2], 0.0, height + 0.10 + bounds[1, 0]) + shift
            hands = [(1, grasp_of(kind, bounds, 1).on(tilt, at))]
            moments.append(
                _Moment(
                    [obj.placed(tilt, at), vessel.placed(flat, into)], hands, into + vector(0.05, 0.0, height + 0.06)
                )
            )
        else:
            here = spot + shift
            hands = [(1, grasp_of(kind, bounds, 1).on(tilt @ flat, here))]
            moments.append(_Moment([obj.placed(tilt @ flat, here)], hands, spot + vector(0.0, 0.0, 0.03)))
    return moments


def _opening(rng: np.random.Generator, thing: str, times: Scalars, style: RoomStyle) -> list[_Moment]:
    moments = []
    for time in times:
        bodies, grip = open_door(thing, smooth_step((time - 0.3) / 0.7), style)
        frame = hand_rotation(
            np.array([-0.2, 0.85, 0.25]), np.array([-0.4, 0.6, -0.7] if thing == "drawer" else [-1.0, 0.3, 0.0])
        )
        pose = _reached(HandPose(grip + vector(0.0, -0.02, 0.0), frame, 0.62), time / 0.3, 1)
        moments.append(_Moment(bodies, [(1, pose)], grip + vector(0.05, 0.0, -0.02)))
    return moments


def render_action_clip(
    rng: np.random.Generator,
    action: str,
    thing: str,
    colour: str = "red",
    size: int = 64,
    frames: int = 4,
    extent: tuple[float, float] = (0.14, 0.30),
) -> Film:
    """A short clip of an action, seen by the person who acts.

    Args:
        rng: source of kitchen, person, view, speed and light.
        action: one of `ACTIONS`.
        thing: what it is done with, one of `ACTIONS[action]`.
        colour: of the thing, one of `COLOUR_NAMES` (of no effect on parts of the room).
        size: of the square pictures, pixels.
        frames: number of pictures.
        extent: range of half of what the picture shows, metres.

    Returns:
        (frames, size, size, 3) uint8.
    """
    number = int(rng.integers(STYLES))
    style, room = kitchen_of(number)
    if action in ("take", "put"):
        span = np.linspace(rng.uniform(0.0, 0.35), rng.uniform(0.75, 1.0), frames)
        moments = _transfer(rng, thing, colour, span, action == "put")
    elif action == "open":
        moments = _opening(rng, thing, np.linspace(rng.uniform(0.0, 0.3), rng.uniform(0.75, 1.0), frames), style)
    elif action == "none":
        spot = PLACES[thing]
        focus = np.asarray(spot.centre) + rng.uniform(-1.0, 1.0, 3) * spot.spread
        moments = [_Moment([], [], focus)] * frames
    else:
        turns = rng.uniform(0.0, 1.0) + np.arange(frames) * rng.uniform(0.22, 0.45)
        moments = _at_work(rng, action, thing, colour, turns)
    return _film(rng, moments, room, size, float(rng.uniform(*extent)))


def _film(rng: np.random.Generator, moments: Sequence[_Moment], room: Stage, size: int, extent: float) -> Film:
    """Pictures of moments by a camera that drifts a little."""
    actor, lighting = sample_actor(rng), sample_lighting(rng)
    focus = np.mean([moment.focus for moment in moments], axis=0) + rng.normal(0.0, 0.25 * extent, 3) * [1.0, 1.0, 0.4]
    eye = np.array([focus[0] * 0.85 + rng.uniform(-0.15, 0.15), rng.uniform(-0.5, -0.32), rng.uniform(1.52, 1.68)])
    drift, sway = rng.normal(0.0, 0.006, 3), rng.normal(0.0, 0.012, 3)
    roll = float(rng.normal(0.0, 0.05))
    focal = size * 0.5 * float(np.linalg.norm(focus - eye)) / extent
    pictures = []
    for k, moment in enumerate(moments):
        bodies = list(moment.bodies)
        for side, pose in moment.hands:
            bodies += arm_of(np.random.default_rng(0), side, pose, eye, actor)
        stage = Stage.joined(room, Stage(bodies)) if bodies else room
        camera = Camera.look_at(size, size, focal, eye + k * drift, focus + k * sway, roll)
        pictures.append(picture_of(stage, camera, lighting))
    return np.stack(pictures)
