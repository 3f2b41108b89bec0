"""Damage of every kind for the files of any format, and what may come of it.

A `Mutation` damages a file in place. `mutations_of` lists those of a file by its suffix, the same ones for the same
seed; `outcome` runs what reads it, within bounds of time and memory, and lets nothing but our own errors pass.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from divff_nerfstudio.errors import DivffError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Mutation:
    """One damage to a file."""

    name: str
    """What is done, for messages."""
    apply: Callable[[Path], object]
    """Does it to the file at a path."""


WORK, PATIENCE = 30.0, 300.0
"""Seconds of a core, and on the clock, after which something never ends; all that does takes far less."""


@contextlib.contextmanager
def bounded(more_bytes: int = 2**31) -> Iterator[None]:
    """Ends what never ends with `TimeoutError`, and what takes too much memory with `MemoryError`."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"it took more than {WORK} s of a core or {PATIENCE} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (used + more_bytes, hard))
    signal.setitimer(signal.ITIMER_PROF, WORK)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before.items():
            signal.signal(number, handler)


def outcome(read: Callable[[], Value]) -> Value | DivffError:
    """What a reader gives for a damaged file: a value, or our own error in one sentence.

    Raises:
        AssertionError: If it ends in any other way.
    """
    try:
        with bounded():
            return read()
    except DivffError as error:
        said = str(error)
        assert said.endswith(".") and "\n" not in said and len(said) < 2000, said[:2000]
        return error
    except (Exception, TimeoutError) as error:
        raise AssertionError(f"{type(error).__name__}: {str(error)[:300]}") from error


def mutations_of(path: Path, seed: int = 0, places: int = 12) -> list[Mutation]:
    """Damages of a file: of its place, its bytes, and what it holds.

    Args:
        path: The file, undamaged; it is not changed.
        seed: Decides what is left to chance.
        places: How many places of a JSON document, drawn at random, are damaged in each way.
    """
    content = path.read_bytes()
    found = [*of_place(), *of_bytes(content, seed)]
    if path.suffix == ".json":
        found += of_json(content, seed, places)
    elif path.suffix == ".npy":
        found += of_array(np.load(path))
    elif path.suffix == ".npz":
        found += of_arrays(path)
    return found


def of_place() -> list[Mutation]:
    """What may stand in a file's place."""

    def replaced(make: Callable[[Path], object], path: Path) -> None:
        path.unlink()
        make(path)

    return [
        Mutation("missing", Path.unlink),
        Mutation("a pipe", partial(replaced, os.mkfifo)),
        Mutation("a folder", partial(replaced, Path.mkdir)),
        Mutation("a link to nowhere", partial(replaced, lambda path: path.symlink_to("nowhere"))),
        Mutation("a link to itself", partial(replaced, lambda path: path.symlink_to(path.name))),
    ]


def of_bytes(content: bytes, seed: int = 0, flips: int = 8) -> list[Mutation]:
    """Cuts, flipped bits, bytes too many."""
    chance = random.Random(seed)
    changed = {"empty": b"", "one byte": content[:1], "twice": content * 2, "garbage behind": content + b"\x00garbage"}
    for share in (0.05, 0.3, 0.6, 0.95):
        changed[f"cut at {share}"] = content[: int(share * len(content))]
    changed["cut by one"] = content[:-1]
    changed["zeros"] = bytes(len(content))
    changed["noise"] = chance.randbytes(len(content))
    for _ in range(flips if content else 0):
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        changed[f"bit {bit} of byte {place} flipped"] = bytes(flipped)
    return [_written(name, value) for name, value in changed.items()]


class _Literal(str):
    """Written into JSON as it is."""

    __slots__ = ()


_INSTEAD: dict[str, Any] = {
    "null": None,
    "a text": "x",
    "truth": True,
    "a list": [],
    "a dictionary": {},
    "NaN": _Literal("NaN"),
    "Infinity": _Literal("-Infinity"),
    "1e999": _Literal("1e999"),
    "huge": 10**30,
    "large": 1e12,
    "negative": -7,
    "half": 0.5,
    "nested deep": _Literal("[" * 5000 + "]" * 5000),
}


def of_json(content: bytes, seed: int = 0, places: int = 12) -> list[Mutation]:
    """Values of another kind or size at places of a document, keys that are dropped or stand twice, lists that are
    emptied, cut, repeated and reversed."""
    chance = random.Random(seed)
    document = json.loads(content)
    found: list[Mutation] = [
        _written("another document", b"[]"),
        _written("no document", b"null"),
        _written("a mark in front", b"\xef\xbb\xbf" + content),
        _written("in latin-1", content.replace(b'"', b'"\xff', 1)),
        _written("in 16 bits", content.decode().encode("utf-16")),
    ]
    everywhere = [place for place in _places(document) if place]
    upper = [place for place in everywhere if len(place) == 1]
    drawn = upper + chance.sample(everywhere, min(places, len(everywhere)))
    for place in dict.fromkeys(drawn):
        at = ".".join(map(str, place))
        for name, value in _INSTEAD.items():
            found.append(_written(f"{name} at {at}", _dumped(_changed(document, place, lambda _, v=value: v))))
        found.append(_written(f"nothing at {at}", _dumped(_changed(document, place, None))))
        value = _value(document, place)
        if isinstance(value, list) and value:
            for name, change in {"cut": value[:-1], "doubled": value * 2, "reversed": value[::-1]}.items():
                found.append(_written(f"{name} at {at}", _dumped(_changed(document, place, lambda _, v=change: v))))
        if isinstance(place[-1], str):
            found.append(_written(f"key twice at {at}", _with_twin(document, place)))
    return found


def of_array(array: np.ndarray) -> list[Mutation]:
    """Arrays of another type, shape, order or content in an .npy file."""
    changed: dict[str, Any] = {
        "transposed": array.T.copy(),
        "last axes swapped": np.swapaxes(array, -1, -2).copy() if array.ndim > 1 else array[::-1].copy(),
        "in Fortran's order": np.asfortranarray(array),
        "an axis more": array[None],
        "flat": array.reshape(-1),
        "cut": array[:-1],
        "empty": array[:0],
        "reversed": array[::-1].copy(),
        "as text": array.astype("U8"),
        "as objects": array.astype(object),
        "as double": array.astype(np.float64),
        "as bytes": array.astype(np.uint8),
        "big-endian": array.astype(array.dtype.newbyteorder(">")),
        "structured": np.zeros(array.shape, [("x", "f4")]),
        "complex": array.astype(np.complex64),
        "all largest": np.full_like(array, _largest(array.dtype)),
    }
    if array.dtype.kind == "f":
        for name, value in {"NaN": np.nan, "infinity": np.inf}.items():
            changed[f"one {name}"] = _with_one(array, value)
            changed[f"all {name}"] = np.full_like(array, value)
        changed["a thousand times as long"] = np.clip(array.astype(np.float64) * 1000, -6e4, 6e4).astype(array.dtype)
        changed["all zero"] = np.zeros_like(array)
    elif array.dtype.kind in "iu":
        changed["one largest"] = _with_one(array, _largest(array.dtype))
    found = [_written(name, _npy(value)) for name, value in changed.items()]
    whole = _npy(array)
    for name, old, new in (
        ("shape beyond the file", str(array.shape), str((2**40, *array.shape[1:]))),
        ("negative shape", str(array.shape), str((-1, *array.shape[1:]))),
        ("header that calls", "False", "open()"),
    ):
        found.append(_written(name, _with_header(whole, old, new)))
    return found


def of_arrays(path: Path) -> list[Mutation]:
    """The same for each array of an .npz file, beside names that are missing or misspelt, and a bomb."""
    with np.load(path) as opened:
        arrays = {name: opened[name] for name in opened.files}
    found = [Mutation("a bomb", partial(_write_bomb, next(iter(arrays), "x")))]
    for name, array in arrays.items():
        rest = {other: value for other, value in arrays.items() if other != name}
        found.append(Mutation(f"without {name}", partial(_savez, rest)))
        found.append(Mutation(f"{name} misspelt", partial(_savez, {**rest, name + "s": array})))
        for change in ("T", "object", "f8", "empty", "largest"):
            value = {
                "T": lambda array=array: array.T.copy(),
                "object": lambda array=array: array.astype(object),
                "f8": lambda array=array: array.astype(np.float64) + 0.5,
                "empty": lambda array=array: array[:0],
                "largest": lambda array=array: np.full_like(array, _largest(array.dtype)),
            }[change]()
            found.append(Mutation(f"{name} {change}", partial(_savez, {**rest, name: value})))
        if array.dtype.kind == "f":
            found.append(Mutation(f"{name} NaN", partial(_savez, {**rest, name: _with_one(array, np.nan)})))
    return found


def copy_of(source: Path, target: Path) -> Path:
    """A fresh copy of a folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target


def _written(name: str, content: bytes) -> Mutation:
    return Mutation(name, lambda path: path.write_bytes(content))


def _places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    yield place
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, content in entries:
        yield from _places(content, (*place, key))


def _value(document: Any, place: tuple) -> Any:
    for key in place:
        document = document[key]
    return document


def _changed(document: Any, place: tuple, change: Callable[[Any], Any] | None) -> Any:
    """The document with another value at a place, or without it; what is not on the way is shared."""
    key, *rest = place
    changed = dict(document) if isinstance(document, dict) else list(document)
    if rest:
        changed[key] = _changed(document[key], tuple(rest), change)
    elif change is None:
        del changed[key]
    else:
        changed[key] = change(document[key])
    return changed


def _dumped(document: Any) -> bytes:
    if isinstance(document, _Literal):
        return document.encode()
    if isinstance(document, dict):
        return b"{" + b", ".join(json.dumps(key).encode() + b": " + _dumped(v) for key, v in document.items()) + b"}"
    if isinstance(document, list):
        return b"[" + b", ".join(map(_dumped, document)) + b"]"
    return json.dumps(document).encode()


def _with_twin(document: Any, place: tuple) -> bytes:
    mark = "\x00twin\x00"
    value = _value(document, place)
    owner = _value(document, place[:-1])
    doubled = {**owner, mark: value}
    whole = _changed(document, place[:-1], lambda _: doubled) if len(place) > 1 else doubled
    return _dumped(whole).replace(json.dumps(mark).encode(), json.dumps(place[-1]).encode())


def _largest(dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        return np.finfo(dtype).max
    return np.iinfo(dtype).max if dtype.kind in "iu" else True


def _with_one(array: np.ndarray, value: Any) -> np.ndarray:
    changed = array.copy()
    if changed.size:
        changed.reshape(-1)[changed.size // 2] = value
    return changed


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _with_header(content: bytes, old: str, new: str) -> bytes:
    end = 10 + int.from_bytes(content[8:10], "little")
    header = content[10:end].decode("latin1").replace(old, new).rstrip()
    padded = header.ljust(max(end - 11, len(header))) + "\n"
    return content[:8] + len(padded).to_bytes(2, "little") + padded.encode("latin1") + content[end:]


def _savez(arrays: dict[str, np.ndarray], path: Path) -> None:
    np.savez(path, **arrays)


def _write_bomb(name: str, path: Path) -> None:
    """An array of 4 GiB of zeros in a few kilobytes."""
    import zipfile

    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{name}.npy", "w", force_zip64=True) as file,
    ):
        head = io.BytesIO()
        described = {"descr": "|u1", "fortran_order": False, "shape": (2**16, 2**16)}
        np.lib.format.write_array_header_1_0(head, described)
        file.write(head.getvalue())
        file.write(bytes(2**22))
