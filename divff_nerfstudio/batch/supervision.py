"""Takes the scenes of a batch through their jobs, until each is finished or has failed for good."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from divff_nerfstudio.batch.engines import Engine, Handle
from divff_nerfstudio.batch.plans import Plan
from divff_nerfstudio.batch.processes import Patience
from divff_nerfstudio.batch.records import (
    AGAIN,
    HEARTBEAT,
    OUTCOME,
    STATE,
    End,
    Heartbeat,
    Outcome,
    Standing,
    State,
    read_record,
    write_record,
)
from divff_nerfstudio.batch.worker import Job, lack_of_memory
from divff_nerfstudio.stages import Stage, fault_of, finished_seconds

_MARGIN = 60.0
"""Seconds by which a job may be silent longer than its command, which it watches itself."""
_MEMORY_REASONS = ("OUT_OF_MEMORY",)


@dataclass(frozen=True)
class Limits:
    """How much is borne."""

    attempts: int = 3
    """How often a job is started that was killed, hung, or lost with its machine."""
    patience: Patience = field(default_factory=Patience)
    """How long jobs are waited for."""
    poll: float = 2.0
    """Seconds between two looks at the jobs."""


@dataclass
class _Scene:
    """A scene, and the job that is at it."""

    plan: Plan
    stages: list[Stage]
    state: State = field(default_factory=State)
    job: Job | None = None
    handle: Handle | None = None
    signs: int = -1
    heard: float = 0.0
    over: float | None = None
    told: float | None = None
    finished: dict[str, float] = field(default_factory=dict)


class Supervisor:
    """Has an engine do what is not finished.

    Args:
        plans: What is done for each scene.
        engine: Runs the jobs.
        limits: How much is borne.
        on_change: Called with a scene's name and where it stands, when that changes.
        on_end: Called with the number of jobs that are at work when they are told to end.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        engine: Engine,
        limits: Limits | None = None,
        on_change: Callable[[str, State], object] = lambda name, state: None,
        on_end: Callable[[int], object] = lambda jobs: None,
    ):
        self.engine, self.limits = engine, limits or Limits()
        self._on_change, self._on_end = on_change, on_end
        self._scenes = [_Scene(plan, [step.stage(_never) for step in plan.steps]) for plan in plans]

    def run(self) -> dict[str, State]:
        """Works until nothing is left to do.

        Returns:
            Where each scene stands.

        Raises:
            KeyboardInterrupt: If that came; all jobs have then ended in order.
        """
        try:
            for scene in self._scenes:
                self._begin(scene)
            while any(scene.state.standing in ("waiting", "running") for scene in self._scenes):
                self._submit()
                time.sleep(self.limits.poll)
                self._look()
        except BaseException:
            self._end_all()
            raise
        return {scene.plan.name: scene.state for scene in self._scenes}

    # What is to be done.

    def _begin(self, scene: _Scene) -> None:
        """Finds out what is finished of a scene."""
        phase = self._phase(scene)
        if phase is None:
            self._set(scene, "finished")
            return
        needs = scene.plan.phases[phase][0].needs
        refused = self.engine.refuse(needs)
        if refused is not None:
            self._set(scene, "failed", f"No job can do this: {refused}; lower its needs, or choose another machine.")
        else:
            self._set(scene, "waiting", phase=phase)

    def _phase(self, scene: _Scene) -> int | None:
        """Looks at all that a scene's steps have left: the first phase that is not finished; None where all are."""
        markers = scene.plan.folder / "stages"
        found = {stage.name: finished_seconds(stage, markers) for stage in scene.stages}
        scene.finished = {name: seconds for name, seconds in found.items() if seconds is not None}
        for number, phase in enumerate(scene.plan.phases):
            if any(step.name not in scene.finished for step in phase):
                return number
        return None

    def _submit(self) -> None:
        """Hands the engine what waits, as far as it takes it."""
        waiting = [scene for scene in self._scenes if scene.state.standing == "waiting"]
        jobs: dict[str, _Scene] = {}
        for scene in waiting:
            scene.job = Job(uuid.uuid4().hex, scene.plan, scene.state.phase, self.limits.patience)
            jobs[scene.job.id] = scene
        taken: list[_Scene] = []
        for job, handle in self.engine.submit([scene.job for scene in waiting if scene.job is not None]):
            scene = jobs[job.id]
            scene.handle, scene.signs, scene.over, scene.told = handle, -1, None, None
            scene.heard = time.monotonic()
            taken.append(scene)
        for scene in taken:  # behind all of them: a Ctrl-C while files are written would leave the rest without handles
            self._set(scene, "running", attempts=scene.state.attempts + 1)

    # What becomes of it.

    @property
    def at_work(self) -> int:
        """How many jobs have not ended, as far as that was seen."""
        return len(list(self._running()))

    def _running(self) -> Iterator[_Scene]:
        return (scene for scene in self._scenes if scene.handle is not None)

    def _look(self) -> None:
        """Looks at the jobs that are under way."""
        running = list(self._running())
        over = self.engine.over([scene.handle for scene in running if scene.handle is not None])
        now = time.monotonic()
        for scene in running:
            if scene.handle in over or scene.over is not None:
                scene.over = now if scene.over is None else scene.over
                outcome = self._outcome(scene)
                if outcome is not None or now - scene.over > self.engine.settle:
                    self._judge(scene, outcome)
            else:
                self._listen(scene, now)

    def _listen(self, scene: _Scene, now: float) -> None:
        """Ends a job that was heard and is heard no more; its command it ends itself."""
        assert scene.job is not None and scene.handle is not None
        sign = read_record(scene.plan.folder / HEARTBEAT, Heartbeat)
        if sign is not None and sign.job == scene.job.id and sign.count != scene.signs:
            scene.signs, scene.heard = sign.count, now
        patience = self.limits.patience
        if scene.told is not None:
            if now - scene.told > 2 * patience.grace:
                self.engine.kill(scene.handle)
        elif scene.signs >= 0 and now - scene.heard > patience.silence + patience.grace + _MARGIN:
            scene.told = now
            self.engine.end(scene.handle)

    def _outcome(self, scene: _Scene) -> Outcome | None:
        """How a scene's job says that it has ended."""
        found = read_record(scene.plan.folder / OUTCOME, Outcome)
        return found if found is not None and scene.job is not None and found.job == scene.job.id else None

    def _judge(self, scene: _Scene, outcome: Outcome | None) -> None:
        """What comes after a job: the next phase, another attempt, or nothing, by what its files hold."""
        assert scene.handle is not None
        handle, scene.handle = scene.handle, None
        phase = self._phase(scene)
        if phase is None:
            self._set(scene, "finished")
        elif phase > scene.state.phase:
            self._set(scene, "waiting", phase=phase, attempts=0)
        else:
            end, sentence = self._why(scene, outcome, handle)
            if end in AGAIN and scene.state.attempts < self.limits.attempts:
                self._set(scene, "waiting", sentence, phase=phase, attempts=scene.state.attempts)
            else:
                times = f" (tried {scene.state.attempts} times)" if scene.state.attempts > 1 else ""
                self._set(scene, "failed", f"{sentence}{times}")

    def _why(self, scene: _Scene, outcome: Outcome | None, handle: Handle) -> tuple[End, str]:
        """How a job has ended that has not done its work, and a sentence."""
        if outcome is not None and outcome.end != "finished":
            return outcome.end, outcome.sentence
        if outcome is not None:
            stage = next(stage for stage in scene.stages if stage.name not in scene.finished)
            fault = fault_of(stage)
            return (
                "failed",
                f"{stage.name} ended well, and yet {fault or 'it left nothing'}: start the batch again.",
            )
        reason = self.engine.reason(handle)
        if reason in _MEMORY_REASONS:
            return "memory", lack_of_memory(self._step_of(scene))
        if scene.told is not None:
            return "hung", f"Its job gave no sign of life for {self.limits.patience.silence:g} s and was ended."
        told = f" ({reason})" if reason else ""
        return "killed", (
            f"Its job ended without a word{told}, as when it is killed or its machine is lost: see "
            f"{scene.plan.folder / 'log.txt'}; where memory was short, give it more (gigabytes)."
        )

    def _step_of(self, scene: _Scene):
        sign = read_record(scene.plan.folder / HEARTBEAT, Heartbeat)
        steps = {step.name: step for step in scene.plan.steps}
        return steps.get(sign.step if sign is not None else "", scene.plan.phases[scene.state.phase][0])

    def _set(
        self,
        scene: _Scene,
        standing: Standing,
        sentence: str = "",
        phase: int | None = None,
        attempts: int | None = None,
    ) -> None:
        """Notes where a scene stands."""
        before = scene.state
        scene.state = State(
            standing=standing,
            sentence=sentence,
            attempts=before.attempts if attempts is None else attempts,
            phase=before.phase if phase is None else phase,
            since=time.time(),
            job=scene.job.id if standing == "running" and scene.job is not None else "",
            seconds=scene.finished,
        )
        write_record(scene.plan.folder / STATE, scene.state)
        self._on_change(scene.plan.name, scene.state)

    # The end.

    def _end_all(self) -> None:
        """Ends all jobs in order, and waits for them; what they have saved is gone on from by the next batch."""
        self._on_end(self.at_work)
        for scene in self._running():
            assert scene.handle is not None
            self.engine.end(scene.handle)
        began = time.monotonic()
        left = list(self._running())
        while left:
            over = self.engine.over([scene.handle for scene in left if scene.handle is not None])
            for scene in left:
                if scene.handle in over:
                    scene.handle = None
                    self._set(scene, "finished" if self._phase(scene) is None else "waiting")
            left = [scene for scene in left if scene.handle is not None]
            if left and time.monotonic() - began > 2 * self.limits.patience.grace:
                for scene in left:
                    assert scene.handle is not None
                    self.engine.kill(scene.handle)
            time.sleep(min(self.limits.poll, 0.5))


def _never(step: object) -> None:
    raise AssertionError("the batch itself runs no step")
