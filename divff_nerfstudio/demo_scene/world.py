"""The demo's world for some settings: room, objects, script, and the scene's coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Float, UInt8

from divff_nerfstudio.demo_scene.choreography import LEFT, PROPS, RIGHT, Choreography, Prop
from divff_nerfstudio.demo_scene.hands import ActorStyle, arm_bodies
from divff_nerfstudio.demo_scene.objects import BUILDERS, COLOURS
from divff_nerfstudio.demo_scene.plan import CORNERS, INSTANCES, RoomStyle
from divff_nerfstudio.demo_scene.renderer import Body, Camera, Lighting, PlacedBodies, box_average, cast, shade
from divff_nerfstudio.demo_scene.room import build_room

STEP = 3
"""Frames of the video from one sampled frame to the next."""
TAIL = 26
"""Frames of the video after the last sampled one: clips of 4 frames, 8 apart, begin there, too."""
FIRST_NUMBER = 21
"""Number of the video's first frame."""
VIDEO_SCALE = 2
"""A frame of the video is this much larger than a sampled frame, which is its mean over squares of pixels."""
SAMPLES = 2
"""Rays per pixel of the video, in each direction."""
FOCAL = 65 / 114
"""Focal length as a share of the width: 82 degrees from left to right."""
STATIC, OBJECT, ACTOR = 0, 1, 2
"""Layers."""
HANDS: tuple[tuple[str, str], ...] = (
    ("right hand", "a human hand"),
    ("right arm", "a human arm in a striped sleeve"),
    ("left hand", "a human hand"),
    ("left arm", "a human arm in a striped sleeve"),
)
"""The actor's instances and their descriptions."""


@dataclass(frozen=True)
class Settings:
    """All that a demo scene depends on."""

    seed: int
    num_frames: int
    width: int
    height: int
    num_objects: int

    @property
    def video_frames(self) -> int:
        """Number of frames of the video."""
        return (self.num_frames - 1) * STEP + 1 + TAIL


class World:
    """Everything that is to be seen in a demo scene.

    Args:
        settings: what it depends on. Seed 0 is the kitchen of the README; others differ in colours, too.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        rng = np.random.default_rng(settings.seed)
        self.props: tuple[Prop, ...] = PROPS[: settings.num_objects]
        self.script = Choreography(settings.num_frames, STEP, self.props, rng)
        self.room = PlacedBodies(build_room(RoomStyle() if settings.seed == 0 else RoomStyle.sample(rng)))
        self.names = ("unlabelled", *INSTANCES, *(prop.name for prop in self.props), *(name for name, _ in HANDS))
        turn, upper = np.linalg.qr(rng.normal(size=(3, 3)))
        turn *= np.sign(np.diag(upper))
        self.rotation: Float[np.ndarray, "3 3"] = turn * np.sign(np.linalg.det(turn))
        self.scale = float(rng.uniform(1.5, 2.2))
        self.origin: Float[np.ndarray, "3"] = rng.uniform(-2.0, 2.0, 3)

    def number(self, name: str) -> int:
        """Instance of a thing."""
        return self.names.index(name)

    @cached_property
    def bodies(self) -> dict[str, Body]:
        """The objects, each in its own frame."""
        return {
            prop.name: Body(BUILDERS[prop.name](COLOURS[prop.colour]), instance=self.number(prop.name), shadow=0.7)
            for prop in self.props
        }

    @cached_property
    def object_poses(self) -> dict[str, Float[np.ndarray, "frames 3 4"]]:
        """Pose of each object in each frame of the video, metres."""
        poses = {}
        for prop in self.props:
            found = [self.script.object_pose(prop.name, self.script.beat(k)) for k in range(self.settings.video_frames)]
            poses[prop.name] = np.stack([np.concatenate([p.rotation, p.position[:, None]], axis=1) for p in found])
        return poses

    @cached_property
    def camera_poses(self) -> Float[np.ndarray, "frames 3 4"]:
        """Camera to world in each frame of the video, metres (OpenGL)."""
        cameras = [self.script.camera(self.script.beat(frame)) for frame in range(self.settings.video_frames)]
        return np.stack([np.concatenate([c.rotation, c.position[:, None]], axis=1) for c in cameras])

    def motion(self, name: str) -> list[tuple[int, int]]:
        """When an object moves: spans of frames from the last one before to the first one after its motion."""
        poses = self.object_poses.get(name)
        if poses is None:
            return []
        moves = np.abs(np.diff(poses, axis=0)).max(axis=(1, 2)) > 1e-7
        edges = np.flatnonzero(np.diff(np.concatenate([[0], moves.astype(np.int8), [0]])))
        return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]

    @cached_property
    def layers_ever(self) -> UInt8[np.ndarray, "instances"]:
        """Layer of each instance; an object that moves at some time counts as one from the start."""
        layers = np.zeros(len(self.names), np.uint8)
        layers[[self.number(prop.name) for prop in self.props if self.motion(prop.name)]] = OBJECT
        layers[-len(HANDS) :] = ACTOR
        return layers

    def layers(self, frame: int) -> UInt8[np.ndarray, "instances"]:
        """As `layers_ever`, but an object counts from its first motion on."""
        layers = self.layers_ever.copy()
        for prop in self.props:
            spans = self.motion(prop.name)
            if spans and frame <= spans[0][0]:
                layers[self.number(prop.name)] = STATIC
        return layers

    def camera(self, frame: int, scale: int = 1) -> Camera:
        """The camera of a frame of the video, with `scale` times as many rows and columns as a sampled frame."""
        pose = self.camera_poses[frame]
        width, height = self.settings.width, self.settings.height
        return Camera(width, height, FOCAL * width, pose[:, :3], pose[:, 3]).scaled(scale)

    def stage(self, frame: int) -> PlacedBodies:
        """Room, objects and actor in a frame of the video."""
        moment = self.script.moment(frame)
        bodies = [self.bodies[name].placed(pose.rotation, pose.position) for name, pose in moment.objects.items()]
        turn, eye = moment.camera_rotation, moment.camera_position
        for side, name in ((RIGHT, "right"), (LEFT, "left")):
            shoulder, pole = eye + turn @ np.array([0.22 * side, -0.34, 0.10]), turn @ np.array([0.8 * side, -0.6, 0.0])
            hand, arm = self.number(f"{name} hand"), self.number(f"{name} arm")
            bodies += arm_bodies(side, moment.hands[side], shoulder, pole, ActorStyle(), hand, arm)
        return PlacedBodies.joined(self.room, PlacedBodies(bodies))

    def resting_stage(self, frame: int) -> PlacedBodies:
        """The clean room: without the actor and without objects that ever move."""
        still = [
            self.bodies[name].placed(poses[frame, :, :3], poses[frame, :, 3])
            for name, poses in self.object_poses.items()
            if not self.motion(name)
        ]
        return PlacedBodies.joined(self.room, PlacedBodies(still)) if still else self.room

    def picture(self, stage: PlacedBodies, frame: int) -> Float[np.ndarray, "height width 3"]:
        """Linear colours of a frame of the video, 0..1."""
        camera = self.camera(frame, VIDEO_SCALE * SAMPLES)
        return box_average(np.clip(shade(stage, camera, cast(stage, camera), Lighting(), CORNERS), 0.0, 1.0), SAMPLES)

    def to_scene(self, poses: Float[np.ndarray, "*batch 3 4"]) -> Float[np.ndarray, "*batch 3 4"]:
        """Poses of the room (metres, z up) in the scene's coordinates: turned, scaled, moved, as COLMAP's would be."""
        turned = self.rotation @ poses
        turned[..., 3] = self.scale * turned[..., 3] + self.origin
        return turned


@lru_cache(maxsize=2)
def world_of(settings: Settings) -> World:
    """The world of some settings, built once per process."""
    return World(settings)
