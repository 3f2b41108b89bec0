"""Distortion: what is undone is what a distorting camera did, by formulas written here and not by the library's."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divff_nerfstudio.convert.cameras import (
    MODELS,
    CameraError,
    Pinhole,
    SourceCamera,
    Undistorter,
    common_pinhole,
    told_camera,
)

W, H = 320, 180


def radial(x, y, ks):
    r2 = x * x + y * y
    factor = 1 + sum(k * r2 ** (i + 1) for i, k in enumerate(ks))
    return x * factor, y * factor


def opencv(x, y, k1, k2, p1, p2, k3=0.0, k4=0.0, k5=0.0, k6=0.0):
    r2 = x * x + y * y
    factor = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * factor + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def fisheye(x, y, *ks):
    r = np.maximum(np.hypot(x, y), 1e-12)
    theta = np.arctan(r)
    bent = theta * (1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate(ks)))
    return x * bent / r, y * bent / r


def field_of_view(x, y, omega):
    r = np.maximum(np.hypot(x, y), 1e-12)
    bent = np.arctan(2 * r * np.tan(omega / 2)) / omega
    return x * bent / r, y * bent / r


F = 165.0
CAMERAS = {
    "SIMPLE_PINHOLE": ((F, 161.0, 89.0), lambda x, y: (x, y)),
    "PINHOLE": ((F, 168.0, 161.0, 89.0), lambda x, y: (x, y)),
    "SIMPLE_RADIAL": ((F, 161.0, 89.0, -0.1), lambda x, y: radial(x, y, (-0.1,))),
    "RADIAL": ((F, 161.0, 89.0, -0.25, 0.06), lambda x, y: radial(x, y, (-0.25, 0.06))),
    "OPENCV": (
        (F, 168.0, 161.0, 89.0, -0.28, 0.09, 0.004, -0.006),
        lambda x, y: opencv(x, y, -0.28, 0.09, 0.004, -0.006),
    ),
    "FULL_OPENCV": (
        (F, 168.0, 161.0, 89.0, 0.2, 0.02, 0.003, -0.002, 0.001, 0.35, 0.04, 0.001),
        lambda x, y: opencv(x, y, 0.2, 0.02, 0.003, -0.002, 0.001, 0.35, 0.04, 0.001),
    ),
    "OPENCV_FISHEYE": (
        (F, 168.0, 161.0, 89.0, 0.05, -0.02, 0.006, -0.001),
        lambda x, y: fisheye(x, y, 0.05, -0.02, 0.006, -0.001),
    ),
    "SIMPLE_RADIAL_FISHEYE": ((F, 161.0, 89.0, 0.06), lambda x, y: fisheye(x, y, 0.06)),
    "RADIAL_FISHEYE": ((F, 161.0, 89.0, 0.06, -0.01), lambda x, y: fisheye(x, y, 0.06, -0.01)),
    "FOV": ((F, 168.0, 161.0, 89.0, 0.9), lambda x, y: field_of_view(x, y, 0.9)),
}
"""Strongly distorting cameras, and what they do to x / z and y / z."""
DISTORTED = [name for name in CAMERAS if "PINHOLE" not in name]


def camera(name: str) -> SourceCamera:
    return SourceCamera(name, W, H, CAMERAS[name][0])


def seen_at(name: str, x, y) -> np.ndarray:
    """Pixels of a direction in a distorting camera, by the formulas above."""
    params, bend = CAMERAS[name]
    one = name in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
    fx, fy, cx, cy = (params[0], *params[:3]) if one else params[:4]
    bent_x, bent_y = bend(np.asarray(x), np.asarray(y))
    return np.stack((fx * bent_x + cx, fy * bent_y + cy), -1)


@cache
def directions_of(name: str) -> np.ndarray:
    """x / z and y / z of each pixel centre of a distorting camera: the formulas, inverted by Newton's method."""
    columns, rows = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    pixels = np.stack((columns, rows), -1).reshape(-1, 2)
    guess = (pixels - (161.0, 89.0)) / F
    step = 1e-6
    for _ in range(25):
        value = seen_at(name, *guess.T)
        (a, c), (b, d) = (((seen_at(name, *(guess + move).T) - value) / step).T for move in ((step, 0.0), (0.0, step)))
        x, y = (value - pixels).T
        change = np.stack((d * x - b * y, a * y - c * x), -1) / (a * d - b * c)[:, None]
        guess = guess - np.clip(change, -0.1, 0.1)
    assert np.abs(seen_at(name, *guess.T) - pixels).max() < 1e-3
    return guess.reshape(H, W, 2)


def pattern(directions: np.ndarray) -> np.ndarray:
    """A smooth picture painted on all directions, as 8-bit RGB."""
    x, y = directions[..., 0], directions[..., 1]
    waves = np.stack((np.sin(7 * x) * np.cos(6 * y), np.sin(5 * x + 6 * y), np.cos(6 * (x - y))), -1)
    return np.round(127.5 + 120 * waves).astype(np.uint8)


def spots(directions: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Small bright blobs at some directions."""
    distance = ((directions[:, :, None] - places) ** 2).sum(-1)
    return np.round(250 * np.exp(-distance / (2 * 0.016**2)).max(-1)).astype(np.uint8)[..., None].repeat(3, -1)


@pytest.mark.parametrize("name", CAMERAS)
def test_projection_is_the_formula(name):
    random = np.random.default_rng(0)
    points = np.concatenate((random.uniform(-0.7, 0.7, (200, 2)), np.ones((200, 1))), 1)
    assert np.abs(camera(name).project(points * 3.0) - seen_at(name, *points.T[:2])).max() < 1e-6
    back = camera(name).unproject(seen_at(name, *points.T[:2]))
    assert np.nanmax(np.abs(back - points[:, :2])) < 1e-5


@pytest.mark.parametrize("name", CAMERAS)
def test_an_undistorted_frame_is_what_a_pinhole_sees(name):
    source = pattern(directions_of(name))
    for width in (W, W // 4):
        pinhole = common_pinhole([camera(name)], width)
        assert (pinhole.width, pinhole.height) == (width, round(H * width / W))
        picture = Undistorter(camera(name), pinhole)(source).astype(float)
        truth = pattern(pinhole.directions(3)[..., :2]).astype(float)
        truth = truth.reshape(pinhole.height, 3, pinhole.width, 3, 3).mean((1, 3))
        error = np.sqrt(((picture - truth) ** 2).mean())
        assert error < 2.0, (width, error)
        wrong = Undistorter(SourceCamera("PINHOLE", W, H, (F, F, W / 2, H / 2)), pinhole)(source).astype(float)
        if name in DISTORTED:
            assert np.sqrt(((wrong - truth) ** 2).mean()) > 5 * error


@pytest.mark.parametrize("name", CAMERAS)
def test_points_reproject_to_a_third_of_a_pixel(name):
    """Blobs painted into the distorted frame lie, in the undistorted one, where the pinhole sees their points."""
    directions = directions_of(name)
    pinhole = common_pinhole([camera(name)], W)
    corners = pinhole.directions()[[14, -14]][:, [14, -14], :2]
    x, y = np.linspace(*corners[0, :, 0], 7), np.linspace(*corners[:, 0, 1], 5)
    places = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    picture = Undistorter(camera(name), pinhole)(spots(directions, places))[..., 0].astype(float)
    expected = places * (pinhole.fx, pinhole.fy) + (pinhole.cx, pinhole.cy)
    for column, row in expected:
        left, top = int(column) - 7, int(row) - 7
        window = picture[max(top, 0) : top + 15, max(left, 0) : left + 15]
        rows, columns = np.mgrid[: window.shape[0], : window.shape[1]]
        found = (
            (window * (columns + max(left, 0) + 0.5)).sum() / window.sum(),
            (window * (rows + max(top, 0) + 0.5)).sum() / window.sum(),
        )
        assert np.hypot(found[0] - column, found[1] - row) < 0.3


@pytest.mark.parametrize("name", DISTORTED)
def test_the_view_has_no_black_border_and_is_not_much_smaller_than_it_could_be(name):
    pinhole = common_pinhole([camera(name)], 228)
    white = np.full((H, W, 3), 255, np.uint8)
    seen = camera(name).project(pinhole.directions().reshape(-1, 3))
    assert (seen >= 0).all() and (seen <= (W, H)).all()
    assert (Undistorter(camera(name), pinhole)(white) == 255).all()
    wider = Pinhole(pinhole.width, pinhole.height, pinhole.fx / 1.05, pinhole.fy / 1.05, pinhole.cx, pinhole.cy)
    seen = camera(name).project(wider.directions().reshape(-1, 3))
    degrees = 2 * np.degrees(np.arctan(pinhole.width / 2 / pinhole.fx))
    assert not ((seen >= 0).all() and (seen <= (W, H)).all()) or degrees > 109


def test_a_fisheye_of_half_a_sphere_becomes_a_view_of_the_asked_width():
    wide = SourceCamera("OPENCV_FISHEYE", 800, 800, (255.0, 255.0, 400.0, 400.0, 0.0, 0.0, 0.0, 0.0))
    for widest in (60.0, 110.0):
        pinhole = common_pinhole([wide], 400, widest)
        assert 2 * np.degrees(np.arctan(200 / pinhole.fx)) == pytest.approx(widest, abs=2)


def test_several_cameras_get_one_view():
    both = [camera("OPENCV"), camera("OPENCV_FISHEYE"), SourceCamera("PINHOLE", 320, 180, (160.0, 160.0, 160.0, 90.0))]
    pinhole = common_pinhole(both, 228)
    for one in both:
        seen = one.project(pinhole.directions().reshape(-1, 3))
        assert (seen >= 0).all() and (seen <= (one.width, one.height)).all()


def test_a_principal_point_far_off_is_brought_to_the_middle():
    off = SourceCamera("PINHOLE", W, H, (F, F, 100.0, 90.0))
    pinhole = common_pinhole([off], 160)
    assert (pinhole.cx, pinhole.cy) == (80, 45)
    kept = common_pinhole([SourceCamera("PINHOLE", W, H, (F, F, 165.0, 90.0))], 160)
    assert (kept.cx, kept.cy, kept.fx) == (82.5, 45, F / 2)


@pytest.mark.parametrize("name", ["EQUIRECTANGULAR", "FISHEYE624", "OMNIDIRECTIONAL", ""])
def test_an_unknown_model_is_refused(name):
    with pytest.raises(CameraError, match="cannot be dropped"):
        SourceCamera(name, W, H, (F, F, 160, 90))


def test_wrong_parameters_are_refused():
    with pytest.raises(CameraError, match="parameters"):
        common_pinhole([SourceCamera("OPENCV", W, H, (F, F, 160, 90, -0.1))], 228)
    for left_out in range(1, 5):  # none of the distortion is taken for none
        with pytest.raises(CameraError, match="parameters"):
            SourceCamera("OPENCV", W, H, (F, F, 160, 90, -0.1, 0, 0, 0)[:-left_out])
    with pytest.raises(CameraError, match="no numbers"):
        SourceCamera("PINHOLE", W, H, (F, F, float("nan"), 90))
    for params in ((F, F, 0.5, 0.5), (F, F, 160, 179)):
        with pytest.raises(CameraError, match="at their edge: write it in pixels"):
            SourceCamera("PINHOLE", W, H, params)
    with pytest.raises(CameraError, match="both are in pixels"):
        SourceCamera("PINHOLE", W, H, (F, 10 * F, 160, 90))
    with pytest.raises(CameraError, match=r"^cameras\.txt: A camera"):
        told_camera(Path("cameras.txt"), "SIMPLE_PINHOLE", (W, H), (F, -3, 90))
    with pytest.raises(CameraError, match="folds"):
        common_pinhole([SourceCamera("SIMPLE_RADIAL", W, H, (50.0, 160, 90, -30.0))], 228)
    with pytest.raises(CameraError, match="one size"):
        Undistorter(camera("OPENCV"), common_pinhole([camera("OPENCV")], 228))(np.zeros((10, 10, 3), np.uint8))


def test_frames_of_another_size_scale_the_camera():
    for name in CAMERAS:
        half = camera(name).scaled(W // 2, H // 2)
        point = np.array([[0.3, -0.2, 1.0]])
        assert np.allclose(half.project(point) * 2, camera(name).project(point))
    with pytest.raises(CameraError, match="cropped"):
        camera("OPENCV").scaled(W, W)


@given(
    st.floats(-0.3, 0.3), st.floats(-0.05, 0.05), st.floats(-0.01, 0.01), st.floats(-0.01, 0.01), st.floats(125, 450)
)
@settings(max_examples=40)
def test_any_moderate_lens_gives_a_view_inside_its_frame(k1, k2, p1, p2, focal):
    lens = SourceCamera("OPENCV", W, H, (focal, focal, W / 2, H / 2, k1, k2, p1, p2))
    pinhole = common_pinhole([lens], 228)
    seen = lens.project(pinhole.directions().reshape(-1, 3))
    assert np.isfinite(seen).all() and (seen >= 0).all() and (seen <= (W, H)).all()


def test_all_models_are_listed_once():
    assert len(set(MODELS)) == len(MODELS) and set(CAMERAS) <= set(MODELS)
