"""How the benchmarks take time, and what they say of the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch


def measure(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Medians over several runs, after one that is not counted; a card has done each before the next begins."""
    run()
    taken = [measure_stretch(run, 1) for _ in range(repeats)]
    return {name: statistics.median(each[name] for each in taken) for name in taken[0]}


def measure_stretch(run: Callable[[], object], count: int) -> dict[str, float]:
    """Means over runs one behind the other, between which nobody waits for a card."""
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        run()
    wait()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": round(seconds / count, 7), "cpu_seconds": round(cpu_seconds / count, 7)}


def wait() -> None:
    """Waits until a card has done all that it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, object]:
    """Processor, cores, GPU and PyTorch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
    }
