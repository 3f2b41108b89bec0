"""Runs that an earlier version trained, opened by this one, wherever they and their scene lie."""

from __future__ import annotations

import copy
import json
import operator
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro
from conftest import write_tiny_scene

from divff_nerfstudio.evaluation.runs import load_run, our_configs
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.fields.layered import LayeredFieldConfig
from divff_nerfstudio.former_names import ROWS
from divff_nerfstudio.run_config import read_config

DATA = Path(__file__).parent / "data"
CONFIGS = DATA / "configs_471e566"
"""What 471e566 has written before anything was settled."""
RUNS = DATA / "runs_363a29d"
METHODS = ("divff", "divff-paper", "divff-splat")
LEFT_OUT = {"room.space.0": (12288, 8), "camera.space.0": (3072, 4), "camera.time.0": (3072, 4)}
CHECKPOINT = "nerfstudio_models/step-000000002.ckpt"


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene as "tiny", and each run, moved out of the folder that its file names."""
    folder = tmp_path_factory.mktemp("moved")
    ExtractConfig(write_tiny_scene(folder / "tiny"), encoder="demo", device="cpu").main()
    for method in METHODS:
        shutil.copytree(RUNS / method, folder / "theirs" / method)
    path = folder / "theirs" / "divff" / CHECKPOINT
    state = torch.load(path, weights_only=True)
    state["pipeline"] |= {f"_model.field.proposal.{name}": torch.zeros(shape) for name, shape in LEFT_OUT.items()}
    torch.save(state, path)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_an_earlier_run_opens_and_answers(moved: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.chdir("/")
    run = load_run(moved / "theirs" / method / "config.yml")
    assert run.step == 2 and run.pipeline.datamanager.train_dataset.scene.root == moved / "tiny"
    assert run.pipeline.query.kinds and run.pipeline.method_name == method
    saved = torch.load(moved / "theirs" / method / CHECKPOINT, weights_only=True)["pipeline"]
    if method == "divff-splat":
        assert "_model.layers.dynamic.rows.middles" in saved
        saved = {re.sub(r"\w+$", lambda name: ROWS.get(name[0], name[0]), key): saved[key] for key in saved}
    own = run.pipeline.state_dict()
    assert all(torch.equal(own[name], value) for name, value in saved.items())
    run.pipeline.query.ask(text="cup")
    outputs = run.pipeline.model.get_outputs_for_camera(run.pipeline.datamanager.train_dataset.cameras[0:1])
    assert outputs["rgb"].isfinite().all() and outputs["relevancy"].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_options_of_an_earlier_version_mean_what_they_meant(method: str) -> None:
    (registered,) = (config for config in our_configs() if config.method_name == method)
    read = read_config(CONFIGS / f"{method}.yml", our_configs())
    read.machine.device_type = registered.machine.device_type
    if method == "divff":  # nothing was looked for in them, and their networks carry nothing
        assert read.pipeline.model.evidence == "off" and not read.pipeline.model.fields.carried
        read.pipeline.model.evidence = "auto"
        assert read.pipeline.model.fields.time_codes == "periodic"
        read.pipeline.model.fields.time_codes = "apart"
        assert read.pipeline.model.fields.actor_octaves == 6
        read.pipeline.model.fields.actor_octaves = registered.pipeline.model.fields.actor_octaves
        assert read.pipeline.model.fields.shadow_octaves is None
        read.pipeline.model.fields.shadow_octaves = registered.pipeline.model.fields.shadow_octaves
        for name, size in LayeredFieldConfig.sizes_by_device["cpu"].items():  # they were the same on every device
            assert getattr(read.pipeline.model.fields, name) == size
            setattr(read.pipeline.model.fields, name, None)
        for group in ("grids", "networks", "actor"):  # they learned more slowly
            assert read.optimizers[group]["optimizer"].lr < registered.optimizers[group]["optimizer"].lr
            read.optimizers[group] = registered.optimizers[group]
    if method == "divff-splat":
        assert read.pipeline.model.evidence == "off"
        read.pipeline.model.evidence = "auto"
    if method != "divff-paper":
        assert read.pipeline.model.hints == "off"
        read.pipeline.model.hints = "auto"
    assert read == registered


FORMER = {
    "divff": {
        "nearest": ("near_scale", 0.2),
        "farthest": ("far_scale", 2.0),
        "least_uncertainty": ("min_uncertainty", 0.5),
        "static_until": ("moving_start_step", 5),
        "heads_from": ("heads_start_step", 7),
        "joint_from": ("joint_start_step", 9),
        "fields.largest_uncertainty": ("fields.max_uncertainty", 0.4),
    },
    "divff-paper": {"least_uncertainty": ("min_uncertainty", 0.5)},
    "divff-splat": {
        "room_from": ("room_near_scale", 0.6),
        "density.every": ("densification.every", 30),
        "density.large": ("densification.large", 0.02),
        "static_most": ("max_static", 50),
        "dynamic_most": ("max_dynamic", 40),
        "actor_most": ("max_actor", 30),
        "largest_uncertainty": ("max_uncertainty", 0.4),
    },
}
"""Options of the model that had another name: what they are called now, and another value than the default."""


@pytest.mark.parametrize("method", METHODS)
def test_former_names_of_options_are_taken(method: str, tmp_path: Path) -> None:
    """On the command line and in a run's ``config.yml``."""
    (registered,) = (config for config in our_configs() if config.method_name == method)
    text = (CONFIGS / f"{method}.yml").read_text()
    words = []
    for former, (_, value) in FORMER[method].items():
        words += [f"--pipeline.model.{former.replace('_', '-')}", str(value)]
        text, count = re.subn(rf"(?m)^( +{former.rpartition('.')[2]}: ).*$", rf"\g<1>{value}", text)
        assert count == 1
    (tmp_path / "config.yml").write_text(text)
    read = read_config(tmp_path / "config.yml", our_configs())
    typed = tyro.cli(type(registered), default=copy.deepcopy(registered), args=words)
    for name, value in FORMER[method].values():
        assert operator.attrgetter(name)(read.pipeline.model) == value
        assert operator.attrgetter(name)(typed.pipeline.model) == value


def test_nerfstudios_commands_open_an_earlier_run_beside_stray_files(moved: Path, tmp_path: Path) -> None:
    shutil.copytree(moved / "theirs" / "divff-splat", moved / "stray" / "divff-splat")
    models = moved / "stray" / "divff-splat" / "nerfstudio_models"
    for name in ("notes.txt", "step-x.ckpt", ".DS_Store"):
        (models / name).write_text("stray")
    program = Path(sys.executable).with_name("ns-eval")
    words = ("--load-config", models.parent / "config.yml", "--output-path", tmp_path / "scores.json")
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([program, *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["results"]["psnr"] > 0 and result["checkpoint"] == str(models / Path(CHECKPOINT).name)


def test_nerfstudios_commands_say_what_a_run_lacks(moved: Path, tmp_path: Path) -> None:
    shutil.copytree(moved / "theirs" / "divff-splat", tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    program, env = Path(sys.executable).with_name("ns-eval"), {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    for change, said in (
        (lambda: None, "tiny does not exist"),
        (lambda: path.write_bytes(path.read_bytes()[:5000]), "no readable checkpoint"),
    ):
        change()
        done = subprocess.run(
            [program, "--load-config", tmp_path / "run" / "config.yml"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode and said in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
