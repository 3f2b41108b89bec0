"""Jobs by Ray: on this machine, on a cluster, or on Kubernetes, wherever its address leads."""

from __future__ import annotations

import contextlib
import importlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from divff_nerfstudio.batch.engines import EngineError, Handle, Room, working_in
from divff_nerfstudio.batch.entries import Needs
from divff_nerfstudio.batch.worker import Job, run_job

_END_SECONDS = 120.0


def _work(job: Job) -> None:
    """A job as Ray calls it, which tells a task to end as Ctrl-C would."""
    run_job(job, told_by=signal.SIGINT)


class RayEngine:
    """Hands jobs to Ray, which runs each where there are the cores, the memory and the cards for it.

    Args:
        folder: A folder of the batch, in which Ray's processes are started.
        address: Of the cluster, as of ``ray.init``: "auto", "ray://HOST:10001"; None: one is started on this machine,
            which ends with the batch.
        room: What such a one may use of this machine; None: all of it.
        at_once: How many jobs Ray is handed at once, at most; None: all.
    """

    settle = 10.0
    grace = None

    def __init__(self, folder: Path, address: str | None = None, room: Room | None = None, at_once: int | None = None):
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise EngineError(
                "Ray is not installed: uv pip install 'ray[default]', or choose another --engine."
            ) from None
        self._at_once, self._room = at_once, room if address is None else None
        more: dict[str, Any] = {}
        if address is None and room is not None:
            more = {"num_cpus": room.cpus, "num_gpus": len(room.cards), "include_dashboard": False}
        try:
            with working_in(folder):
                self._ray.init(address=address, log_to_driver=False, configure_logging=False, **more)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            told = " ".join(str(error).split())[:300]
            raise EngineError(f"Ray cannot be reached at {address or 'this machine'} ({told}): see to --ray.") from None
        if self._room is not None:  # it keeps a part for its objects, and waits for good for what it lacks
            memory = self._ray.cluster_resources().get("memory", float("inf")) / 2**30
            self._room = replace(self._room, gigabytes=min(self._room.gigabytes, memory))
        self._jobs: dict[Handle, Any] = {}
        self._reasons: dict[Handle, str] = {}

    def refuse(self, needs: Needs) -> str | None:
        """See `Engine`: a cluster may grow, so that it refuses nothing."""
        return None if self._room is None else self._room.refuse(needs)

    def submit(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Handle]]:
        """See `Engine`."""
        for job in jobs:
            if self._at_once is not None and len(self._jobs) >= self._at_once:
                break
            needs = job.needs
            asked: dict[str, Any] = {"num_cpus": needs.cpus or 1, "num_gpus": needs.gpus or 0}
            asked |= {"memory": int(needs.gigabytes * 2**30)} if needs.gigabytes else {}
            # Each job in a process of its own: what one leaves in it would be the next one's.
            remote = self._ray.remote(max_calls=1, max_retries=0, **asked)(_work)
            self._jobs[job.id] = remote.options(name=job.plan.name).remote(job)
            yield job, job.id

    def over(self, handles: Sequence[Handle]) -> set[Handle]:
        """See `Engine`."""
        references = {self._jobs[handle]: handle for handle in handles if handle in self._jobs}
        ended = {handle for handle in handles if handle not in self._jobs}
        if references:
            ready, _ = self._ray.wait(list(references), num_returns=len(references), timeout=0)
            ended |= {references[reference] for reference in ready}
        for handle in ended:
            reference = self._jobs.pop(handle, None)
            if reference is not None:
                self._note(handle, reference)
        return ended

    def _note(self, handle: Handle, reference: Any) -> None:
        """Takes note of why a job has not ended by itself."""
        errors = self._ray.exceptions
        try:
            self._ray.get(reference, timeout=_END_SECONDS)
        except errors.OutOfMemoryError:
            self._reasons[handle] = "OUT_OF_MEMORY"
        except (errors.TaskCancelledError, errors.WorkerCrashedError, errors.RayError) as error:
            self._reasons[handle] = type(error).__name__

    def reason(self, handle: Handle) -> str | None:
        """See `Engine`."""
        return self._reasons.get(handle)

    def end(self, handle: Handle) -> None:
        """See `Engine`: Ray interrupts the task, which ends its command."""
        self._cancel(handle, force=False)

    def kill(self, handle: Handle) -> None:
        """See `Engine`."""
        self._cancel(handle, force=True)

    def _cancel(self, handle: Handle, force: bool) -> None:
        if handle in self._jobs:
            with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.cancel(self._jobs[handle], force=force)

    def close(self) -> None:
        """See `Engine`."""
        self._ray.shutdown()
