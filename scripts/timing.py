"""Seconds of a function, by the clock and of the processors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def measure(repeats: int, run: Callable[[], object]) -> dict[str, float]:
    """Medians of runs after one that is not counted.

    Args:
        repeats: How many runs are counted.
        run: What is measured.
    """
    run()
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - wall)
        cpu_seconds.append(time.process_time() - cpu)
    return {
        "seconds": round(statistics.median(seconds), 5),
        "least_seconds": round(min(seconds), 5),
        "cpu_seconds": round(statistics.median(cpu_seconds), 5),
    }
