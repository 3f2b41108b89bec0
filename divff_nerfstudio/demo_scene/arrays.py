"""Names for the shapes of arrays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8

Vector = Float[np.ndarray, "3"]
"""A point or a direction."""
Rotation = Float[np.ndarray, "3 3"]
Bounds = Float[np.ndarray, "2 3"]
"""Lowest and highest corner of a box."""
Points = Float[np.ndarray, "n 3"]
Scalars = Float[np.ndarray, "n"]
Directions = tuple[Float[np.ndarray, "*rays"], Float[np.ndarray, "*rays"], Float[np.ndarray, "*rays"]]
"""x, y and z of the directions of rays."""
Distances = Float[np.ndarray, "*rays"]
Linear = Float[np.ndarray, "height width 3"]
"""A picture in linear light."""
Picture = UInt8[np.ndarray, "height width 3"]
"""A picture in 8-bit sRGB."""
Mask = Bool[np.ndarray, "height width"]
