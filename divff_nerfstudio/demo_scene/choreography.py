"""What happens in the demo's video: where head, objects and hands are in every frame.

The script is written in beats, 80 for the whole video, whatever its number of frames. Objects rest, are carried, are
worked with and rest again; a hand reaches for what it will hold, holds it, and returns to its place before the camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from divff_nerfstudio.demo_scene.arrays import Rotation, Vector
from divff_nerfstudio.demo_scene.grasps import (
    CUT_POSITION,
    CUT_ROTATION,
    Grasp,
    cut_grasp,
    grasp_of,
    support_of,
)
from divff_nerfstudio.demo_scene.hands import HandPose, hand_rotation
from divff_nerfstudio.demo_scene.motions import bump, repeated, slerp, smooth_step
from divff_nerfstudio.demo_scene.objects import BUILDERS, COLOURS
from divff_nerfstudio.demo_scene.plan import BOARD, BOARD_TOP, COUNTER_Z, HOB_TOP, PLATES, SINK, SINK_FLOOR
from divff_nerfstudio.demo_scene.renderer import Body, Camera
from divff_nerfstudio.demo_scene.shapes import turn_z

BEATS = 80.0
REACH = 3.2
"""Beats that a hand takes to reach for something, and to come back."""
WORK_RAMP = 1.0
"""Beats in which a repeated movement swells and dies away."""
PERIOD = 11.0
"""Frames of the video in one period of a repeated movement."""
RIGHT, LEFT = 1, -1


@dataclass(frozen=True)
class Prop:
    """A movable object."""

    name: str
    """As in the annotations; also its kind among the objects."""
    colour: str
    home: tuple[float, float, float]
    """Where it stands at first, metres."""
    yaw: float = 0.0
    """How it is turned at first, radians."""


@dataclass(frozen=True)
class Work:
    """What is done with an object between taking it up and putting it down."""

    action: str
    """One of `motions.repeated`."""
    start: float
    end: float
    place: tuple[float, float, float]
    yaw: float
    support: str | None = None
    """The object that the other hand steadies meanwhile."""


@dataclass(frozen=True)
class Carry:
    """A hand takes an object at `start` and has put it down at `end` (beats)."""

    prop: str
    side: int
    start: float
    end: float
    goal: tuple[float, float, float]
    yaw: float
    lift: float = 0.13
    work: Work | None = None


CARROT_PLACE = (BOARD[0] - 0.02, BOARD[1] + 0.02, BOARD_TOP)
CUT_PLACE = (
    CARROT_PLACE[0] + float(CUT_POSITION[0]),
    CARROT_PLACE[1] + float(CUT_POSITION[1]),
    CARROT_PLACE[2] + float(CUT_POSITION[2]),
)

PROPS: tuple[Prop, ...] = (
    Prop("mug", "red", (0.315, 0.13, COUNTER_Z), -0.5),
    Prop("colander", "blue", (-0.03, 0.445, COUNTER_Z), 0.1),
    Prop("pan", "black", (*PLATES[2], HOB_TOP), -0.95),
    Prop("carrot", "orange", (0.24, 0.40, COUNTER_Z), 0.35),
    Prop("knife", "turquoise", (0.175, 0.185, BOARD_TOP), -0.1),
    Prop("bottle", "green", (0.36, 0.545, COUNTER_Z)),
    Prop("cereal box", "purple", (-0.255, 0.555, COUNTER_Z), 0.12),
    Prop("banana", "yellow", (-0.265, 0.36, COUNTER_Z), 0.5),
    Prop("sponge", "pink", (-0.98, 0.12, COUNTER_Z), 0.3),
    Prop("plate", "white", (1.27, 0.28, COUNTER_Z)),
)
"""All objects; a scene of few has the first ones, without which the script would be empty."""
MIN_PROPS = 4

SCRIPT: tuple[Carry, ...] = (
    Carry("mug", RIGHT, 5.0, 12.5, (-0.275, 0.12, COUNTER_Z), 0.0),
    Carry(
        "colander", LEFT, 16.5, 35.5, (-0.03, 0.445, COUNTER_Z), 0.0, 0.16,
        Work("wash", 21.5, 31.0, (SINK[0], SINK[1] + 0.01, SINK_FLOOR + 0.06), 0.15, "colander"),
    ),
    Carry("carrot", RIGHT, 36.5, 41.5, CARROT_PLACE, 0.12, 0.09),
    Carry(
        "knife", RIGHT, 44.0, 57.5, (0.17, 0.155, BOARD_TOP), -0.25, 0.07,
        Work("cut", 47.0, 54.5, CUT_PLACE, 0.0, "carrot"),
    ),
    Carry(
        "pan", RIGHT, 60.5, 70.5, (*PLATES[0], HOB_TOP), -1.15, 0.09,
        Work("cook", 63.0, 69.0, (*PLATES[0], HOB_TOP + 0.012), -1.15),
    ),
    Carry("bottle", LEFT, 72.0, 77.5, (0.315, 0.17, COUNTER_Z), 0.0, 0.12),
)  # fmt: skip
"""Who carries what when; in order of time."""

GAZE: tuple[tuple[float, tuple[float, float, float], tuple[float, float, float]], ...] = (
    (0.0, (0.05, -0.42, 1.62), (0.06, 0.26, 1.08)),
    (6.0, (0.04, -0.38, 1.60), (0.10, 0.24, 1.03)),
    (12.0, (-0.08, -0.37, 1.59), (-0.14, 0.26, 1.02)),
    (16.0, (-0.10, -0.42, 1.63), (-0.10, 0.40, 1.14)),
    (21.5, (-0.50, -0.35, 1.58), (-0.58, 0.28, 1.01)),
    (31.0, (-0.47, -0.37, 1.60), (-0.52, 0.30, 1.03)),
    (36.0, (-0.02, -0.40, 1.62), (0.06, 0.34, 1.06)),
    (42.0, (0.03, -0.36, 1.59), (0.03, 0.22, 1.00)),
    (55.0, (0.06, -0.35, 1.58), (0.06, 0.24, 1.00)),
    (58.5, (0.26, -0.43, 1.64), (0.42, 0.42, 1.26)),
    (62.5, (0.45, -0.37, 1.60), (0.56, 0.26, 1.01)),
    (69.5, (0.48, -0.35, 1.59), (0.60, 0.26, 1.02)),
    (73.0, (0.34, -0.39, 1.62), (0.34, 0.34, 1.08)),
    (78.0, (0.22, -0.44, 1.64), (0.20, 0.40, 1.16)),
    (88.0, (-0.05, -0.46, 1.64), (-0.12, 0.44, 1.24)),
)
"""At which beat the eyes are where, and what they look at."""

REST = {
    side: (
        np.array([0.185 * side, -0.205, -0.47]),
        np.array([-0.30 * side, 0.36, -0.86]),
        np.array([-0.5 * side, -0.8, 0.1]),
    )
    for side in (RIGHT, LEFT)
}
"""Per hand, in the camera's frame: the palm's place, the fingers' direction, the palm's, while it has nothing to do."""
REST_CURL = 0.24


@dataclass(frozen=True)
class Pose:
    """Of an object in the room."""

    rotation: Rotation
    position: Vector


@dataclass(frozen=True)
class Hold:
    """A hand is busy from `start` to `end` (beats) with an object: it carries it (`carry`) or steadies it."""

    side: int
    start: float
    end: float
    prop: str
    carry: Carry | None


@dataclass(frozen=True)
class SceneState:
    """Everything that differs between frames of the video; metres, the room's frame."""

    camera_rotation: Rotation
    camera_position: Vector
    objects: Mapping[str, Pose]
    hands: Mapping[int, HandPose]
    """By side: +1 right, -1 left."""


class Choreography:
    """The script for a video of a given length.

    Args:
        sampled: number of sampled frames, of which the last is at the last beat.
        step: frames of the video per sampled frame.
        props: the objects that there are.
        rng: moves the objects' places, the timing and the head's sway a little.
    """

    def __init__(self, sampled: int, step: int, props: tuple[Prop, ...], rng: np.random.Generator):
        self.frames_per_beat = max(sampled - 1, 1) * step / (BEATS - 1.0)
        self.props = {prop.name: prop for prop in props}
        self.bounds = {prop.name: Body(BUILDERS[prop.name](COLOURS[prop.colour])).bounds for prop in props}
        self.script = tuple(carry for carry in SCRIPT if carry.prop in self.props)
        jitter = {prop.name: rng.uniform(-0.012, 0.012, 2) for prop in PROPS}
        self.homes = {
            name: Pose(turn_z(prop.yaw + float(rng.uniform(-0.08, 0.08))), np.add(prop.home, [*jitter[name], 0.0]))
            for name, prop in self.props.items()
        }
        self.shift = float(rng.uniform(-0.5, 0.5))
        self.sway = rng.uniform(0.0, 2 * np.pi, (2, 3))
        self.holds = {
            side: sorted((hold for hold in self._all_holds() if hold.side == side), key=lambda hold: hold.start)
            for side in (RIGHT, LEFT)
        }

    def beat(self, frame: float) -> float:
        """The beat of a frame of the video, counted from 0."""
        return frame / self.frames_per_beat + self.shift

    def frame(self, beat: float) -> float:
        """The frame of the video at a beat."""
        return (beat - self.shift) * self.frames_per_beat

    def moment(self, frame: int) -> SceneState:
        """Everything in one frame of the video, counted from 0."""
        beat = self.beat(frame)
        camera = self.camera(beat)
        objects = {name: self.object_pose(name, beat) for name in self.props}
        hands = {side: self._hand(side, beat, camera) for side in (RIGHT, LEFT)}
        return SceneState(camera.rotation, camera.position, objects, hands)

    def object_pose(self, name: str, beat: float) -> Pose:
        """Where an object is at a beat."""
        pose = self.homes[name]
        for carry in self.script:
            if carry.prop == name and beat > carry.start:
                pose = self._carried(carry, pose, beat)
        return pose

    def _all_holds(self) -> list[Hold]:
        holds = []
        for carry in self.script:
            holds.append(Hold(carry.side, carry.start, carry.end, carry.prop, carry))
            if carry.work is not None and carry.work.support in self.props:
                holds.append(Hold(-carry.side, carry.work.start - 0.3, carry.work.end + 0.3, carry.work.support, None))
        return holds

    def _carried(self, carry: Carry, origin: Pose, beat: float) -> Pose:
        """Where an object is while it is carried, and after."""
        goal = Pose(turn_z(carry.yaw), np.asarray(carry.goal))
        if carry.work is None:
            return _between(origin, goal, (beat - carry.start) / (carry.end - carry.start), carry.lift)
        work = carry.work
        level = CUT_ROTATION if work.action == "cut" else turn_z(work.yaw)
        place = Pose(level, np.asarray(work.place))
        if beat <= work.start:
            return _between(origin, place, (beat - carry.start) / (work.start - carry.start), carry.lift)
        if beat >= work.end:
            return _between(place, goal, (beat - work.end) / (carry.end - work.end), carry.lift)
        amount = smooth_step((beat - work.start) / WORK_RAMP) * smooth_step((work.end - beat) / WORK_RAMP)
        turns = (beat - work.start) * self.frames_per_beat / PERIOD
        shift, tilt = repeated(work.action, turns, amount)
        return Pose(tilt @ level, place.position + shift)

    def camera(self, beat: float) -> Camera:
        """Where the head is at a beat, as a camera of one pixel."""
        beats = np.array([key[0] for key in GAZE])
        k = int(np.clip(np.searchsorted(beats, beat, side="right") - 1, 0, len(GAZE) - 2))
        share = smooth_step((beat - beats[k]) / (beats[k + 1] - beats[k]))
        eye = (1 - share) * np.asarray(GAZE[k][1]) + share * np.asarray(GAZE[k + 1][1])
        target = (1 - share) * np.asarray(GAZE[k][2]) + share * np.asarray(GAZE[k + 1][2])
        angle = 2 * np.pi * beat / BEATS
        eye = eye + np.array([0.022, 0.016, 0.010]) * np.sin(angle * np.array([7, 9, 13]) + self.sway[0])
        target = target + np.array([0.030, 0.020, 0.022]) * np.sin(angle * np.array([9, 7, 11]) + self.sway[1])
        roll = 0.025 * float(np.sin(5 * angle + self.sway[0, 0]))
        return Camera.look_at(1, 1, 1.0, eye, target, roll)

    def _hand(self, side: int, beat: float, camera: Camera) -> HandPose:
        """A hand: at rest before the camera, at what it holds, or on its way between them."""
        place, fingers, palm = REST[side]
        rest = HandPose(
            camera.position + camera.rotation @ place, camera.rotation @ hand_rotation(fingers, palm), REST_CURL
        )
        before = after = None
        for hold in self.holds[side]:
            if hold.start <= beat <= hold.end:
                return self._held(hold, beat)
            if hold.end < beat:
                before = hold
            elif after is None:
                after = hold
        if before is not None and after is not None and after.start - before.end < 2 * REACH:
            share = (beat - before.end) / (after.start - before.end)
            return _moved(self._held(before, before.end), self._held(after, after.start), share)
        if before is not None and beat < before.end + REACH:
            return _moved(rest, self._held(before, before.end), 1.0 - (beat - before.end) / REACH)
        if after is not None and beat > after.start - REACH:
            return _moved(rest, self._held(after, after.start), 1.0 - (after.start - beat) / REACH)
        return rest

    def _held(self, hold: Hold, beat: float) -> HandPose:
        """The hand on an object: its grasp turns with the object from how it was when the hand came."""
        pose, bounds = self.object_pose(hold.prop, beat), self.bounds[hold.prop]
        first = self.object_pose(hold.prop, hold.start)
        facing = first.rotation if hold.prop in ("pan", "knife") else self._facing(first.position, hold.start)
        grasp = (grasp_of if hold.carry else support_of)(hold.prop, bounds, hold.side)
        own = Grasp(first.rotation.T @ facing @ grasp.position, first.rotation.T @ facing @ grasp.rotation, grasp.curl)
        held = own.on(pose.rotation, pose.position)
        if hold.carry is None and hold.prop == "colander":
            rub, _ = repeated("stir", (beat - hold.start) * self.frames_per_beat / PERIOD * 0.8, 0.4)
            return HandPose(held.position + rub, held.rotation, held.curl)
        if hold.carry is not None and hold.prop == "knife":
            upright = np.clip((pose.rotation @ np.array([1.0, 0.0, 0.0]))[2], 0.0, 1.0)
            cutting = cut_grasp().on(pose.rotation, pose.position)
            return HandPose(
                (1 - upright) * held.position + upright * cutting.position,
                slerp(held.rotation, cutting.rotation, float(upright)),
                held.curl,
            )
        return held

    def _facing(self, position: Vector, beat: float) -> Rotation:
        """The turn about z of a grasp, so that the hand comes from where the person stands."""
        offset = position - self.camera(beat).position
        return turn_z(-0.8 * float(np.arctan2(offset[0], max(offset[1], 0.2))))


def _between(first: Pose, second: Pose, share: float, lift: float) -> Pose:
    """On the way from one place to another, up and down again."""
    s = smooth_step(share)
    position = (1 - s) * first.position + s * second.position + np.array([0.0, -0.25 * lift, lift]) * bump(share)
    return Pose(slerp(first.rotation, second.rotation, s), position)


def _moved(first: HandPose, second: HandPose, share: float) -> HandPose:
    """A hand on its way from one pose to another, a little above the straight line, opening before it closes."""
    s = smooth_step(share)
    position = (1 - s) * first.position + s * second.position + np.array([0.0, -0.02, 0.05]) * bump(share)
    curl = first.curl + (second.curl - first.curl) * smooth_step(2 * share - 1) - 0.1 * bump(share)
    return HandPose(position, slerp(first.rotation, second.rotation, s), max(curl, 0.05))
