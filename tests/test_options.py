"""Ranges of options: those of every command and every method are told and kept."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import inspect
import socket
import warnings
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import tiny_run
import torch
import tyro
from conftest import write_tiny_scene
from pydantic import TypeAdapter

from divff_nerfstudio import faults
from divff_nerfstudio.cli import COMMANDS, main
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.segments import ColourSegmenterConfig
from divff_nerfstudio.option_ranges import NERFSTUDIOS, check_config
from divff_nerfstudio.outputs import OutputError, check_output_file, check_output_folder
from divff_nerfstudio.registry import divff, divff_paper, divff_splat
from divff_nerfstudio.render_options import check_eval_options, check_render_options, check_viewer_options
from divff_nerfstudio.schema import OptionError, check_options
from divff_nerfstudio.viewer.listening import require_listening

METHODS = (divff, divff_paper, divff_splat)
QUERY = ("query", "--load-config", "none.yml", "--output", "answers", "--text", "mug")
VIDEO = ("video", "--load-config", "none.yml")


def refused(words: tuple[str, ...], capsys) -> str:
    """The one sentence that a command ends with."""
    capsys.readouterr()
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Error: ") and shown.count("\n") == 1 and "Traceback" not in shown
    return shown


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ((*QUERY, "--time", "9"), "--time"),
        ((*QUERY, "--time", "nan"), "--time"),
        ((*QUERY, "--time", "-0.5"), "--time"),
        ((*QUERY, "--threshold", "nan"), "--threshold"),
        ((*QUERY, "--over-time", "--moments", "0"), "--moments"),
        ((*QUERY, "--over-time", "--threshold", "0.6"), "--threshold"),
        ((*QUERY[:-1], ""), "--text"),
        ((*QUERY[:-1], "mug", "  "), "--text"),
        (QUERY[:-1], "--text"),
        ((*QUERY, "--time", "0.5", "--frame", "3"), "--frame"),
        ((*VIDEO, "--fps", "0"), "--fps"),
        ((*VIDEO, "--fps", "inf"), "--fps"),
        ((*VIDEO, "--frames", "-1"), "--frames"),
        ((*VIDEO, "--frames", "0"), "--frames"),
        ((*VIDEO, "--cell-height", "0"), "--cell-height"),
        ((*VIDEO, "--cell-height", "1000000"), "--cell-height"),
        ((*VIDEO, "--queries", ""), "--queries"),
        (("evaluate", "--load-config", "none.yml", "--frames", "0"), "--frames"),
        (("evaluate", "--load-config", "none.yml", "--tasks"), "--tasks"),
        (("evaluate", "--load-config", "none.yml", "--moments", "0"), "--moments"),
        (("evaluate", "--load-config", "none.yml", "--models.clip-shares", "2"), "--models.clip-shares"),
        (("evaluate", "--load-config", "none.yml", "--average", "x"), "--load-config"),
        (("export", "--load-config", "none.yml", "--time", "1.01"), "--time"),
        (("export", "--load-config", "none.yml", "--cloud.cell", "0"), "--cloud.cell"),
        (("export", "--load-config", "none.yml", "--cloud.views", "-3"), "--cloud.views"),
        (("view", "--load-config", "none.yml", "--port", "99999999"), "--port"),
        (("demo", "--video-frames", "0"), "--video-frames"),
        (("demo-scene", "out", "--width", "1000000"), "--width"),
        (("demo-scene", "out", "--seed", "-1"), "--seed"),
        (("extract", "--data", "none", "--sources"), "--sources"),
        (("extract", "--data", "none", "--clip-tiles.overlap", "1"), "--clip-tiles.overlap"),
        (("download", "epic-diff", "--root", "out", "--what"), "--what"),
    ],
)
def test_what_is_out_of_range_is_told_before_anything_is_loaded(words, option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert option in refused(words, capsys)
    assert not list(tmp_path.iterdir())


def _fields(kind: type, seen: set[type]):
    """Fields of a dataclass of ours and of those in it, with their types."""
    if kind in seen:
        return
    seen.add(kind)
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        yield kind, field.name, hints[field.name]
        for part in (hints[field.name], *get_args(hints[field.name])):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                yield from _fields(part, seen)


def _numbers(hint) -> bool:
    return hint in (int, float) or any(_numbers(part) for part in get_args(hint))


OWN = {
    getattr(importlib.import_module(module), name)
    for module, name in (place.split(":") for place, _ in COMMANDS.values())
} | {type(each) for method in METHODS for each in (method.config.pipeline, method.config.pipeline.model)}


def test_every_number_of_ours_has_a_range():
    """Those of others have theirs in a table, and those that nobody can set need none."""
    missing, seen = [], set()
    for kind in sorted(OWN, key=lambda each: each.__name__):
        for owner, name, hint in _fields(kind, seen):
            declared = next(base for base in owner.__mro__ if name in inspect.get_annotations(base))
            told = any(name in NERFSTUDIOS.get(base, {}) for base in owner.__mro__)
            hidden = tyro.conf.Suppress in get_args(hint)
            converts = ".convert." in declared.__module__  # they come with the formats
            foreign = not declared.__module__.startswith("divff_nerfstudio")
            if told or hidden or converts or foreign or not _numbers(hint):
                continue
            schema = str(TypeAdapter(hint, config={"arbitrary_types_allowed": True}).json_schema())
            if not any(word in schema for word in ("inimum", "aximum")):
                missing.append(f"{declared.__name__}.{name}")
    assert len(seen) > 30 and not missing


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.config.method_name)
def test_the_methods_own_settings_are_in_range(method):
    check_config(method.config)


BROKEN = {
    "pipeline.model.mask-weight": -1.0,
    "pipeline.model.default-time": 2.0,
    "pipeline.model.image-weight": float("nan"),
    "pipeline.model.num-samples": 0,
    "pipeline.model.fields.static-resolutions": (),
    "pipeline.model.fields.hidden": 10**7,
    "pipeline.model.eval-num-rays-per-chunk": 0,
    "pipeline.datamanager.train-num-rays-per-batch": -5,
    "pipeline.datamanager.dataparser.time-rows": 0,
    "pipeline.query.temperature": 0.0,
    "pipeline.query.threshold": float("inf"),
    "pipeline.query.text": "mug \udcff",
    "pipeline.query.prefix-video": "x" * 10_001,
    "optimizers.grids.optimizer.lr": -1e-3,
    "optimizers.grids.optimizer.betas": (0.9, 1.0),
    "optimizers.grids.scheduler.lr-final": 0.0,
    "max-num-iterations": -1,
    "machine.seed": -1,
    "viewer.websocket-port": 99999999,
    "steps-per-save": -1,
}


@pytest.mark.parametrize(("name", "value"), [("sigma", 1e6), ("min_size", 2**40)])
def test_segments_by_colour_are_found_in_time(name, value):
    with pytest.raises(OptionError, match=name.replace("_", "-")):
        check_options(ColourSegmenterConfig(**{name: value}))


@pytest.mark.parametrize("option", BROKEN)
def test_training_refuses_what_is_out_of_range(option, tmp_path):
    config = tiny_run.config(tmp_path / "no scene", tmp_path / "out")
    *parents, last = option.replace("-", "_").split(".")
    owner = config
    for name in parents:
        owner = owner[name] if isinstance(owner, dict) else getattr(owner, name)
    setattr(owner, last, BROKEN[option])
    with pytest.raises(OptionError, match=f"^--{option} is "):
        config.save_config()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        (divff_paper, "coarse_samples", 0),
        (divff_paper, "share_epsilon", 0.0),
        (divff_splat, "seed_frames", 0),
        (divff_splat, "room_near_scale", -1.0),
    ],
)
def test_other_methods_refuse_it_too(method, name, value):
    config = copy.deepcopy(method.config)
    setattr(config.pipeline.model, name, value)
    with pytest.raises(OptionError, match=name.replace("_", "-")):
        check_config(config)


def test_ranges_are_nothing_to_the_parser(capsys):
    """Types with ranges are shown and parsed as the bare ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for place, _ in COMMANDS.values():
            module, _, name = place.partition(":")
            with pytest.raises(SystemExit):
                tyro.cli(getattr(importlib.import_module(module), name), args=["--help"])
    shown = capsys.readouterr()
    assert "Annotated" not in shown.out and "FieldInfo" not in shown.out + shown.err
    assert "--time {None}|FLOAT" in shown.out and "--frames {all}|INT" in shown.out


def test_config_yml_is_read_again(tmp_path):
    config = tiny_run.config(write_tiny_scene(tmp_path / "scene"), tmp_path / "out")
    config.save_config()
    text = (config.get_base_dir() / "config.yml").read_text()
    assert "pydantic" not in text and "FieldInfo" not in text
    check_options(config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("camera-path", "--camera-path-filename", "none.json"), "no such file"),
        (("dataset", "--downscale-factor", "0"), "--downscale-factor"),
        (("dataset", "--downscale-factor", "nan"), "--downscale-factor"),
        (("dataset", "--rendered-output-names", "rgba"), "--image-format png"),
        (("dataset", "--jpeg-quality", "0"), "--jpeg-quality"),
        (("interpolate", "--rendered-output-names", "rgba", "--image-format", "png"), "--output-format images"),
        (("interpolate", "--interpolation-steps", "0"), "--interpolation-steps"),
        (("interpolate", "--frame-rate", "0"), "--frame-rate"),
        (("interpolate", "--depth-near-plane", "inf"), "--depth-near-plane"),
        (("interpolate", "--depth-near-plane", "2", "--depth-far-plane", "1"), "give a near below far"),
        (("interpolate", "--colormap-options.colormap-min", "nan"), "--colormap-options.colormap-min"),
        (("interpolate", "--eval-num-rays-per-chunk", "0"), "--eval-num-rays-per-chunk"),
        (
            ("spiral", "--rendered-output-names", "rgb", "rgba", "--image-format", "png", "--output-format", "images"),
            "by itself",
        ),
        (("spiral", "--seconds", "0"), "--seconds"),
        (("spiral", "--camera-idx", "-1"), "--camera-idx"),
    ],
)
def test_options_of_ns_render_that_cannot_be_obeyed(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DivffError) as caught:
        check_render_options(["/usr/bin/ns-render", words[0], "--load-config", "config.yml", *words[1:]])
    assert said in str(caught.value)


def test_options_of_ns_render_that_can_be_obeyed():
    for words in (
        ("dataset", "--downscale-factor", "2", "--split", "train+test"),
        ("dataset", "--rendered-output-names", "rgba", "--image-format", "png"),
        ("spiral", "--rendered-output-names", "rgba", "--image-format", "png", "--output-format", "images"),
        ("interpolate", "--depth-near-plane", "0.5", "--colormap-options.colormap", "turbo"),
    ):
        check_render_options(["ns-render", words[0], "--load-config", "config.yml", *words[1:]])
    check_render_options(["ns-train", "divff", "--downscale-factor", "0"])
    check_render_options(["somewhere/render.py", "--nonsense"])


def test_where_ns_eval_cannot_write_is_told(tmp_path):
    (tmp_path / "file").touch()
    for words, said in (
        (("--output-path", tmp_path / "scores.txt"), "ends in .json"),
        (("--output-path", tmp_path / "file" / "scores.json"), "needs a folder"),
        (("--render-output-path", tmp_path / "file"), "--render-output-path needs a folder"),
    ):
        with pytest.raises(OutputError, match=said):
            check_eval_options(["/usr/bin/ns-eval", "--load-config", "config.yml", *map(str, words)])
    check_eval_options(
        ["ns-eval", "--load-config", "config.yml", "--output-path", str(tmp_path / "new" / "scores.json")]
    )
    check_eval_options(["ns-train", "--output-path", "scores.txt"])


def test_where_the_viewer_cannot_listen_is_told_before_it_waits_for_ever(tmp_path, capsys):
    require_listening("127.0.0.1", None)
    require_listening("0.0.0.0", 65535 - 1000)
    for host in ("203.0.113.7", "..", "a" * 64):  # of another machine, or no host's name; no name is looked up
        with pytest.raises(OptionError, match=r"^--viewer\.websocket-host is .*cannot listen"):
            require_listening(host, 7007)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        require_listening("127.0.0.1", taken.getsockname()[1])  # the next one is free
    with contextlib.suppress(OSError), socket.socket() as last:
        last.bind(("127.0.0.1", 65535))
        last.listen()
        with pytest.raises(OptionError, match=r"^--viewer\.websocket-port is 65535: no port from there on is free"):
            require_listening("127.0.0.1", 65535)
    assert "--host is 203.0.113.7" in refused(("view", "--load-config", "none.yml", "--host", "203.0.113.7"), capsys)
    typed = ("ns-viewer", "--load-config", "config.yml", "--viewer.websocket-host")
    check_viewer_options([*typed, "127.0.0.1"])
    with pytest.raises(OptionError, match="cannot listen"):
        check_viewer_options([*typed, "203.0.113.7"])
    check_viewer_options(["ns-train", "--viewer.websocket-host", "203.0.113.7"])
    config = tiny_run.config(write_tiny_scene(tmp_path / "scene"), tmp_path / "runs")
    config.vis, config.viewer.websocket_host = "viewer", "203.0.113.7"
    with pytest.raises(OptionError, match="cannot listen"):
        config.save_config()


def test_outputs_are_looked_at(tmp_path):
    (tmp_path / "file").touch()
    assert check_output_file(tmp_path / "new" / "film.MP4", ".mp4").name == "film.MP4"
    assert check_output_folder(tmp_path / "new" / "deeper") and not (tmp_path / "new").exists()
    (tmp_path / "folder.mp4").mkdir()
    for path, said in (
        (tmp_path / "film.avi", "ends in .mp4"),
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "file" / "film.mp4", "is a file"),
        (tmp_path / ("x" * 300) / "film.mp4", "cannot be"),
    ):
        with pytest.raises(OutputError, match=said):
            check_output_file(path, ".mp4")
    with pytest.raises(OutputError, match="is a file"):
        check_output_folder(tmp_path / "file")


def test_outputs_of_commands_are_looked_at_before_the_run(tmp_path, capsys):
    (tmp_path / "file").touch()
    for words in (
        ("query", "--text", "mug", "--time", "0.5", "--output", str(tmp_path / "file")),
        ("video", "--output", str(tmp_path)),
        ("video", "--output", str(tmp_path / "file" / "x.mp4")),
        ("evaluate", "--output", str(tmp_path / "file")),
        ("export", "--output", str(tmp_path / "config.yml")),
        ("export", "--what", "gaussians", "--output", str(tmp_path / "file")),
    ):
        shown = refused((words[0], "--load-config", str(tmp_path / "none.yml"), *words[1:]), capsys)
        assert "none.yml" not in shown


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        OSError(28, "No space left on device"),
        IsADirectoryError(21, "Is a directory", "folder"),
        PermissionError(13, "Permission denied", "a", None, "b"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_machine_lacks_is_one_sentence(error, monkeypatch, capsys):
    def fail(options: Path) -> None:
        raise error

    monkeypatch.setattr("divff_nerfstudio.cli.view.ViewConfig.main", fail)
    shown = refused(("view", "--load-config", "none.yml"), capsys)
    assert ("memory" in shown) == (not isinstance(error, OSError))


def test_faults_of_the_program_stay_what_they_are():
    assert faults.mendable(RuntimeError("The size of tensor a must match")) is None
    assert faults.mendable(KeyError("x")) is None
