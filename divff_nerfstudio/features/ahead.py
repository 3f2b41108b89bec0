"""Features of many frames in order, while threads already prepare those of the next frames."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from divff_nerfstudio.features.sources import FeatureSource
from divff_nerfstudio.features.store import FrameFeatures

_MAX_WORKERS = {"cuda": 8}
"""Threads that prepare frames, at most; one beside a CPU, which computes the features, too."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def features_of(source: FeatureSource, frames: Sequence[int]) -> Generator[FrameFeatures, None, None]:
    """Features of frames, one after the other.

    On a GPU as many frames as the source wants are encoded in one go. On a CPU it is one, so that a store does not
    depend on where an extraction was interrupted.

    Args:
        source: The source.
        frames: Indices of the frames in the scene.
    """
    kind = source.device.type
    at_once = source.frames_at_once if kind == "cuda" else 1
    workers = min(_MAX_WORKERS.get(kind, 1), os.cpu_count() or 1)
    prepared = ahead(source.prepare, frames, workers, workers + at_once)
    try:
        while part := list(islice(prepared, at_once)):
            yield from source.encode(part)
    finally:
        prepared.close()


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, max_pending: int
) -> Generator[Result, None, None]:
    """The results of some work on each item, in order, done by threads before they are asked for.

    Args:
        work: The work; what it raises is raised where its result would come.
        items: What to work on.
        workers: Number of threads.
        max_pending: Results that are begun or wait, at most.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    pending: deque[Future[Result]] = deque()
    rest = iter(items)
    try:
        pending.extend(pool.submit(work, item) for item in islice(rest, max_pending))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
