"""How the benchmarks take time, and what they say of the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch


def measure(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Medians over several runs, after one that is not counted."""
    run()
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - wall)
        cpu_seconds.append(time.process_time() - cpu)
    return {"seconds": round(statistics.median(seconds), 5), "cpu_seconds": round(statistics.median(cpu_seconds), 5)}


def machine() -> dict[str, object]:
    """Processor, cores and GPU."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpu": gpu}
