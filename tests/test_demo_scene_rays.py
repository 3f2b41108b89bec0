"""The demo's solids, objects and ray caster."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divff_nerfstudio.demo_scene.grasps import grasp_of
from divff_nerfstudio.demo_scene.hands import FOREARM, UPPER_ARM, elbow_position, hand_rotation
from divff_nerfstudio.demo_scene.motions import bump, repeated, rotation_about, slerp, smooth_step
from divff_nerfstudio.demo_scene.objects import BUILDERS, COLOURS
from divff_nerfstudio.demo_scene.primitives import (
    Box,
    Ellipsoid,
    Lathe,
    Primitive,
    Prism,
    Rectangle,
    RoundCone,
    smooth_profile,
)
from divff_nerfstudio.demo_scene.renderer import Body, Camera, Lighting, Part, PlacedBodies, box_average, cast, shade
from divff_nerfstudio.demo_scene.textures import Plain, hashed, noise

CUP = ((0.0, 0.0), (0.3, 0.0), (0.4, 0.5), (0.36, 0.5), (0.27, 0.05), (0.0, 0.05))
VASE = smooth_profile([(0.0, 0.0), (0.3, 0.05), (0.45, 0.4), (0.2, 0.8), (0.0, 0.9)], 3)
SOLIDS: dict[str, Primitive] = {
    "box": Box((0.4, 0.3, 0.5)),
    "ellipsoid": Ellipsoid((0.5, 0.3, 0.4)),
    "capsule": RoundCone(0.6, 0.3, 0.3),
    "round cone": RoundCone(0.7, 0.35, 0.1),
    "swallowed sphere": RoundCone(0.1, 0.4, 0.1),
    "cup": Lathe(CUP),
    "vase": Lathe(VASE),
    "prism": Prism(((-0.4, -0.2), (0.4, -0.2), (0.2, 0.3), (-0.3, 0.3)), 0.25),
    "rectangle": Rectangle(0.5, 0.4),
}
angles = st.floats(0.0, 2 * np.pi)
numbers = st.floats(-1.0, 1.0)


def distance(name: str, points: np.ndarray) -> np.ndarray:
    """Distance from points (n, 3) to the surface, by formulas that know nothing of rays; positive outside solids."""
    solid = SOLIDS[name]
    x, y, z = points.T
    if isinstance(solid, Box):
        gap = np.abs(points) - solid.half
        return np.linalg.norm(np.maximum(gap, 0), axis=1) + np.minimum(gap.max(1), 0)
    if isinstance(solid, Ellipsoid):
        return (np.linalg.norm(points / solid.radii, axis=1) - 1) * min(solid.radii)
    if isinstance(solid, RoundCone):
        share = np.linspace(0, 1, 501)
        centre, radius = share * solid.length, solid.radius_start + share * (solid.radius_end - solid.radius_start)
        flat = np.hypot(x, y)[:, None]
        return (np.hypot(flat, z[:, None] - centre) - radius).min(1)
    if isinstance(solid, Lathe):
        corners, flat = np.asarray(solid.profile), np.stack([np.hypot(x, y), z], 1)[:, None]
        start, step = corners[:-1], np.diff(corners, axis=0)
        along = np.clip(((flat - start) * step).sum(-1) / (step**2).sum(-1), 0, 1)
        return np.linalg.norm(flat - start - along[..., None] * step, axis=-1).min(1)
    if isinstance(solid, Prism):
        corners = np.asarray(solid.polygon)
        step = np.roll(corners, -1, axis=0) - corners
        outward = np.stack([step[:, 1], -step[:, 0]], 1) / np.linalg.norm(step, axis=1, keepdims=True)
        side = ((points[:, None, :2] - corners) * outward).sum(-1).max(1)
        return np.maximum(side, np.abs(z) - solid.half_thickness)
    outside = np.maximum(np.abs(points[:, :2]) - [0.5, 0.4], 0)
    return np.hypot(np.linalg.norm(outside, axis=1), z)


def rays_from(origin: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps = targets - origin
    return origin, steps / np.linalg.norm(steps, axis=1, keepdims=True)


@pytest.mark.parametrize("name", SOLIDS)
@settings(max_examples=8)
@given(angles, st.floats(-1.4, 1.4), st.floats(2.0, 4.0), st.integers(0, 2**31))
def test_hits_lie_on_the_surface_and_nothing_is_before_them(name, azimuth, elevation, away, seed):
    solid = SOLIDS[name]
    rng = np.random.default_rng(seed)
    flat = np.cos(elevation)
    origin = away * np.array([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(elevation)]) + [0, 0, 0.2]
    origin, steps = rays_from(origin, rng.uniform(-0.6, 1.0, (80, 3)) * [1, 1, 0.9])
    t = solid.hit(origin, tuple(steps.T))
    hit = np.isfinite(t)
    points = origin + steps[hit] * t[hit, None]
    assert np.all(np.abs(distance(name, points)) < 2e-4)
    low, high = solid.bounds
    assert np.all(points >= low - 1e-4) and np.all(points <= high + 1e-4)
    before = np.linspace(0.02, 0.98, 15)
    for share in before:
        assert np.all(distance(name, origin + steps[hit] * (share * t[hit, None])) > -1e-6)
    if not isinstance(solid, Rectangle | Lathe):
        through = np.linspace(away - 1.6, away + 1.6, 200)
        missed = steps[~hit][:20]
        depths = [distance(name, origin + missed * s) for s in through]
        assert not len(missed) or np.min(depths) > -2e-3


@pytest.mark.parametrize("name", SOLIDS)
def test_normals_are_unit_and_follow_the_surface(name):
    rng = np.random.default_rng(3)
    solid = SOLIDS[name]
    origin, steps = rays_from(np.array([1.9, -2.2, 1.7]), rng.uniform(-0.5, 0.8, (400, 3)))
    t = solid.hit(origin, tuple(steps.T))
    hit = np.isfinite(t)
    assert hit.sum() > 30
    points = origin + steps[hit] * t[hit, None]
    normals = solid.normals(points)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-6)
    assert np.mean(np.abs((normals * steps[hit]).sum(1)) > 0.02) > 0.9
    if name in ("box", "ellipsoid", "capsule", "round cone", "prism"):
        assert np.all((normals * steps[hit]).sum(1) < 1e-6)
        assert np.mean(distance(name, points + 1e-3 * normals) > 2e-4) > 0.97


def test_an_open_cup_is_seen_from_inside_and_through_its_mouth():
    cup = SOLIDS["cup"]
    down = (np.array([0.0, 0.33]), np.array([0.0, 0.0]), np.array([-1.0, -1.0]))
    t = cup.hit(np.array([0.0, 0.0, 2.0]), down)
    assert t[0] == pytest.approx(1.95)
    slanted = cup.hit(np.array([0.0, 0.0, 0.3]), (np.array([1.0]), np.array([0.0]), np.array([0.0])))
    assert slanted[0] == pytest.approx(0.27 + 0.25 * 0.09 / 0.45, abs=1e-6)


@settings(max_examples=15)
@given(angles, st.floats(0.1, 1.3), st.floats(0.3, 3.0), angles)
def test_the_camera_sees_points_where_they_project(azimuth, elevation, away, roll):
    flat = np.cos(elevation)
    eye = away * np.array([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(elevation)]) + 0.1
    camera = Camera.look_at(31, 17, 20.0, eye, np.zeros(3), roll)
    assert np.allclose(camera.rotation.T @ camera.rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(camera.rotation) == pytest.approx(1.0)
    assert np.allclose(camera.rotation.T @ (np.zeros(3) - eye), [0, 0, -np.linalg.norm(eye)], atol=1e-9)
    stage = PlacedBodies([Body((Part(Ellipsoid((0.05, 0.05, 0.05)), Plain((1, 1, 1))),), instance=7)])
    seen = cast(stage, camera, np.float64)
    rows, columns = np.nonzero(seen.instance == 7)
    if len(rows) > 4:
        assert abs(columns.mean() + 0.5 - 31 / 2) < 0.51 and abs(rows.mean() + 0.5 - 17 / 2) < 0.51
    slopes = np.stack([camera.columns[columns], camera.rows[rows], -np.ones(len(rows))], 1)
    points = eye + slopes * seen.depth[rows, columns][:, None] @ camera.rotation.T
    assert np.allclose(np.linalg.norm(points, axis=1), 0.05, atol=1e-7)
    assert np.all(np.isinf(seen.depth[seen.instance == 0]))


def test_culling_leaves_nothing_out():
    rng = np.random.default_rng(5)
    parts = tuple(
        Part(SOLIDS[name], Plain((0.5, 0.5, 0.5)), position=tuple(rng.uniform(-1, 1, 3)), instance=k + 1,
             rotation=rotation_about(np.array([0.6, 0.0, 0.8]), float(rng.uniform(0, 6))))
        for k, name in enumerate(SOLIDS)
    )  # fmt: skip
    stage = PlacedBodies([Body(parts)])
    camera = Camera.look_at(48, 27, 26.0, np.array([0.6, -1.3, 0.9]), np.zeros(3))
    seen = cast(stage, camera, np.float64)
    slopes = np.stack(np.broadcast_arrays(camera.columns, camera.rows[:, None], -1.0), -1) @ camera.rotation.T
    depth = np.full((27, 48), np.inf)
    for part in parts:
        local = tuple(np.moveaxis(slopes @ part.rotation, -1, 0))
        depth = np.minimum(depth, part.primitive.hit((camera.position - part.position) @ part.rotation, local))
    assert np.array_equal(np.isfinite(depth), np.isfinite(seen.depth))
    assert np.allclose(depth[np.isfinite(depth)], seen.depth[np.isfinite(depth)])
    assert len(np.unique(seen.instance)) > 5


def test_shadows_darken_the_ground_under_a_body_only():
    ground = Body((Part(Rectangle(2.0, 2.0), Plain((0.5, 0.5, 0.5), mottle=0.0)),), instance=1)
    ball = Body(
        (Part(Ellipsoid((0.1, 0.1, 0.1)), Plain((0.5, 0.5, 0.5)), position=(0, 0, 0.1)),), instance=2, shadow=0.6
    )
    camera = Camera.look_at(40, 40, 40.0, np.array([0.0, -1.0, 1.2]), np.zeros(3))
    pictures = []
    for stage in (PlacedBodies([ground]), PlacedBodies([ground, ball])):
        seen = cast(stage, camera)
        pictures.append(shade(stage, camera, seen, Lighting()))
    floor = seen.instance == 1
    change = (pictures[1] / pictures[0]).mean(-1)
    assert change[floor].min() < 0.75
    assert np.all(change[floor] < 1.0 + 1e-5)
    assert change[0, 0] == pytest.approx(1.0) and change[-1, -1] == pytest.approx(1.0)


def test_box_average_keeps_the_mean():
    picture = np.random.default_rng(0).random((6, 8, 3))
    assert np.allclose(box_average(picture, 2)[1, 2], picture[2:4, 4:6].mean((0, 1)))


@settings(max_examples=20)
@given(st.lists(numbers, min_size=2, max_size=6))
def test_noise_is_bounded_and_periodic(values):
    u = np.array(values) * 7
    assert np.all((noise(u, u[::-1]) >= 0) & (noise(u, u[::-1]) <= 1))
    assert np.allclose(noise(u, u), noise(u + 3, u - 2), atol=1e-3)
    assert np.all((hashed(np.floor(u)) >= 0) & (hashed(np.floor(u)) <= 1))


@settings(max_examples=20)
@given(angles, angles, st.floats(0, 1), st.floats(-0.9, 0.9))
def test_movements_are_smooth_and_rotations_stay_rotations(first, second, share, tilt):
    axis = np.array([np.sqrt(1 - tilt**2), 0.0, tilt])
    a, b = rotation_about(axis, first), rotation_about(axis[::-1], second)
    for rotation in (a, slerp(a, b, share)):
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.allclose(slerp(a, b, 0.0), a, atol=1e-7) and np.allclose(slerp(a, b, 1.0), b, atol=1e-5)
    assert smooth_step(share) == pytest.approx(1 - smooth_step(1 - share)) and 0 <= bump(share) <= 1
    for action in ("wash", "cut", "stir", "cook", "pour", "wipe", "hold"):
        shift, turn = repeated(action, share)
        again, _ = repeated(action, share + 1e-4)
        assert np.allclose(turn @ turn.T, np.eye(3)) and np.linalg.norm(shift - again) < 2e-4
        still, level = repeated(action, share, 0.0)
        assert np.allclose(still, 0) and np.allclose(level, np.eye(3))


@settings(max_examples=20)
@given(numbers, numbers, numbers)
def test_arms_keep_their_length_unless_they_must_stretch(x, y, z):
    wrist = np.array([x, y, z]) * 0.5 + [0.0, 0.3, 0.0]
    shoulder = np.array([0.2, -0.4, 0.1])
    elbow = elbow_position(shoulder, wrist, np.array([0.6, 0.0, -0.8]))
    reach = np.linalg.norm(wrist - shoulder)
    stretch = max(1.0, reach / (UPPER_ARM + FOREARM) * 1.001)
    if reach > abs(UPPER_ARM - FOREARM):
        assert np.linalg.norm(elbow - shoulder) == pytest.approx(UPPER_ARM * stretch, rel=1e-6)
        assert np.linalg.norm(elbow - wrist) == pytest.approx(FOREARM * stretch, rel=1e-6)


@pytest.mark.parametrize("kind", BUILDERS)
def test_objects_stand_on_the_ground_and_can_be_grasped(kind):
    body = Body(BUILDERS[kind](COLOURS["red"]))
    low, high = body.bounds
    assert abs(low[2]) < 0.012
    assert np.all(high - low > 0.012) and np.all(high - low < 0.56)
    for side in (-1, 1):
        grasp = grasp_of(kind, body.bounds, side)
        assert np.all(grasp.position > low - 0.04) and np.all(grasp.position < high + 0.04)
        assert np.allclose(grasp.rotation @ grasp.rotation.T, np.eye(3), atol=1e-9)


def test_hands_are_mirrored():
    right = hand_rotation(np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0]))
    assert np.allclose(right[:, 0], [-1, 0, 0])
