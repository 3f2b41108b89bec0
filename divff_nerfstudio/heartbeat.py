"""Signs of life of long work, for who watches over it: a small JSON file, written anew as the work goes on.

Work that is not watched has no such file, and `beat` costs it nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import Amount, Number, Record, read_json

FILE = "DIVFF_HEARTBEAT"
"""Environment variable with the file's path."""
SECONDS = 2.0
"""Time between two signs, at least."""


class Beat(Record, extra="forbid"):
    """A sign of life."""

    process: Amount
    """Number of the process."""
    done: Amount
    """How many steps, frames or pictures are behind it."""
    of: Amount | None = None
    """Of how many."""
    loss: Number | None = None
    """The last loss, if it is a training and that is finite."""
    memory: Amount | None = None
    """The process's largest resident memory so far, in bytes."""
    card_memory: Amount | None = None
    """The largest memory on the card that it has asked for so far, in bytes."""


_last = -math.inf
"""When the last sign was written, by the monotonic clock."""
_calls = 0


def beat(done: int | None = None, of: int | None = None, loss: Any = None) -> None:
    """Gives a sign of life, if somebody watches and the last one is some time ago.

    A disk that is full does not stop the work: its watcher sees that the signs end.

    Args:
        done: Steps, frames or pictures behind the work; None: as many as this was called.
        of: Of how many.
        loss: The last loss, a number or a tensor of one, which is only read when the sign is written.
    """
    path = os.environ.get(FILE)
    if path is None:
        return
    global _last, _calls
    _calls += 1
    done = _calls if done is None else done
    now = time.monotonic()
    if now - _last < SECONDS and done != of:
        return
    _last = now
    value = None if loss is None else float(loss)
    content = {
        "process": os.getpid(),
        "done": done,
        "of": of,
        "loss": value if value is not None and math.isfinite(value) else None,
        "memory": peak_memory(children=False),
        "card_memory": _card_memory(),
    }
    with contextlib.suppress(OSError):
        write_text(path, json.dumps(content), sync=False)


def read_beat(path: Path) -> Beat | None:
    """The last sign of life in a file; None if there is none."""
    if not path.is_file():
        return None
    with contextlib.suppress(DivffError):
        return read_json(path, Beat, "a sign of life", "delete it")
    return None


def peak_memory(children: bool = True) -> int | None:
    """Largest resident memory of this process in bytes; None on Windows.

    Args:
        children: Or of any that it has started and ended, whichever is larger.
    """
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)[: 1 + children]
    return unit * max(resource.getrusage(who).ru_maxrss for who in whose)


def _card_memory() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_reserved())
