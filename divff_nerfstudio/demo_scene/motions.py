"""How things and hands move: smooth steps, and the repeated movements of washing, cutting, stirring, pouring."""

from __future__ import annotations

import numpy as np

from divff_nerfstudio.demo_scene.arrays import Rotation, Vector
from divff_nerfstudio.demo_scene.shapes import turn_x, turn_y, turn_z


def smooth_step(share: float) -> float:
    """Minimum-jerk course from 0 to 1 (speed and acceleration are 0 at both ends)."""
    s = min(max(share, 0.0), 1.0)
    return s * s * s * (10.0 + s * (6.0 * s - 15.0))


def bump(share: float) -> float:
    """0 at both ends of 0..1, 1 in the middle, smooth."""
    s = min(max(share, 0.0), 1.0)
    return 16.0 * s * s * (1.0 - s) * (1.0 - s)


def repeated(action: str, turns: float, amount: float = 1.0) -> tuple[Vector, Rotation]:
    """Displacement (3,) in metres and rotation (3, 3) of what the hand holds, within an action.

    Args:
        action: wash, cut, stir, cook, pour, wipe or hold.
        turns: time, in periods of the movement.
        amount: 0 (not begun) to 1 (full swing), to start and stop smoothly.
    """
    angle = 2.0 * np.pi * turns
    sine, cosine = np.sin(angle) * amount, np.cos(angle) * amount
    still = np.eye(3)
    if action == "wash":
        return np.array([0.035 * sine, 0.020 * cosine, 0.012 * np.sin(2 * angle) * amount]), turn_y(
            0.25 * sine
        ) @ turn_x(0.35 * amount + 0.15 * cosine)
    if action == "cut":
        return np.array(
            [0.018 * np.sin(0.31 * angle) * amount, 0.012 * cosine, 0.032 * (1.0 + cosine) * amount]
        ), turn_x(0.10 * (amount + cosine))
    if action == "stir":
        return np.array([0.045 * cosine, 0.045 * sine, 0.0]), turn_z(0.2 * sine)
    if action == "cook":
        return np.array([0.030 * sine, 0.035 * cosine, 0.008 * (amount + np.sin(2 * angle) * amount)]), turn_z(
            0.10 * sine
        )
    if action == "pour":
        return np.array([0.012 * sine, 0.0, 0.010 * cosine]), turn_y(-(1.75 + 0.10 * np.sin(angle)) * amount)
    if action == "wipe":
        return np.array([0.11 * sine, 0.05 * np.sin(2 * angle) * amount, 0.0]), turn_z(0.3 * sine)
    return np.zeros(3), still


def slerp(first: Rotation, second: Rotation, share: float) -> Rotation:
    """The rotation between two, along the shortest turn, (3, 3)."""
    turn = first.T @ second
    angle = np.arccos(np.clip((np.trace(turn) - 1.0) / 2.0, -1.0, 1.0))
    if angle < 1e-6:
        return first
    if np.pi - angle < 1e-3:
        values, vectors = np.linalg.eigh((turn + turn.T) / 2.0)
        axis = vectors[:, values.argmax()]
    else:
        axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
        axis /= np.linalg.norm(axis)
    return first @ rotation_about(axis, angle * share)


def rotation_about(axis: Vector, angle: float) -> Rotation:
    """Rotation by `angle` radians about a unit axis (Rodrigues), (3, 3)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
