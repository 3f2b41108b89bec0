"""A CUDA card and the host beside it: what is asked of one, and how numbers pass between them without waiting."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from divff_nerfstudio.errors import DivffError


def is_card(device: torch.device | str) -> bool:
    """Whether a device is a CUDA card."""
    return torch.device(device).type == "cuda"


def require_card(device: str, option: str) -> None:
    """Raises DivffError where a device is asked for by an option, is a CUDA card, and there is none."""
    if is_card(device) and not torch.cuda.is_available():
        raise DivffError(
            f"{option} {device}: torch finds no CUDA card here (none, no driver, or a torch without CUDA): see to it "
            f"with nvidia-smi, or give {option} cpu."
        )


@contextlib.contextmanager
def matrix_products(precision: Literal["highest", "high"]) -> Iterator[None]:
    """Has a card take the block's matrix products in single precision ("highest"), or in TF32 ("high"): several
    times as fast, with ten bits of each factor."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def free_bytes(device: torch.device | str) -> int | None:
    """Memory that can be had on a card, what PyTorch holds without using it included; None elsewhere."""
    if not is_card(device):
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if _graphs:  # what is held without being used may be theirs
        return free
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def wait_for(device: torch.device | str) -> None:
    """Waits until a card has computed all that it was asked for; elsewhere nothing is ever left to wait for."""
    if is_card(device):
        torch.cuda.synchronize(device)


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; to a card it goes by pinned memory, and the host does not wait for it."""
    if not is_card(device) or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def generator_of(device: torch.device | str) -> torch.Generator:
    """The generator that a device's random numbers come from where nobody names another."""
    if not is_card(device):
        return torch.default_generator
    index = torch.device(device).index
    return torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]


def new_stream(device: torch.device | str) -> torch.cuda.Stream | None:
    """A stream of a card for work that is to be captured; None elsewhere."""
    return torch.cuda.Stream(device) if is_card(device) else None


@contextlib.contextmanager
def beside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Has a card do the block's work in a stream, in order with what comes before and after; without one nothing
    changes.

    Work that is to be captured has to have been done so before.
    """
    if stream is None:
        yield
        return
    usual = torch.cuda.current_stream(stream.device)
    stream.wait_stream(usual)
    with torch.cuda.stream(stream):
        yield
    usual.wait_stream(stream)


class CardGraph:
    """Work of a card that the host gives once and then has done again and again, on what then lies in its memory.

    Args:
        work: Gives the work; it is followed, but nothing is computed yet.
        stream: In which it was done before.

    Raises:
        Exception: If something in the work cannot be captured; the card is then as ready for other work as before.
        DivffError: If it is not.
    """

    def __init__(self, work: Callable[[], None], stream: torch.cuda.Stream | None):
        self._graph, memory = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        usual = torch.cuda.current_stream()
        try:
            # Other threads, such as the viewer's, may ask for memory meanwhile.
            with (
                torch.cuda.stream(usual),  # older PyTorch stays in the graph's own stream where a capture fails
                torch.cuda.graph(self._graph, pool=memory, stream=stream, capture_error_mode="thread_local"),
            ):
                work()
        except BaseException:
            _leave_capture(self._graph, memory)
            raise
        _graphs.add(self)

    def replay(self) -> None:
        """Has the work done once."""
        self._graph.replay()


_graphs: weakref.WeakSet[CardGraph] = weakref.WeakSet()
"""Graphs that hold memory for the work that they do again."""
_failed: list[torch.cuda.CUDAGraph] = []
"""Graphs that were not captured to their end, after which the allocator may go on asking."""


def _leave_capture(graph: torch.cuda.CUDAGraph, memory: tuple[int, int]) -> None:
    """Ends for the allocator and the random generator a capture that has failed, which older PyTorch forgets to: it
    refuses the next random number ("offset increment outside graph capture")."""
    _failed.append(graph)
    device = torch.device("cuda", torch.cuda.current_device())
    generator = generator_of(device)
    try:
        generator.graphsafe_set_state(generator.clone_state())  # a copy takes part in no capture
        with contextlib.suppress(RuntimeError):  # it has ended
            torch._C._cuda_endAllocateToPool(device.index, memory)
            torch._C._cuda_releasePool(device.index, memory)
        state = generator.get_state()
        torch.rand((), device=device)
        generator.set_state(state)
    except (RuntimeError, AttributeError) as error:
        raise DivffError(
            "Training steps could not be captured as CUDA graphs, and this PyTorch cannot go on behind that: begin "
            "again with --cuda-graphs off, or with a newer torch."
        ) from error


class OnHost:
    """Copies of tensors in the host's memory, which are made anew only when a tensor has changed.

    To read a number from a card, the host has to wait for all that the card still computes.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Tensor, int, Tensor]] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The copy of a tensor.

        Args:
            name: What the tensor is called here.
            tensor: The tensor, as it now is.
        """
        known = self._known.get(name)
        if known is None or known[0] is not tensor or known[1] != tensor._version:
            known = self._known[name] = (tensor, tensor._version, tensor.detach().cpu().clone())
        return known[2]
