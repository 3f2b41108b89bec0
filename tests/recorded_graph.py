"""Stands for a CUDA graph on a CPU: operations are recorded once, and done again on the same tensors.

As in a graph, Python does not run again: numbers stay what they were, and tensors are read where they lay. While it is
recorded, nothing changes: what operations have written is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
"""Operations for whose outcome the host waits."""


class RecordedGraph:
    """Records a work, and does it again.

    Raises:
        RuntimeError: If the host would have to wait for something.
    """

    def __init__(self, work: Callable[[], None]):
        self._recorder, random = _Capture(), torch.get_rng_state()
        try:
            with self._recorder:
                work()
        finally:
            torch.set_rng_state(random)
            with torch.no_grad():
                for tensor, before in reversed(self._recorder.written):
                    tensor.copy_(before)
        self.replays = 0

    def replay(self) -> None:
        """Does all of it."""
        self.replays += 1
        with torch.no_grad():
            for operation, args, kwargs, results in self._recorder.done:
                again = operation(*args, **kwargs)
                for old, new in zip(results, tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Recorder(TorchDispatchMode):
    """Takes note of operations. PyTorch rounds some of them otherwise while anybody does."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Sequence[Any], Mapping[str, Any], list[Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Does an operation, and takes note of it."""
        given = tree_map(_as_it_lies, (tuple(args), kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self.done.append((func, *given, tree_leaves(tree_map(_as_it_lies, result))))
        return result


class _Capture(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Refuses an operation that the host would have to wait for."""
        if func._schema.name in WAITING:
            raise RuntimeError(f"{func._schema.name} is not permitted when a stream is capturing")
        if func._schema.name.startswith("aten::index") and any(_is_choice(each) for each in tree_leaves(args[1:])):
            raise RuntimeError("a choice of unknown size is not permitted when a stream is capturing")
        changed = [name for name in func._schema.arguments if name.alias_info and name.alias_info.is_write]
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | (kwargs or {})
        for tensor in tree_leaves([given[each.name] for each in changed if each.name in given]):
            if isinstance(tensor, Tensor):
                self.written.append((tensor.detach(), tensor.detach().clone()))
        return super().__torch_dispatch__(func, types, args, kwargs)


def _as_it_lies(value: Any) -> Any:
    """A tensor's memory in its present shape, which it may change in place."""
    return value.detach() if isinstance(value, Tensor) else value


def _is_choice(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bool
