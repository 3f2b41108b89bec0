"""The demo's stages, and its programs as they are called."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import small_scene
import tyro

from divff_nerfstudio import demo
from divff_nerfstudio.demo import Demo, DemoConfig
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.runs import Run


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A demo whose programs are recorded, and whose model knows the tiny scene."""
    called = []

    def record(module, *arguments):
        called.append([module, *arguments])
        if "demo-scene" in arguments:
            small_scene.write(Path(arguments[-1]))
        if module == "nerfstudio.scripts.train":
            folder = demonstration.run_folder / "nerfstudio_models"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "step-000000010.ckpt").write_text("")
            demonstration.run_config.write_text("")

    class Stand:
        model, query = small_scene.KnowingModel(), small_scene.make_query()

        @property
        def datamanager(self):
            return small_scene.datamanager(tmp_path / "out" / "scene")

    monkeypatch.setattr(demo, "run_module", record)
    monkeypatch.setattr("divff_nerfstudio.evaluation.runs.load_run", lambda config, data=None: Run(None, Stand(), 99))
    typed = ["--output", str(tmp_path / "out"), "--video-frames", "2", "--train-options=--max-num-iterations 11"]
    demonstration = Demo(tyro.cli(DemoConfig, args=typed))
    return demonstration, called


@pytest.mark.parametrize(
    ("options", "said"), [("--nonsense 3", "see above, and mend it"), ("--machine.seed -1", "--machine.seed is -1")]
)
def test_options_of_the_training_are_looked_at_before_anything_is_made(tmp_path, options, said, capsys):
    with pytest.raises(DivffError, match=said):
        DemoConfig(output=tmp_path / "out", train_options=options).main()
    assert ("nonsense" in capsys.readouterr().err) == ("nonsense" in options) and not (tmp_path / "out").exists()


def test_the_demo_makes_a_scene_features_a_model_a_video_and_a_report(made, capsys):
    demonstration, called = made
    demonstration.run()
    assert [words[:2] for words in called] == [
        ["divff_nerfstudio.cli", "demo-scene"],
        ["divff_nerfstudio.cli", "extract"],
        ["nerfstudio.scripts.train", "divff"],
    ]
    train = called[2]
    assert train[train.index("--pipeline.query.text") + 1] in small_scene.OBJECTS
    assert train[-2:] == ["--max-num-iterations", "11"]
    assert train[train.index("--timestamp") + 1] == demonstration.run_folder.name
    page = demonstration.report.read_text()
    assert "Training" in page and "GiB" in page and "reached" in page and "data:video/mp4" in page
    scores = json.loads((demonstration.output / "scores.json").read_text())
    assert scores["totals"]["moving_ap"] == 1.0
    shown = capsys.readouterr().out
    command = next(line for line in shown.splitlines() if line.strip().startswith("ns-viewer"))
    assert shlex.split(command)[-2:] == ["--viewer.websocket-host", "127.0.0.1"]
    called.clear()
    Demo(demonstration.config).run()
    assert called == []
    (demonstration.output / "stages" / "training.json").unlink()
    Demo(demonstration.config).train()
    assert "--load-dir" in called.pop()
    demonstration.run_config.write_text("load_step: null\nmax_num_iterations: 11\n")
    Demo(demonstration.config).train()
    assert called == [], "interrupted behind its last step: no step is left to resume"


def test_an_interrupted_training_is_resumed_and_other_options_start_anew(made):
    demonstration, called = made
    demonstration.run()
    (demonstration.output / "stages" / "training.json").unlink()
    called.clear()
    demonstration.run()
    (train,) = called
    assert train[train.index("--load-dir") + 1] == str(demonstration.run_folder / "nerfstudio_models")
    other = Demo(DemoConfig(output=demonstration.output, train_options="--max-num-iterations 12"))
    assert other.run_folder != demonstration.run_folder


def test_the_kitchen_takes_eight_minutes_of_a_cpu_unless_told_otherwise(tmp_path, monkeypatch):
    def words(cards: bool = False, **options) -> tuple[str, ...]:
        monkeypatch.setattr("torch.cuda.is_available", lambda: cards)
        return Demo(DemoConfig(output=tmp_path / "out", **options)).train_words

    assert words() == ("--max-num-iterations", "3500") != words(steps=20)
    assert words(scene=tmp_path) == words(cards=True) == ()
    assert words(scene=tmp_path, steps=20, train_options="--vis wandb") == (
        "--max-num-iterations",
        "20",
        "--vis",
        "wandb",
    )


@pytest.mark.parametrize("cards", [False, True])
@pytest.mark.parametrize(
    ("options", "on_cpu"),
    [
        ("--machine.device-type cpu", True),
        ("--machine.device_type=cpu", True),
        ("--machine.device-type cuda --machine.device-type cpu", True),
        ("--machine.device-type cuda", False),
    ],
)
def test_the_kitchens_steps_are_of_the_device_that_is_named(tmp_path, monkeypatch, cards, options, on_cpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cards)
    words = Demo(DemoConfig(output=tmp_path / "out", train_options=options)).train_words
    assert (words[:2] == ("--max-num-iterations", "3500")) == on_cpu and words[-1].endswith(options.split()[-1][-4:])


def test_a_scene_of_ones_own_is_not_written(tmp_path):
    own = Demo(DemoConfig(output=tmp_path / "out", scene=tmp_path / "mine"))
    assert [stage.name for stage in own.stages] == ["features", "training", "video", "report"]
    assert own.scene == tmp_path / "mine"
