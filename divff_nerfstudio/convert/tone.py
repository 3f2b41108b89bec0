"""Colours of a video's frames as a screen shows them: high dynamic range and wide gamuts are brought to sRGB.

PQ (SMPTE ST 2084) and HLG (ARIB STD-B67, on a screen of 1000 cd/m2) are decoded to light, of which 203 cd/m2 are white
(ITU-R BT.2408); HLG's system gamma acts on each channel, as in ffmpeg's zscale. BT.2020's primaries are turned into
BT.709's. Light from 90 % of white on is compressed, so that highlights keep their shape; the largest of the three
channels decides by how much, so that hues stay.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

_PQ, _HLG = 16, 18
"""Transfer characteristics, by the numbers of ITU-T H.273."""
_BT2020_TRANSFERS = (14, 15)
_BT2020 = 9
"""Primaries and matrices, by the numbers of H.273."""
WHITE = 203.0
"""cd/m2 of white."""
_HLG_PEAK = 1000.0
_HLG_GAMMA = 1.2
_KNEE = 0.9
_GAMMA = 2.4
_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)


def to_screen(frame: Any, width: int | None = None, height: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """A decoded frame's pixels in 8 bits of sRGB, at another size if one is asked for.

    Args:
        frame: As PyAV gives it.
        width: Pixels; None: the frame's own.
        height: Pixels; None: the frame's own.
    """
    transfer = int(getattr(frame, "color_trc", 2) or 2)
    wide = int(getattr(frame, "color_primaries", 2) or 2) == _BT2020 or int(frame.colorspace or 2) == _BT2020
    if transfer not in (_PQ, _HLG) and not wide and transfer not in _BT2020_TRANSFERS:
        return frame.to_ndarray(format="rgb24", width=width, height=height)
    signal = frame.to_ndarray(format="rgb48le", width=width, height=height)
    light = _decoded(transfer)[signal]
    if transfer == _HLG:
        light = light**_HLG_GAMMA * (_HLG_PEAK / WHITE)
    if wide or transfer in (_PQ, _HLG):
        light = light @ _TO_BT709.T
    if transfer in (_PQ, _HLG):
        light = compressed(np.maximum(light, 0))
    return _encoded()[np.clip(light * 65535, 0, 65535).astype(np.uint16)]


def compressed(light: Float[np.ndarray, "*rest 3"]) -> Float[np.ndarray, "*rest 3"]:
    """Light whose largest channel stays below 1: what is beyond the knee is bent towards it, with its hue."""
    brightest = light.max(-1, keepdims=True)
    beyond = np.maximum(brightest - _KNEE, 0) / (1 - _KNEE)
    bent = np.where(brightest > _KNEE, _KNEE + (1 - _KNEE) * beyond / (1 + beyond), brightest)
    return light * (bent / np.maximum(brightest, 1e-6))


@cache
def _decoded(transfer: int) -> Float[np.ndarray, "65536"]:
    """Light of each 16-bit signal: of PQ in units of white, of HLG in those of the scene, otherwise of a screen."""
    signal = np.linspace(0, 1, 65536)
    if transfer == _PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        light = 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) / WHITE
    elif transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal**_GAMMA
    return light.astype(np.float32)


@cache
def _encoded() -> UInt8[np.ndarray, "65536"]:
    """The 8-bit signal of light in 65535ths of white."""
    return np.round(255 * np.linspace(0, 1, 65536) ** (1 / _GAMMA)).astype(np.uint8)
