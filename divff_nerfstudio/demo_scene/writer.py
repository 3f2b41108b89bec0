"""Writes a demo scene as a folder in EPIC-Diff's layout, with ground truth."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from divff_nerfstudio.demo_scene.choreography import BEATS, SCRIPT
from divff_nerfstudio.demo_scene.outlines import annotator_project
from divff_nerfstudio.demo_scene.plan import INSTANCES
from divff_nerfstudio.demo_scene.renderer import PlacedBodies, box_average, cast, to_srgb
from divff_nerfstudio.demo_scene.world import (
    FIRST_NUMBER,
    FOCAL,
    HANDS,
    STATIC,
    STEP,
    VIDEO_SCALE,
    Settings,
    World,
    world_of,
)

FRAMES_PER_SECOND = 20
QUALITY = 92
"""Of the video's JPEG files."""
OUTLINE_SCALE = 4
"""Outlines are traced on pictures this much larger than the frames."""
POINTS_PER_FRAME = 120

QUERIES: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ("#C C takes the mug", "mug", ("mug",)),
    ("#C C washes the colander", "colander", ("sink", "tap")),
    ("#C C cooks with the pan", "pan", ("hob", "pan")),
    ("#C C cuts the carrot", "carrot", ("cutting board", "carrot", "knife")),
    ("#C C takes the bottle", "bottle", ("bottle",)),
    ("#C C opens the cupboard", None, ("cupboard door",)),
)
"""What the affordance annotations ask, the object without which they do not, and the things that answer."""


def splits_of(num_frames: int) -> dict[str, list[int]]:
    """Train, val and test ids: every n-th frame for test and, half-way between, for val (n = 16 from 80 frames on)."""
    every = min(max(num_frames // 5, 4), 16)
    test = [i for i in range(num_frames) if i % every == 0]
    val = [i for i in range(num_frames) if i % every == every // 2]
    return {"train": sorted(set(range(num_frames)) - set(test) - set(val)), "val": val, "test": test}


def render_frames(settings: Settings, root: Path, workers: int) -> Iterator[int]:
    """Draws the video into a folder, with what belongs to single frames.

    Args:
        settings: of the scene; the result depends on nothing else.
        root: an empty folder.
        workers: number of processes.

    Yields:
        The number (from 0) of each frame of the video once it is written, in any order.
    """
    for folder in ("frames", "high_res_video", "ground_truth/frames", "ground_truth/background"):
        (root / folder).mkdir(parents=True)
    jobs = [(settings, str(root), frame) for frame in range(settings.video_frames)]
    if workers == 1:
        yield from map(_write_video_frame, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_write_video_frame, jobs, chunksize=4)


def _write_video_frame(job: tuple[Settings, str, int]) -> int:
    settings, folder, frame = job
    root, world = Path(folder), world_of(settings)
    stage = world.stage(frame)
    colours = world.picture(stage, frame)
    name = f"frame_{FIRST_NUMBER + frame:010d}.jpg"
    Image.fromarray(to_srgb(colours)).save(root / "high_res_video" / name, quality=QUALITY)
    identifier, rest = divmod(frame, STEP)
    if rest or identifier >= settings.num_frames:
        return frame
    stem = stem_of(identifier)
    Image.fromarray(to_srgb(box_average(colours, VIDEO_SCALE))).save(root / "frames" / f"{stem}.bmp")
    depth, instance = _seen(world, stage, frame)
    layers = {"layer": world.layers(frame)[instance], "layer_ever": world.layers_ever[instance]}
    np.savez_compressed(root / "ground_truth" / "frames" / f"{stem}.npz", **layers, instance=instance, depth=depth)
    if identifier in splits_of(settings.num_frames)["test"]:
        clean = world.resting_stage(frame)
        picture = to_srgb(box_average(world.picture(clean, frame), VIDEO_SCALE))
        Image.fromarray(picture).save(root / "ground_truth" / "background" / f"{stem}.png")
        depth, instance = _seen(world, clean, frame)
        np.savez_compressed(root / "ground_truth" / "background" / f"{stem}.npz", depth=depth, instance=instance)
    return frame


def stem_of(identifier: int) -> str:
    """Name of a sampled frame's files without their endings."""
    return f"IMG_{FIRST_NUMBER + identifier * STEP:010d}"


def _seen(world: World, stage: PlacedBodies, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Depth (scene units, along the optical axis) and instance at the pixel centres of a sampled frame."""
    seen = cast(stage, world.camera(frame), np.float64)
    return (seen.depth * world.scale).astype(np.float32), seen.instance


def write_annotations(settings: Settings, root: Path) -> None:
    """Writes, after `render_frames`, everything that does not belong to single frames: metadata and annotations."""
    world = world_of(settings)
    sampled = np.arange(settings.num_frames) * STEP
    poses = world.to_scene(world.camera_poses)
    points = _room_points(world, root, poses[sampled])
    np.save(root / "ground_truth" / "points3d.npy", points)
    _write_meta(settings, root, poses[sampled], points)
    _write_motion(world, root, poses)
    _write_masks(world, root)
    _write_instances(world, root)


def _room_points(world: World, root: Path, poses: Float[np.ndarray, "n 3 4"]) -> Float[np.ndarray, "p 3"]:
    """Points of static surfaces that the frames see, as a reconstruction would find them; scene coordinates."""
    rng = np.random.default_rng(world.settings.seed)
    camera = world.camera(0)
    found = []
    for identifier, pose in enumerate(poses):
        with np.load(root / "ground_truth" / "frames" / f"{stem_of(identifier)}.npz") as truth:
            rows, columns = np.nonzero(truth["layer_ever"] == STATIC)
            chosen = rng.choice(len(rows), min(POINTS_PER_FRAME, len(rows)), replace=False)
            rows, columns = rows[chosen], columns[chosen]
            z = truth["depth"][rows, columns].astype(np.float64)
        local = np.stack([camera.columns[columns] * z, camera.rows[rows] * z, -z], axis=-1)
        found.append(local @ pose[:, :3].T + pose[:, 3])
    return np.concatenate(found).astype(np.float32)


def _write_meta(
    settings: Settings, root: Path, poses: Float[np.ndarray, "n 3 4"], points: Float[np.ndarray, "p 3"]
) -> None:
    """Writes cameras and splits.

    near and far are, as in the published data, the 0.1 and 99.9 % quantiles of z of the points ahead of a camera;
    hands are often nearer than near.
    """
    width, height, focal = settings.width, settings.height, FOCAL * settings.width
    limits = []
    for pose in poses:
        z = -((points - pose[:, 3]) @ pose[:, 2])
        limits.append(np.quantile(z[z > 0], (0.001, 0.999)))
    splits = splits_of(settings.num_frames)
    meta = {
        "ids_all": list(range(settings.num_frames)),
        "images": {str(i): f"{stem_of(i)}.bmp" for i in range(settings.num_frames)},
        "intrinsics": [[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]],
        "camera": {
            "model": "SIMPLE_PINHOLE", "width": width, "height": height, "params": [focal, width / 2, height / 2],
        },
        "image_w": float(width),
        "image_h": float(height),
        "nears": {str(i): float(near) for i, (near, _) in enumerate(limits)},
        "fars": {str(i): float(far) for i, (_, far) in enumerate(limits)},
        "poses": {str(i): pose.tolist() for i, pose in enumerate(poses)},
        **{f"ids_{split}": ids for split, ids in splits.items()},
    }  # fmt: skip
    (root / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _write_motion(world: World, root: Path, poses: Float[np.ndarray, "frames 3 4"]) -> None:
    """Poses of objects and camera in every frame of the video, scene coordinates."""
    truth = root / "ground_truth"
    np.savez_compressed(
        truth / "object_poses.npz", **{name: world.to_scene(own) for name, own in world.object_poses.items()}
    )
    np.savez_compressed(truth / "video_poses.npz", frame=FIRST_NUMBER + np.arange(len(poses)), c2w=poses)


def _write_masks(world: World, root: Path) -> None:
    """Moving masks, outlines of objects and affordances of the test frames."""
    for folder in ("annotations", "ground_truth/annotations_ever", "object_annotations", "affordance_annotations"):
        (root / folder).mkdir(parents=True)
    names = [prop.name for prop in world.props]
    queries = [(text, things) for text, needed, things in QUERIES if needed is None or needed in names]
    affordances, objects = {}, {}
    for identifier in splits_of(world.settings.num_frames)["test"]:
        stem = stem_of(identifier)
        with np.load(root / "ground_truth" / "frames" / f"{stem}.npz") as truth:
            layer, ever, instance = truth["layer"], truth["layer_ever"], truth["instance"]
        Image.fromarray((layer != STATIC).astype(np.uint8)).save(root / "annotations" / f"{stem}.bmp")
        folder = root / "ground_truth" / "annotations_ever"
        Image.fromarray((ever != STATIC).astype(np.uint8)).save(folder / f"{stem}.bmp")
        present = [[world.number(thing) for thing in things if thing in world.names] for _, things in queries]
        affordances[f"{stem}.jpg"] = np.stack([np.isin(instance, numbers) for numbers in present], axis=-1)
        frame = identifier * STEP
        large = cast(world.stage(frame), world.camera(frame, OUTLINE_SCALE), np.float64).instance
        objects[f"{stem}.jpg"] = [large == world.number(name) for name in names]
    content = {"text_queries": [text for text, _ in queries], "images": affordances}
    (root / "affordance_annotations" / "aff_annotations.pkl").write_bytes(pickle.dumps(content))
    project = annotator_project("demo kitchen", names, objects)
    (root / "object_annotations" / "te.json").write_text(json.dumps(project), encoding="utf-8")


def _write_instances(world: World, root: Path) -> None:
    """What each instance is and when it moves, and what is done when."""
    described = {**INSTANCES, **dict(HANDS)} | {
        prop.name: f"{'an' if prop.colour[0] in 'aeiou' else 'a'} {prop.colour} {prop.name}" for prop in world.props
    }
    hands: dict[str, list[str]] = {}
    for carry in SCRIPT:
        hands.setdefault(carry.prop, []).append("R" if carry.side > 0 else "L")
    movable = {prop.name for prop in world.props}
    instances = []
    last = FIRST_NUMBER + world.settings.video_frames - 1
    for number, name in enumerate(world.names):
        spans = [[FIRST_NUMBER + start, FIRST_NUMBER + end] for start, end in world.motion(name)]
        first = spans[0][0] + 1 if spans else None
        entry = {
            "id": number,
            "name": name,
            "description": described.get(name, name),
            "layer": int(world.layers_ever[number]),
            "movable": name in movable,
            "motion": [[FIRST_NUMBER, last]] if name in dict(HANDS) else spans,
            "first_moved_frame": first,
            "first_moved_id": None if first is None else -(-(first - FIRST_NUMBER) // STEP),
        }
        instances.append(entry | ({"hands": hands[name]} if spans else {}))
    actions = []
    for carry in world.script.script:
        done = [("takes", carry.start, carry.end)]
        done += [] if carry.work is None else [(carry.work.action, carry.work.start, carry.work.end)]
        for action, start, end in done:
            thing = carry.work.support if carry.work and action == "cut" else carry.prop
            span = [FIRST_NUMBER + round(world.script.frame(beat)) for beat in (start, end)]
            actions.append({"action": action, "object": thing, "frames": span})
    content = {
        "scene": "demo",
        "settings": asdict(world.settings),
        "frames_per_second": FRAMES_PER_SECOND,
        "metres_to_scene_units": world.scale,
        "depth": "z along the optical axis, scene units, at pixel centres (i+0.5, j+0.5)",
        "beats": BEATS,
        "layers": {"0": "static", "1": "moved or moving object", "2": "actor"},
        "instances": instances,
        "actions": actions,
    }
    (root / "ground_truth" / "instances.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
