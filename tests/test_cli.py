"""The command `divff`, as typed."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_scene
import tyro
import yaml

from divff_nerfstudio import __version__
from divff_nerfstudio.cli import COMMANDS, main
from divff_nerfstudio.cli.evaluate import EvaluateConfig
from divff_nerfstudio.cli.video import VideoConfig
from divff_nerfstudio.cli.view import ViewConfig
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.runs import Run, hardware, load_run
from divff_nerfstudio.faults import tell_uncaught
from divff_nerfstudio.run_config import UnsafeConfigError


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from divff_nerfstudio.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('heavy:', [name for name in ('torch', 'nerfstudio', 'sklearn', 'open_clip') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "heavy: []" in shown
    for name, (_, purpose) in COMMANDS.items():
        assert name in shown and purpose in shown


def test_the_help_of_a_command_imports_no_torch():
    """Sources of features and published networks bring their options along with what they do; no others."""
    names = [name for name in COMMANDS if name not in ("extract", "import")]
    code = (
        "import contextlib, io, sys; from divff_nerfstudio.cli import main\n"
        "for name in sys.argv[1:]:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "        main([*name.split(), '--help'])\n"
        "    print(name, f'usage: divff {name}' in shown.getvalue(), 'torch' in sys.modules, sep=': ')"
    )
    command = [sys.executable, "-c", code, *names]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [f"{name}: True: False" for name in names]


FAULTS = {
    "no file": (("objects", "--load-config", "none.yml"), "none.yml is no file: give the config.yml"),
    "no frame": (
        ("query", "--load-config", "run/config.yml", "--text", "mug", "--output", "out", "--frame", "7777"),
        "meta.json has no frame 7777: choose one of its ids",
    ),
    "no viewpoint": (("video", "--load-config", "run/config.yml", "--fixed", "7777"), "meta.json has no frame 7777"),
    "range": (("export", "--load-config", "run/config.yml", "--time", "2"), "--time is 2.0"),
    "no words": (("export", "--load-config", "run/config.yml", "--queries", "video: "), "A query needs words"),
}


def test_what_needs_no_model_is_told_without_one(tmp_path):
    small_scene.write(tmp_path / "scene")
    (tmp_path / "run").mkdir()
    content = {"pipeline": {"datamanager": {"data": None, "dataparser": {"data": Path("scene")}}}}
    (tmp_path / "run" / "config.yml").write_text(yaml.dump(content))
    code = (
        "import json, sys; from divff_nerfstudio.cli import main\n"
        "for words in json.loads(sys.argv[1]): print(main(words), 'torch' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, json.dumps([words for words, _ in FAULTS.values()])]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stderr.splitlines()
    assert shown[1::2] == ["1 False"] * len(FAULTS)
    for said, (_, words) in zip(shown[::2], FAULTS.values(), strict=True):
        assert said.startswith("Error: ") and words in said


def test_version_and_wrong_commands(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0 and __version__ in capsys.readouterr().out
    for words in ([], ["paint"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
    assert "demo-scene" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_documented_dataclass_with_a_main(name):
    module, _, attribute = COMMANDS[name][0].partition(":")
    config = getattr(importlib.import_module(module), attribute)
    assert dataclasses.is_dataclass(config) and config.__doc__ and callable(config.main)
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(config, args=["--help"])
    assert stopped.value.code == 0


@pytest.mark.parametrize("name", ["view", "evaluate", "video"])
def test_a_config_that_runs_code_is_refused_in_one_sentence(name, tmp_path, capsys):
    flag = tmp_path / "it-ran"
    config = tmp_path / "config.yml"
    config.write_text(f'!!python/object/apply:os.system ["touch {flag}"]\n')
    assert main([name, "--load-config", str(config)]) == 1
    shown = capsys.readouterr()
    assert not flag.exists()
    assert "os.system" in shown.err and "Traceback" not in shown.err + shown.out
    assert shown.err.startswith("Opening ") and shown.err.count("\n") == 2


def test_a_missing_run_is_one_sentence(tmp_path, capsys):
    assert main(["evaluate", "--load-config", str(tmp_path / "config.yml")]) == 1
    assert "config.yml" in capsys.readouterr().err
    with pytest.raises(UnsafeConfigError):
        load_run(tmp_path / "config.yml")


@pytest.mark.parametrize("command", ["evaluate", "video", "export"])
def test_a_link_that_leads_to_itself_is_one_sentence(command, tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    assert main([command, "--load-config", str(tmp_path / "loop" / "config.yml")]) == 1
    shown = capsys.readouterr().err
    assert str(tmp_path / "loop") in shown and "Traceback" not in shown and shown.count("\n") == 1


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo-scene", str(tmp_path / "file" / "scene"), "--num-frames", "8"]) == 1
    shown = capsys.readouterr().err
    assert str(tmp_path / "file") in shown and "Traceback" not in shown and shown.count("\n") == 1


def test_nerfstudios_commands_end_with_a_sentence(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: seen.append(error))
    tell_uncaught()
    tell_uncaught()  # once is enough
    sys.excepthook(DivffError, DivffError("There is no [scene]: make one."), None)
    assert capsys.readouterr().err == "Error: There is no [scene]: make one.\n" and not seen
    sys.excepthook(DivffError, DivffError("evil\x1b[2J\ud800.png is missing:\nput it there."), None)
    assert capsys.readouterr().err == "Error: evil\\x1b[2J\\ud800.png is missing:\nput it there.\n"
    other = ValueError("a fault of ours")
    sys.excepthook(ValueError, other, None)
    sys.excepthook(ModuleNotFoundError, ModuleNotFoundError("No module named 'mine'", name="mine"), None)
    assert [kind for kind, *_ in seen] == [ValueError, ModuleNotFoundError] and seen[0][1] is other
    sys.excepthook(ModuleNotFoundError, ModuleNotFoundError("No module", name="comet_ml.x"), None)
    assert "uv pip install comet-ml." in capsys.readouterr().err and len(seen) == 2
    typed = FileNotFoundError(2, "No such file or directory", "runs/config.yml")
    for words, number in (
        (["ns-eval", "--load-config", "./runs/config.yml"], 2),
        (["ns-eval", "--x=runs/config.yml"], 2),
    ):
        monkeypatch.setattr(sys, "argv", words)
        sys.excepthook(FileNotFoundError, typed, None)
        assert "runs/config.yml cannot be used (No such file" in capsys.readouterr().err and len(seen) == number
    monkeypatch.setattr(sys, "argv", ["ns-eval"])
    sys.excepthook(FileNotFoundError, typed, None)
    assert len(seen) == 3


def test_help_shows_nothing_that_cannot_be_set(capsys):
    with pytest.raises(SystemExit):
        main(["extract", "--help"])
    shown = capsys.readouterr().out
    assert "--segments.sam.points-per-side" in shown and "_target" not in shown and "{fixed}" not in shown


def test_the_viewer_listens_on_this_machine_only(monkeypatch, tmp_path):
    """nerfstudio's script takes 10 s to import; only what it is called with matters here."""
    started = []
    script = SimpleNamespace(
        _start_viewer=lambda config, pipeline, step: started.append((config.viewer, pipeline, step))
    )
    monkeypatch.setitem(sys.modules, "nerfstudio.scripts.viewer.run_viewer", script)
    run = SimpleNamespace(
        config=SimpleNamespace(viewer=SimpleNamespace(num_rays_per_chunk=77)), pipeline="pipeline", step=5
    )
    monkeypatch.setattr("divff_nerfstudio.cli.view.load_run", lambda config, data: copy.deepcopy(run))
    config = tmp_path / "config.yml"
    ViewConfig(load_config=config).main()
    ViewConfig(load_config=config, host="0.0.0.0", port=7010).main()
    (first, *one), (second, *_) = started
    assert one == ["pipeline", 5] and first.num_rays_per_chunk == 77
    assert (first.websocket_host, first.websocket_port) == ("127.0.0.1", None)
    assert (second.websocket_host, second.websocket_port) == ("0.0.0.0", 7010)


class Stand:
    """A pipeline of the tiny scene's model."""

    def __init__(self, root: Path):
        self.model, self.query = small_scene.KnowingModel(), small_scene.make_query()
        self.datamanager = small_scene.datamanager(root)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    stand = Stand(small_scene.write(tmp_path / "scene"))
    for module in ("cli.evaluate", "evaluation.runs"):
        monkeypatch.setattr(f"divff_nerfstudio.{module}.load_run", lambda config, data: Run(None, stand, 999))
    config = tmp_path / "run" / "config.yml"
    config.parent.mkdir()
    config.touch()  # the stand-in for opening runs does not read it
    return stand, config


def test_evaluate_writes_scores_figures_and_a_page(trained):
    _, config = trained
    evaluation = EvaluateConfig(load_config=config).main()
    folder = config.parent / "evaluation"
    assert evaluation.totals["moving_ap"] == 1.0
    tables = {"totals.csv", "frames.csv", "classes.csv", "classes_by_frame.csv"}
    assert {path.name for path in folder.iterdir()} == {"frames", "report.html", "scores.json", *tables}
    page = (folder / "report.html").read_text()
    assert "12 at 40x24 (9 train, 1 val, 2 test)" in page and "1000" in page and hardware() in page
    EvaluateConfig(load_config=config, tasks=("masks",), frames=1, baselines=(), name="second try").main()
    assert json.loads((folder / "scores.json").read_text())["facts"]["Method"] == "second try"


def test_video_asks_and_hides(trained):
    stand, config = trained
    options = {"queries": ("bowl",), "hide": ("actor", "dynamic"), "frames": 2, "cell_height": 32}
    path = VideoConfig(load_config=config, **options).main()
    assert path == config.parent / "video.mp4" and path.stat().st_size > 0
    assert [hidden for _, hidden, _ in stand.model.seen] == [True] * 4
