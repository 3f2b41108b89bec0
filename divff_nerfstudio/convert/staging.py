"""A folder that is made beside the place it takes in the end, so that a killed conversion goes on or starts clean."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.convert.names import ConvertError
from divff_nerfstudio.locks import locked

_MARKER = "conversion.json"


def fingerprint(path: Path) -> dict[str, Any]:
    """What tells a file, or the files of a folder, from others, without reading them."""
    if not path.exists():
        raise ConvertError(f"{path} is missing: give the path of what is to be converted.")
    told: dict[str, Any] = {"path": str(path.resolve())}
    if not path.is_dir():
        return told | dict(zip(("size", "changed"), _stamp(path), strict=True))
    files = []
    for folder, inner, names in os.walk(path):
        inner[:] = (name for name in inner if not name.startswith("."))  # what is being made may lie there, too
        files += [Path(folder, name) for name in names]
    there = [(str(file.relative_to(path)), *_stamp(file)) for file in sorted(files)]
    return told | {"files": hashlib.sha256(json.dumps(there).encode()).hexdigest()}


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of a file, of the one that a link leads to; of one that is gone, none."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


@contextmanager
def staged(
    output: Path, settings: dict[str, Any], overwrite: bool = False, sources: Iterable[Path] = ()
) -> Iterator[Path]:
    """Gives a hidden folder beside `output` that becomes `output` when the block ends without an error.

    After an error, or when the process is killed, it stays, and the next call with equal settings gets it with what is
    in it; a call with other settings gets an empty one. Files in it must be written atomically.

    Args:
        output: The folder to be made; it must not exist, or be empty.
        settings: All that the content depends on.
        overwrite: Replace what is in `output`.
        sources: What the content is made of.

    Raises:
        ConvertError: If `output` holds something, or one of the sources, or is being written by another process.
    """
    output = output.resolve()  # a link stays, and what is made lies on the disk that it leads to
    for source in sources:
        if source.resolve().is_relative_to(output):
            raise ConvertError(f"{source} lies in {output}, which would be replaced: give a folder beside it.")
    folder = output.with_name(f".{output.name}.partial")
    content = json.loads(json.dumps(settings))
    busy = ConvertError(f"{output} is being written by another process: wait for it, or end it.")
    with locked(output, busy, keep=False):
        if output.exists() and not output.is_dir():
            raise ConvertError(f"{output} is a file: give the path of a folder.")
        if output.is_dir() and not overwrite and any(output.iterdir()):
            raise ConvertError(f"{output} holds something already: give another folder or --overwrite.")
        if _read(folder / _MARKER) != content:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_text(folder / _MARKER, json.dumps(content, indent=1))
        for left in folder.rglob(".*.tmp*"):
            left.unlink()
        yield folder
        if output.is_dir():
            shutil.rmtree(output)
        folder.replace(output)
        (output / _MARKER).unlink()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
