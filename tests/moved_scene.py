"""A tiny scene of boxes of which two are moved, cast ray by ray, and models that render it rightly or wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from small_scene import only

from divff_nerfstudio.fields.layers import LAYERS
from divff_nerfstudio.models.view import EVERYTHING, Features, RenderedView
from divff_nerfstudio.query import Query, QueryConfig
from divff_nerfstudio.relevancy import PUBLISHED_NEGATIVES

HEIGHT, WIDTH, FRAMES, STEP = 24, 40, 16, 10
TEST, VAL = (4, 9, 14), (2, 12)
LAST = STEP * (FRAMES - 1)
SCALE = 2.0
"""Scene units in a metre."""
WALL, MUG, BOWL, ARM = 1, 2, 3, 4
COLOURS = np.array([(0, 0, 0), (90, 120, 150), (220, 40, 40), (240, 240, 200), (200, 160, 130)], np.float32) / 255
INSTANCES = [
    {"id": 0, "name": "unlabelled", "layer": 0},
    {"id": WALL, "name": "wall", "description": "the wall", "layer": 0, "motion": []},
    {"id": MUG, "name": "mug", "description": "a red mug", "layer": 1, "motion": [[50, 70]]},
    {"id": BOWL, "name": "bowl", "description": "a bowl", "layer": 1, "motion": [[100, 110]]},
    {"id": ARM, "name": "arm", "description": "a human arm", "layer": 2, "motion": [[0, LAST]]},
]
HALVES = {WALL: (9.0, 9.0, 0.1), MUG: (0.3, 0.2, 0.2), BOWL: (0.25, 0.15, 0.15), ARM: (0.2, 0.1, 0.1)}
QUARTER = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
PLACES = {MUG: ((-1.0, 0.4, -3.0), (0.9, 0.1, -3.0)), BOWL: ((0.2, -0.7, -2.9), (1.2, -0.7, -3.0))}
"""Where the middle of an object is before and after its motion; the mug is turned by a quarter on its way."""


def place(thing: int, after: bool) -> np.ndarray:
    turn = QUARTER if thing == MUG and after else np.eye(3)
    return np.column_stack((turn, PLACES[thing][after]))


def pose(thing: int, number: int) -> np.ndarray:
    """Object-to-world in a frame of the video."""
    start, end = next(entry["motion"][0] for entry in INSTANCES if entry["id"] == thing)
    if not start < number < end:
        return place(thing, number >= end)
    share = (number - start) / (end - start)
    first, last = (np.array(spot) for spot in PLACES[thing])
    return np.column_stack((np.eye(3), first + share * (last - first)))


def camera_to_world(number: int) -> np.ndarray:
    return np.column_stack((np.eye(3), (0.4 * number / LAST - 0.2, 0.05 * np.sin(number), 0.0)))


def bodies(number: int) -> list[tuple[int, np.ndarray]]:
    """The room and the objects; the arm is apart, since it moves with the camera."""
    wall = np.column_stack((np.eye(3), (0, 0, -4.2)))
    return [(WALL, wall), *((thing, pose(thing, number)) for thing in (MUG, BOWL))]


def arm(view: np.ndarray) -> tuple[int, np.ndarray]:
    """It hangs before the lower left corner of the picture."""
    return ARM, np.column_stack((view[:, :3], view[:, :3] @ np.array((-0.5, -0.4, -1.2)) + view[:, 3]))


def cast(
    origins: np.ndarray, directions: np.ndarray, things: list[tuple[int, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance along unit rays to the first of some boxes (0 where there is none), and its id."""
    nearest, hit = np.full(origins.shape[:-1], np.inf), np.zeros(origins.shape[:-1], np.uint8)
    for thing, where in things:
        start, way = (origins - where[:, 3]) @ where[:, :3], directions @ where[:, :3]
        with np.errstate(divide="ignore", invalid="ignore"):
            edges = np.stack([(side * np.array(HALVES[thing]) - start) / way for side in (-1, 1)])
        enter, leave = edges.min(0).max(-1), edges.max(0).min(-1)
        ahead = (enter <= leave) & (enter > 0) & (enter < nearest)
        nearest[ahead], hit[ahead] = enter[ahead], thing
    return np.where(hit > 0, nearest, 0.0), hit


def rays(view: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Origins and unit directions of a frame's pixels, and distance along them per depth."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    local = np.stack([(columns - WIDTH / 2) / 30, -(rows - HEIGHT / 2) / 30, -np.ones_like(rows)], -1)
    norms = np.linalg.norm(local, axis=-1)
    directions = local / norms[..., None] @ view[:, :3].T
    return np.broadcast_to(view[:, 3], directions.shape), directions, norms


def write(root: Path) -> Path:
    """Writes the scene with the ground truth of moved objects."""
    for folder in ("frames", "ground_truth/frames"):
        (root / folder).mkdir(parents=True)
    names, poses = [f"IMG_{STEP * i:010d}.bmp" for i in range(FRAMES)], {}
    for i, name in enumerate(names):
        view = camera_to_world(STEP * i)
        poses[str(i)] = view.tolist()
        origins, directions, norms = rays(view)
        distance, instance = cast(origins, directions, [*bodies(STEP * i), arm(view)])
        Image.fromarray((255 * COLOURS[instance]).astype(np.uint8)).save(root / "frames" / name)
        ever = np.array([0, 0, 1, 1, 2], np.uint8)[instance]
        np.savez(
            root / "ground_truth" / "frames" / name.replace("bmp", "npz"),
            layer=np.array([0, 0, STEP * i > 50, STEP * i > 100, 2], np.uint8)[instance],
            layer_ever=ever,
            instance=instance,
            depth=(distance / norms).astype(np.float32),
        )
    numbers = np.arange(LAST + 1)
    truth = root / "ground_truth"
    np.savez(
        truth / "object_poses.npz",
        mug=np.stack([pose(MUG, n) for n in numbers]),
        bowl=np.stack([pose(BOWL, n) for n in numbers]),
    )
    np.savez(truth / "video_poses.npz", frame=numbers, c2w=np.stack([camera_to_world(n) for n in numbers]))
    table = {"metres_to_scene_units": SCALE, "instances": INSTANCES}
    (truth / "instances.json").write_text(json.dumps(table))
    meta = {
        "ids_all": list(range(FRAMES)),
        "ids_train": [i for i in range(FRAMES) if i not in TEST + VAL],
        "ids_val": list(VAL),
        "ids_test": list(TEST),
        "images": {str(i): name for i, name in enumerate(names)},
        "poses": poses,
        "nears": {str(i): 0.1 for i in range(FRAMES)},
        "fars": {str(i): 6.0 for i in range(FRAMES)},
        "intrinsics": [[30.0, 0, WIDTH / 2], [0, 30.0, HEIGHT / 2], [0, 0, 1]],
    }
    (root / "meta.json").write_text(json.dumps(meta))
    return root


WORDS = ("nothing", "wall", "mug", "bowl", "arm")
CODES = {word: torch.eye(8)[i] for i, word in enumerate(WORDS)}
CODES |= {entry["description"]: CODES[entry["name"]] for entry in INSTANCES if "description" in entry}
CODES |= dict(zip(PUBLISHED_NEGATIVES["image"], (torch.eye(8)[i] for i in (5, 6, 7, 7)), strict=True))


def make_query() -> Query:
    return Query(QueryConfig(), {"image": lambda phrases: torch.stack([CODES[phrase] for phrase in phrases])})


class BoxModel:
    """Casts the scene as it is; what is derived from it draws it wrongly."""

    dynamic: tuple[int, ...] = (MUG, BOWL)
    """What is in the dynamic layer; all else but the arm is in the static one."""
    with_features = True
    codes = torch.eye(8)

    def things(self, number: int) -> list[tuple[int, np.ndarray]]:
        return bodies(number)

    def actor(self, number: int, view: np.ndarray) -> list[tuple[int, np.ndarray]]:
        del number
        return [arm(view)]

    def render(self, camera, layers=LAYERS, box=None, outputs=EVERYTHING) -> RenderedView:
        number = round(float(camera.times.reshape(-1)[0]) * LAST)
        bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
        origins, directions = (part.double().numpy() for part in (bundle.origins, bundle.directions))
        view = camera.camera_to_worlds.reshape(3, 4).double().numpy()
        things = [*self.things(number), *(self.actor(number, view) if "actor" in layers else [])]
        distance, hit = cast(origins, directions, things)
        pictures = {
            "rgb": torch.from_numpy(COLOURS[hit]),
            "depth": torch.from_numpy(distance).float()[..., None],
            "accumulation": torch.from_numpy(hit > 0).float()[..., None],
            "mask_dynamic": torch.from_numpy(np.isin(hit, self.dynamic)).float()[..., None],
            "mask_actor": torch.from_numpy(hit == ARM).float()[..., None],
        }
        codes = self.codes[torch.from_numpy(hit).long()] * (torch.from_numpy(hit) > 0)[..., None]
        view = RenderedView(camera, pictures, Features(("image",) if self.with_features else (), lambda _: codes))
        return only(view, outputs)


class InTheRoom(BoxModel):
    """The static layer draws the objects, all rightly."""

    dynamic = ()


class Ghosts(BoxModel):
    """What was moved is still drawn where it was, too."""

    def things(self, number):
        old = [(thing, place(thing, False)) for thing in (MUG, BOWL) if number > pose_start(thing)]
        return [*bodies(number), *old]


class Stuck(BoxModel):
    """Nothing ever moves."""

    def things(self, number):
        return bodies(0)


class Absent(BoxModel):
    """The room alone."""

    def things(self, number):
        return bodies(number)[:1]


class Empty(BoxModel):
    """Draws nothing at all."""

    def things(self, number):
        return []


class Painted(BoxModel):
    """The objects' features lie on the wall behind them."""

    def render(self, camera, layers=LAYERS, box=None, outputs=EVERYTHING):
        view = super().render(camera, layers, box, outputs)
        depth = view.pictures["depth"]
        view.pictures["depth"] = torch.where(view.pictures["mask_dynamic"] > 0, depth + 1.0, depth)
        return view


class Gloved(BoxModel):
    """The actor's layer stands before everything in the picture."""

    def render(self, camera, layers=LAYERS, box=None, outputs=EVERYTHING):
        view = super().render(camera, layers, box, outputs)
        if "actor" not in layers:
            return view
        depth = view.pictures["depth"]
        pictures = view.pictures | {"depth": 0 * depth + 0.5, "mask_dynamic": 0 * depth}
        return RenderedView(camera, pictures, Features(("image",), lambda _: CODES["arm"].expand(*depth.shape[:2], -1)))


def pose_start(thing: int) -> int:
    return next(entry["motion"][0][0] for entry in INSTANCES if entry["id"] == thing)
