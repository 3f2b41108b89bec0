"""What a pickle says of NumPy's arrays, taken down without letting NumPy act on it."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from divff_nerfstudio.errors import DivffError


class UnsafePickleError(DivffError):
    """A pickle holds something else than plain data and NumPy arrays, or cannot be read."""


class PickledDtype:
    """What a pickle says of a data type, taken down without letting NumPy act on it."""

    def __init__(self, code: Any, *flags: Any):
        del flags
        if not isinstance(code, str) or len(code) > 16:
            raise UnsafePickleError("arrays of a data type without a name")
        self.code = code
        self.order: Literal["<", ">"] = "<"

    def build(self, state: Any) -> None:
        """Takes down its state."""
        if not isinstance(state, tuple) or len(state) < 5:
            raise UnsafePickleError("arrays of a damaged data type")
        if any(part is not None for part in state[2:5]):
            raise UnsafePickleError("structured arrays")
        self.order = ">" if state[1] == ">" else "<"

    def numpy(self) -> np.dtype:
        """The data type, of numbers, truth values or text."""
        dtype = np.dtype(self.code)
        if dtype.kind not in "biufcSU":
            raise UnsafePickleError(f"arrays of data type {dtype}")
        return dtype.newbyteorder(self.order)


class PickledArray:
    """What a pickle says of an array; it becomes one only after its parts have been looked at."""

    def __init__(self, *reconstruct_arguments: Any):
        del reconstruct_arguments
        self.state: tuple | None = None

    def build(self, state: Any) -> None:
        """Takes down its state."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnsafePickleError("an array of damaged content")
        self.state = state

    def numpy(self) -> np.ndarray:
        """The array, whose shape fits its bytes."""
        if self.state is None:
            raise UnsafePickleError("an array without content")
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, PickledDtype):
            raise UnsafePickleError("arrays without a data type")
        dtype = dtype.numpy()
        if not isinstance(raw, (bytes, bytearray)):
            raise UnsafePickleError("arrays of Python objects")
        if not isinstance(shape, tuple) or not all(type(length) is int and 0 <= length < 2**31 for length in shape):
            raise UnsafePickleError("arrays without a shape")
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise UnsafePickleError(f"an array of shape {shape[:8]} in {len(raw)} bytes")
        if not raw:
            return np.zeros(shape, dtype)
        return np.frombuffer(bytes(raw), dtype).reshape(shape, order="F" if fortran else "C").copy(order="K")


def array_of_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    """What stands for an array of NumPy's ``_frombuffer``."""
    array = PickledArray()
    array.build((1, shape, dtype, order == "F", raw))
    return array


def scalar(dtype: Any, raw: Any = b"") -> Any:
    """A number of NumPy's."""
    if not isinstance(dtype, PickledDtype) or not isinstance(raw, (bytes, bytearray)):
        raise UnsafePickleError("a number without a data type")
    kind = dtype.numpy()
    if kind.itemsize != len(raw):
        raise UnsafePickleError("a number of damaged content")
    return np.frombuffer(raw, kind)[0] if kind.itemsize else kind.type()
