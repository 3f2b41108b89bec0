"""How a hand holds each kind of object: the palm's place in the object's frame, for a person who stands at -y."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from divff_nerfstudio.demo_scene.arrays import Bounds, Rotation, Vector
from divff_nerfstudio.demo_scene.hands import HandPose, hand_rotation
from divff_nerfstudio.demo_scene.shapes import turn_z

ROUND = {"mug", "bottle", "jar", "can", "glass", "apple", "milk carton", "kettle", "teapot"}
RIM = {"bowl", "colander", "plate", "pot", "cutting board"}

CUT_ROTATION = turn_z(0.6) @ np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""Sets a knife, which lies flat in its own frame, upright, its edge down, its tip forward and to the left."""
CUT_POSITION = np.array([0.085, -0.075, 0.050])
"""Of the upright knife, from what it cuts, at the lowest point of the cut."""


@dataclass(frozen=True)
class Grasp:
    """A hand's pose in the frame of what it holds."""

    position: Vector
    rotation: Rotation
    curl: float

    def on(self, rotation: Rotation, position: Vector) -> HandPose:
        """The hand's pose in the world when the object is there."""
        return HandPose(position + rotation @ self.position, rotation @ self.rotation, self.curl)


def grasp_of(kind: str, bounds: Bounds, side: int) -> Grasp:
    """The grasp of an object.

    Args:
        kind: of object.
        bounds: its box, (2, 3).
        side: +1 right hand, -1 left hand.
    """
    low, high = bounds
    height = high[2] - low[2]
    if kind == "pan":
        return Grasp(
            np.array([0.265, -0.004, 0.078]),
            hand_rotation(np.array([-0.85, 0.5 * side, -0.15]), np.array([0.0, -0.1, -1.0])),
            0.72,
        )
    if kind == "knife":
        return Grasp(
            np.array([0.012, -0.055, 0.034]),
            hand_rotation(np.array([-0.35 * side, 0.9, -0.1]), np.array([-0.35 * side, 0.0, -1.0])),
            0.78,
        )
    if kind in ("spoon", "whisk"):
        return Grasp(
            np.array([0.0, -0.10, 0.034]),
            hand_rotation(np.array([-0.3 * side, 0.9, -0.3]), np.array([-0.3 * side, -0.2, -1.0])),
            0.70,
        )
    if kind in ROUND:
        radius = high[1] if kind not in ("kettle", "teapot") else 0.8 * high[1]
        at = np.array([side * (radius + 0.006), -0.012, 0.52 * height])
        return Grasp(at, hand_rotation(np.array([-0.22 * side, 1.0, -0.12]), np.array([-side, -0.15, -0.1])), 0.42)
    if kind in RIM:
        reach = high[0] if side > 0 else -low[0]
        at = np.array([side * (reach + 0.004), -0.015, max(0.72 * height, 0.03)])
        return Grasp(at, hand_rotation(np.array([-0.25 * side, 0.95, -0.2]), np.array([-0.9 * side, -0.1, 0.25])), 0.36)
    if kind == "cereal box":
        at = np.array([side * (high[0] + 0.006), 0.0, 0.6 * height])
        return Grasp(at, hand_rotation(np.array([-0.15 * side, 1.0, -0.1]), np.array([-side, 0.0, 0.0])), 0.30)
    top = np.array([0.0, -0.012, high[2] + 0.010])
    return Grasp(top, hand_rotation(np.array([-0.25 * side, 0.85, -0.45]), np.array([0.0, -0.45, -0.9])), 0.55)


def cut_grasp() -> Grasp:
    """The right hand around the handle of a knife that stands upright on its edge."""
    frame = hand_rotation(np.array([-0.65, 0.70, -0.25]), np.array([-0.35, -0.1, -0.9]))
    return Grasp(np.array([0.034, -0.055, 0.013]), CUT_ROTATION.T @ frame, 0.75)


def support_of(kind: str, bounds: Bounds, side: int) -> Grasp:
    """A light touch that steadies an object from its side, for the hand that does not work."""
    low, high = bounds
    if kind in RIM or kind in ROUND or kind == "pan":
        reach = high[1] if kind == "pan" else high[0]
        at = np.array([side * (reach + 0.004), -0.03, 0.75 * (high[2] - low[2])])
        return Grasp(at, hand_rotation(np.array([-0.3 * side, 0.9, -0.3]), np.array([-0.95 * side, -0.2, 0.1])), 0.36)
    reach = high[0] if side > 0 else -low[0]
    at = np.array([side * 0.62 * reach, -0.02, high[2] + 0.012])
    return Grasp(at, hand_rotation(np.array([0.30 * -side, 0.8, -0.5]), np.array([-0.2 * side, -0.4, -0.9])), 0.5)
