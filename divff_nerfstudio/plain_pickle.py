"""Reading pickles that may come from a stranger: plain data and NumPy arrays, and no function but ours.

A pickle is a program. This room runs it on a machine of its own, which knows lists, dictionaries, tuples, text, bytes
and numbers, and takes down what NumPy wrote of its arrays; whatever else is asked for is refused. Memory and time are
bounded by the file's size: lists that share their parts (a few bytes can stand for 2^40 places) are counted unfolded.
"""

from __future__ import annotations

import pickletools
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from divff_nerfstudio.pickled_arrays import PickledArray, PickledDtype, UnsafePickleError, array_of_buffer, scalar

MAX_BYTES = 2**30
"""Larger pickles are taken for something else; what they unfold to is held to twice as much."""
_MAX_OPCODES = 5_000_000
_MAX_PLACES = 5_000_000
_MAX_DEPTH = 50
_MAX_BITS = 256
"""Longer whole numbers are no measurements."""
_REMEMBERED = 2**20
"""No file of ours puts more aside than that."""


def _latin1(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError("bytes in another encoding than latin-1")
    return text.encode("latin-1")


def _bytes(content: Any = b"", encoding: Any = None) -> bytes:
    """As Python's own, but never of a number, which would ask for that much memory."""
    if encoding is not None:
        return _latin1(content, encoding)
    if not isinstance(content, (bytes, bytearray)):
        raise UnsafePickleError("bytes that are none")
    return bytes(content)


def _bytearray(content: Any = b"", encoding: Any = None) -> bytearray:
    return bytearray(_bytes(content, encoding))


_TYPE_OF_ARRAYS = object()
"""Stands for ``numpy.ndarray``, which is named and never called."""
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _TYPE_OF_ARRAYS,
    ("numpy", "dtype"): PickledDtype,
    ("_codecs", "encode"): _latin1,
    **{(module, "bytes"): _bytes for module in ("builtins", "__builtin__")},
    **{(module, "bytearray"): _bytearray for module in ("builtins", "__builtin__")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): PickledArray for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): array_of_buffer for core in ("core", "_core")},
}
_FUNCTIONS = tuple(value for value in _ALLOWED.values() if value is not _TYPE_OF_ARRAYS)
_KEYS = (str, bytes, int, float, type(None), np.generic)
"""What a dictionary may be keyed by. To hash a tuple of tuples can take for ever."""
_LITERALS = frozenset(
    f"{kind}{size}"
    for kind, sizes in {
        "INT": ("",),
        "BININT": ("", "1", "2"),
        "LONG": ("", "1", "4"),
        "FLOAT": ("",),
        "BINFLOAT": ("",),
        "UNICODE": ("",),
        "BINUNICODE": ("", "8"),
        "SHORT_BINUNICODE": ("",),
        "STRING": ("",),
        "BINSTRING": ("",),
        "SHORT_BINSTRING": ("",),
        "BINBYTES": ("", "8"),
        "SHORT_BINBYTES": ("",),
        "BYTEARRAY8": ("",),
    }.items()
    for size in sizes
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Machine:
    """Stack, marks and memory of a pickle's program."""

    def __init__(self, max_bytes: int):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.room = max_bytes
        self.steps: dict[str, Callable[[Any], None]] = {
            name.removeprefix("_do_").upper(): getattr(self, name) for name in dir(self) if name.startswith("_do_")
        }

    def run(self, content: bytes) -> Any:
        """The value that is left at the end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            name = opcode.name
            if count > _MAX_OPCODES:
                raise UnsafePickleError(f"more than {_MAX_OPCODES} steps")
            if name in _LITERALS:
                self._push_literal(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name == "STOP":
                return self._pop()
            elif step := self.steps.get(name):
                step(argument)
            else:
                raise UnsafePickleError(f"an object (opcode {name.lower()})")
        raise UnsafePickleError("no end")

    def _push_literal(self, value: Any) -> None:
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise UnsafePickleError("a whole number of more than a hundred digits")
        self.stack.append(value)

    def _pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise UnsafePickleError("a step without its values")
        return self.stack.pop()

    def _top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise UnsafePickleError("a step without its values")
        return self.stack[-1]

    def _above_mark(self) -> list[Any]:
        if not self.marks:
            raise UnsafePickleError("a step without its values")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _spend(self, value: Any) -> Any:
        """Counts what a function of ours has made anew."""
        self.room -= len(value) if isinstance(value, (bytes, bytearray)) else 0
        if self.room < 0:
            raise UnsafePickleError("more than its size can hold")
        return value

    def _do_proto(self, version: int) -> None:
        if version > 5:
            raise UnsafePickleError(f"protocol {version}")

    def _do_frame(self, size: int) -> None:
        """Frames only help to read ahead."""

    def _do_mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def _do_pop(self, _: None) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self._pop()

    def _do_pop_mark(self, _: None) -> None:
        self._above_mark()

    def _do_dup(self, _: None) -> None:
        self.stack.append(self._top(object))

    def _do_put(self, place: int) -> None:
        if not 0 <= place < _REMEMBERED:
            raise UnsafePickleError("a place in memory beyond all reason")
        self.memo[place] = self._top(object)

    def _do_memoize(self, _: None) -> None:
        self._do_put(len(self.memo))

    def _do_get(self, place: int) -> None:
        if place not in self.memo:
            raise UnsafePickleError("a place in memory that is empty")
        self.stack.append(self.memo[place])

    _do_binput = _do_long_binput = _do_put
    _do_binget = _do_long_binget = _do_get

    def _do_empty_list(self, _: None) -> None:
        self.stack.append([])

    def _do_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def _do_empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def _do_list(self, _: None) -> None:
        self.stack.append(self._above_mark())

    def _do_tuple(self, _: None) -> None:
        self.stack.append(tuple(self._above_mark()))

    def _do_dict(self, _: None) -> None:
        values = self._above_mark()
        self.stack.append({})
        self._put_in(values)

    def _tuple_of(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def _do_tuple1(self, _: None) -> None:
        self._tuple_of(1)

    def _do_tuple2(self, _: None) -> None:
        self._tuple_of(2)

    def _do_tuple3(self, _: None) -> None:
        self._tuple_of(3)

    def _do_append(self, _: None) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _do_appends(self, _: None) -> None:
        values = self._above_mark()
        self._top(list).extend(values)

    def _do_setitem(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._put_in([key, value])

    def _do_setitems(self, _: None) -> None:
        self._put_in(self._above_mark())

    def _put_in(self, values: list[Any]) -> None:
        target = self._top(dict)
        if len(values) % 2:
            raise UnsafePickleError("a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise UnsafePickleError(f"a dictionary with a {type(key).__name__} as key")
            target[key] = value

    def _do_global(self, name: str) -> None:
        self._push_global(*name.split(" ", 1))

    def _do_stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        self._push_global(module, name)

    def _push_global(self, module: Any, name: Any = "") -> None:
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in _ALLOWED:
            raise UnsafePickleError(f"{module}.{name}"[:120] if isinstance(module, str) else "a name that is none")
        self.stack.append(_ALLOWED[module, name])

    def _do_reduce(self, _: None) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(arguments, tuple) or not any(function is allowed for allowed in _FUNCTIONS):
            raise UnsafePickleError("a call of something that is no function")
        self.stack.append(self._spend(function(*arguments)))

    def _do_build(self, _: None) -> None:
        state = self._pop()
        self._top((PickledArray, PickledDtype)).build(state)  # pyright: ignore[reportArgumentType]


class _Unfolding:
    """Turns what was taken down into arrays and plain data, of a size that is counted as if nothing were shared."""

    def __init__(self, max_bytes: int):
        self.room = max_bytes
        self._known: dict[int, tuple[Any, int]] = {}
        self._open: set[int] = set()

    def plain(self, value: Any, depth: int = 0) -> tuple[Any, int]:
        """The value, and how many places it has."""
        if value is None or isinstance(value, (str, bytes, bytearray, bool, int, float, np.generic)):
            return value, 1
        if id(value) in self._known:
            return self._known[id(value)]
        if id(value) in self._open:
            raise UnsafePickleError("a list that holds itself")
        if depth > _MAX_DEPTH:
            raise UnsafePickleError(f"lists nested more than {_MAX_DEPTH} deep")
        self._open.add(id(value))
        found = self._known[id(value)] = self._unfolded(value, depth + 1)
        self._open.discard(id(value))
        if found[1] > _MAX_PLACES:
            raise UnsafePickleError(f"lists of more than {_MAX_PLACES} places")
        return found

    def _unfolded(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, PickledArray):
            array = value.numpy()
            self.room -= array.nbytes
            if self.room < 0:
                raise UnsafePickleError("more arrays than its size can hold")
            return array, 1
        if isinstance(value, dict):
            contents = [self.plain(content, depth) for content in value.values()]
            made: Any = {key: content for key, (content, _) in zip(value, contents, strict=True)}
        elif isinstance(value, (list, tuple)):
            contents = [self.plain(content, depth) for content in value]
            made = type(value)(content for content, _ in contents)
        else:
            raise UnsafePickleError(f"an object of {type(value).__name__}")
        return made, 1 + sum(count for _, count in contents)


def restricted_unpickle(path: Path | str) -> Any:
    """Reads a pickle that may come from a stranger.

    It admits lists, dictionaries, tuples, text, bytes, numbers, None and NumPy arrays and scalars of numbers, truth
    values or text (as written by NumPy 1 and 2).

    Args:
        path: The pickle.

    Returns:
        What it holds.

    Raises:
        UnsafePickleError: If it holds, or asks for, anything else, is no ordinary file, larger than `MAX_BYTES` or
            unfolds to more than that, or cannot be read.
    """
    path = Path(path)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnsafePickleError("no content of its own (it is no ordinary file)")
        if found.st_size > MAX_BYTES:
            raise UnsafePickleError(f"{found.st_size / 2**30:.1f} GiB")
        content = path.read_bytes()
        taken_down = _Machine(MAX_BYTES).run(content)
        return _Unfolding(2 * MAX_BYTES).plain(taken_down)[0]
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path} is refused because it holds {error}, and only plain data and NumPy arrays are read from pickles: "
            "write it anew with lists, dictionaries, strings and arrays."
        ) from None
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file may fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnsafePickleError(f"{path} is not a readable pickle ({reason}): fetch or write it anew.") from error
