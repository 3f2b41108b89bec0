"""Stages: kept, skipped, repeated when they must be, and what goes on where others fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from divff_nerfstudio.stages import Stage, StageError, finished_seconds, run_module, run_stages


class Chain:
    """Three stages that count how often each has run."""

    def __init__(self, folder: Path):
        self.folder, self.ran, self.settings, self.failing = folder, [], {}, ""

    def stage(self, name: str) -> Stage:
        def run():
            if name == self.failing:
                raise StageError("no")
            self.ran.append(name)
            (self.folder / name).write_text("")

        return Stage(name, "a test", run, self.folder / name, self.settings.get(name, {}))

    def __call__(self) -> list[str]:
        self.ran, self.seconds = [], {}
        run_stages([self.stage(name) for name in "abc"], self.folder / "stages", self.seconds)
        return self.ran


@pytest.fixture
def chain(tmp_path):
    return Chain(tmp_path)


def test_finished_stages_are_not_repeated(chain):
    assert chain() == ["a", "b", "c"]
    first = dict(chain.seconds)
    assert chain() == []
    assert chain.seconds == first


def test_an_interrupted_chain_goes_on_where_it_stopped(chain):
    chain.failing = "b"
    with pytest.raises(StageError):
        chain()
    chain.failing = ""
    assert chain() == ["b", "c"]


@pytest.mark.parametrize("lasting", [False, True])
def test_what_another_version_did_counts_if_it_lasts(chain, monkeypatch, lasting):
    stage = replace(chain.stage("a"), lasting=lasting)
    run_stages([stage], chain.folder)
    monkeypatch.setattr("divff_nerfstudio.stages.__version__", "another")
    assert (finished_seconds(stage, chain.folder) is not None) == lasting
    assert finished_seconds(replace(stage, settings={"length": 3}), chain.folder) is None


def test_other_settings_or_a_lost_file_repeat_a_stage_and_what_follows(chain):
    chain()
    chain.settings = {"b": {"length": 3}}
    assert chain() == ["b", "c"]
    assert chain() == []
    (chain.folder / "a").unlink()
    assert chain() == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"seconds": "x"}'])
def test_a_damaged_marker_repeats_the_stage(chain, content):
    chain()
    (chain.folder / "stages" / "c.json").write_text(content)
    assert chain() == ["c"]


def test_a_stage_that_fails_again_is_not_held_for_finished(chain):
    chain()
    chain.settings, chain.failing = {"b": {"length": 3}}, "b"
    with pytest.raises(StageError):
        chain()
    chain.settings, chain.failing = {}, ""
    assert chain() == ["b", "c"]


def test_a_program_that_fails_is_named(tmp_path):
    run_module("json.tool", "--help")
    with pytest.raises(StageError, match="json"):
        run_module("json.tool", str(tmp_path / "missing.json"))


class Branches:
    """Two branches from one root, and a stage that needs both."""

    def __init__(self, folder: Path):
        self.after = {"root": (), "left": ("root",), "right": ("root",), "end": ("left", "right"), "alone": ()}
        self.folder, self.ran, self.settings, self.failing = folder, [], {}, ""

    @property
    def stages(self) -> list[Stage]:
        return [
            Stage(name, "a test", lambda name=name: self.run(name), self.folder, self.settings.get(name, {}), after)
            for name, after in self.after.items()
        ]

    def run(self, name: str) -> None:
        self.ran.append(name)
        if name == self.failing:
            raise StageError("no")

    def __call__(self) -> list[str]:
        self.ran = []
        run_stages(self.stages, self.folder / "stages")
        return self.ran


@pytest.fixture
def branches(tmp_path):
    return Branches(tmp_path)


def test_only_what_needs_a_changed_stage_is_repeated(branches):
    assert branches() == ["root", "left", "right", "end", "alone"]
    branches.settings = {"left": {"length": 3}}
    assert branches() == ["left", "end"]
    branches.settings = {"root": {"length": 3}, "left": {"length": 3}}
    assert branches() == ["root", "left", "right", "end"]


def test_a_stage_that_fails_ends_the_work_which_then_goes_on_from_it(branches):
    branches.failing = "left"
    with pytest.raises(StageError, match=r"^no$"):
        branches()
    assert branches.ran == ["root", "left"]
    branches.failing = ""
    assert branches() == ["left", "right", "end", "alone"]


def test_an_interruption_leaves_nothing_that_only_looks_finished(branches):
    """After a stage that others use was repeated, those are repeated even if the call ended before it came to them."""
    branches()
    branches.settings = {"root": {"length": 3}}

    def interrupted() -> None:
        raise KeyboardInterrupt

    stages = branches.stages
    stages[1] = Stage("left", "a test", interrupted, branches.folder, {}, ("root",))
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages, branches.folder / "stages")
    left = [stage.name for stage in stages if finished_seconds(stage, branches.folder / "stages") is None]
    assert left == ["left", "right", "end"]
    assert branches() == ["left", "right", "end"]
