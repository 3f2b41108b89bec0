"""Shows without a card what a step would ask of one: tensors without values, which nobody can wait for."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from divff_nerfstudio.captured_steps import tensors_of

DEVICE = "meta"
"""Its tensors have shapes and gradients, but no values: what reads one, or counts how many are not 0, fails."""
_HERE = Path(__file__).parent.parent / "divff_nerfstudio"


class HostWatch(TorchDispatchMode):
    """Records operations that put the host's values on the device: a card's host waits until they are there.

    A single number is handed over with the operation; `card.sent` goes by pinned memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation and looks at where its tensors are."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        given = [each for each in tensors_of((args, kwargs)) if each.device.type == "cpu" and each.dim()]
        if name == "aten::_to_copy" and args[0].device.type == "cpu":
            given = [args[0]]
        there = [each for each in tensors_of((args, kwargs, result)) if each.device.type == DEVICE]
        if given and there:
            frames = [frame for frame in traceback.extract_stack() if "card.py" in frame.filename or _own(frame)]
            if not any(frame.name == "sent" for frame in frames):
                place = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
                self.found.append(f"{name}{place}")
        return result


def _own(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(_HERE)
