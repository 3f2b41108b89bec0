"""Runs made of official checkpoints: they render what the weights say, train on, and refuse what does not fit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_tiny_scene
from nerfstudio.utils.eval_utils import eval_setup
from test_feature_encoders import write_encoder
from test_published_checkpoint import weights, write
from tiny_run import write_features

from divff_nerfstudio import cli
from divff_nerfstudio.checkpoints import CheckpointError
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.runs import our_configs
from divff_nerfstudio.features.autoencoder import Autoencoder, AutoencoderConfig, save_autoencoder
from divff_nerfstudio.fields.published import PublishedField, PublishedFieldConfig
from divff_nerfstudio.fields.published_heads import PublishedHeads, PublishedHeadsConfig
from divff_nerfstudio.importing import NEURALDIFF_EPSILON, ImportConfig, ImportRefusedError
from divff_nerfstudio.locks import take_lock
from divff_nerfstudio.models.view import FEATURES
from divff_nerfstudio.run_config import read_config
from divff_nerfstudio.trainer import DivFFTrainerConfig, TrainingError

CODE, EMBEDDING = 4, 12
DIMENSIONS = {"image": CODE, "video": EMBEDDING, "regulariser": 6}


@pytest.fixture
def autoencoder(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    config = AutoencoderConfig(feature_dim=EMBEDDING, encoder_widths=(8, CODE), decoder_widths=(6,))
    save_autoencoder(Autoencoder(config), tmp_path / "best_ckpt.pth")
    return tmp_path / "best_ckpt.pth"


def full(scene: Path, folder: Path, autoencoder: Path | None, **options: Any) -> Path:
    """Imports a checkpoint with heads."""
    checkpoint = write(folder / "last.ckpt", weights(DIMENSIONS))
    encoder = write_encoder(folder / "encoder")
    chosen = {"image_encoder": encoder, "video_encoder": encoder, "autoencoder": autoencoder, **options}
    return ImportConfig(checkpoint, scene, folder / "run", **chosen).main()


def geometry(scene: Path, folder: Path, **options: Any) -> Path:
    """Imports a checkpoint of geometry alone."""
    return ImportConfig(write(folder / "geometry.ckpt", weights({})), scene, folder / "geometry", **options).main()


def read(run: Path) -> DivFFTrainerConfig:
    read_config(run / "config.yml", our_configs())
    config = yaml.load((run / "config.yml").read_text(), Loader=yaml.Loader)
    config.machine.device_type = "cpu"
    config.vis = "tensorboard"
    return config


def opened(run: Path) -> Any:
    """The pipeline as ns-eval opens it."""
    return eval_setup(run / "config.yml", test_mode="test")[1]


def trainer_of(config: DivFFTrainerConfig, output: Path) -> Any:
    """A training as ``ns-train --load-config`` begins it."""
    config.set_timestamp()
    config.output_dir = output
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    return trainer


def test_a_full_checkpoint_renders_and_answers(tiny_scene: Path, tmp_path: Path, autoencoder: Path) -> None:
    run = full(tiny_scene, tmp_path, autoencoder)
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "features" not in path.parts}
    assert names == {"config.yml", "autoencoder.pth", "nerfstudio_models/step-000000016.ckpt"}
    pipeline = opened(run)
    model = pipeline.model
    for name, value in weights(DIMENSIONS).items():
        part = model.field if name.startswith(("nerf", "embedding")) else model.semantic
        assert torch.equal(part.state_dict()[name], value), name
    pipeline.query.ask(text="mug")
    camera, batch = pipeline.datamanager.next_eval_image(0)
    outputs = model.get_outputs_for_camera(camera)
    assert {"rgb", "mask_moving", "features_pca", "relevancy", "relevancy_overlay"} <= outputs.keys()
    assert outputs["rgb"].shape == batch["image"].shape
    assert outputs["features_pca"].std() > 0.02 and all(value.isfinite().all() for value in outputs.values())
    features = model.render(camera, outputs=(FEATURES,)).features
    assert {kind: value.shape[-1] for kind, value in features.items()} == {"image": 12, "video": 12, "regulariser": 6}
    pipeline.query.ask(text="mug", features="video")
    assert "relevancy" in model.get_outputs_for_camera(camera)
    assert model.config.share_epsilon == 1e-6


def test_times_and_appearances_are_those_of_the_tables(tiny_scene: Path, tmp_path: Path) -> None:
    model = opened(geometry(tiny_scene, tmp_path)).model
    scene = model.kwargs["metadata"]["scene"]
    train = [int(scene.frame_ids[i]) for i in scene.splits["train"]]
    assert model.field.rows == 40
    for frame in scene.frame_ids.tolist():
        (row,) = model.field.appearance_rows(torch.tensor([[frame / 39]], dtype=torch.float32)).tolist()
        assert row == min(train, key=lambda known: (abs(known - frame), known))


def test_geometry_alone_renders_without_heads(tiny_scene: Path, tmp_path: Path) -> None:
    run = geometry(tiny_scene, tmp_path)
    pipeline = opened(run)
    assert pipeline.model.semantic is None and pipeline.model.config.share_epsilon == NEURALDIFF_EPSILON
    camera, _ = pipeline.datamanager.next_eval_image(0)
    assert pipeline.model.get_outputs_for_camera(camera)["rgb"].isfinite().all()
    assert [path.name for path in (run / "nerfstudio_models").iterdir()] == ["step-000000000.ckpt"]
    with pytest.raises(TrainingError, match="no features to train semantic heads on"):
        trainer_of(read(run), tmp_path / "outputs")


def test_heads_begin_on_imported_geometry(tiny_scene: Path, tmp_path: Path, autoencoder: Path) -> None:
    run = geometry(tiny_scene, tmp_path, autoencoder=autoencoder)
    write_features(tiny_scene, tmp_path / "encoder")
    trainer = trainer_of(read(run), tmp_path / "outputs")
    model = trainer.pipeline.model
    assert trainer._start_step == 0 and trainer.base_dir.is_relative_to(tmp_path / "outputs")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(before[f"field.{name}"], value) for name, value in weights({}).items())
    trainer.config.max_num_iterations = 2
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert any(name.startswith("semantic.static_lerf") for name in changed)
    assert "field.embedding_t.W" in changed
    assert not any(name.startswith(("field.nerf", "autoencoder")) for name in changed), "networks are frozen at first"
    assert (run / "nerfstudio_models" / "step-000000000.ckpt").is_file(), "the import stays"


def test_a_full_checkpoint_resumes_at_its_step(
    tiny_scene: Path, tmp_path: Path, autoencoder: Path, capsys: pytest.CaptureFixture
) -> None:
    run = full(tiny_scene, tmp_path, autoencoder)
    config = read(run)
    assert config.max_num_iterations > 17 and config.pipeline.model.schedule.stages == "heads"
    trainer = trainer_of(config, tmp_path / "outputs")
    assert trainer._start_step == 17
    for group, scheduler in trainer.optimizers.schedulers.items():
        rate = config.optimizers[group]["optimizer"].lr
        wanted = config.optimizers[group]["scheduler"].setup().factor(17)
        assert scheduler.get_last_lr() == [pytest.approx(rate * wanted)] and wanted > 0
    config.max_num_iterations = 18
    trainer.train()
    assert "have no targets" in re.sub(r"\s+", " ", capsys.readouterr().out)
    (left,) = (trainer.base_dir / "nerfstudio_models").iterdir()
    assert left.name == "step-000000017.ckpt"


def test_features_of_the_scene_are_targets_where_they_fit(tiny_scene: Path, tmp_path: Path, autoencoder: Path) -> None:
    encoder = write_features(tiny_scene, tmp_path / "encoder")
    run = full(tiny_scene, tmp_path, autoencoder, image_encoder=encoder, video_encoder=encoder)
    config = read(run)
    assert config.pipeline.datamanager.feature_dir is None and not (run / "features").exists()
    trainer = trainer_of(config, tmp_path / "outputs")
    before = trainer.pipeline.model.state_dict()["semantic.static_video.dino_net.2.bias"].clone()
    config.max_num_iterations = 18
    trainer.train()
    assert not torch.equal(before, trainer.pipeline.model.state_dict()["semantic.static_video.dino_net.2.bias"])


def test_features_of_another_encoder_are_no_targets(tiny_scene: Path, tmp_path: Path, autoencoder: Path) -> None:
    write_features(tiny_scene, tmp_path / "other")
    run = full(tiny_scene, tmp_path, autoencoder)
    assert read(run).pipeline.datamanager.feature_dir == run / "features"


def test_without_autoencoder_images_cannot_be_asked(
    tiny_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = full(tiny_scene, tmp_path, None)
    assert "--autoencoder" in capsys.readouterr().out
    pipeline = opened(run)
    assert pipeline.query.kinds == ("video",)
    camera, _ = pipeline.datamanager.next_eval_image(0)
    assert pipeline.model.render(camera, outputs=(FEATURES,)).features["image"].shape[-1] == CODE


def test_what_does_not_fit_is_refused_and_leaves_nothing(tiny_scene: Path, tmp_path: Path, autoencoder: Path) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    save_autoencoder(Autoencoder(AutoencoderConfig(encoder_widths=(8, 5), decoder_widths=(6,))), tmp_path / "other.pth")
    with pytest.raises(ImportRefusedError, match=r"codes of 5 values .* give 4"):
        full(tiny_scene, tmp_path, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"field\.ckpt is no autoencoder"):
        full(tiny_scene, tmp_path, write(tmp_path / "field.ckpt", weights({})))
    with pytest.raises(CheckpointError, match=r"best_ckpt\.pth is no checkpoint of NeuralDiff or DIV-FF"):
        ImportConfig(autoencoder, tiny_scene, tmp_path / "run").main()
    few = weights({})
    few["embedding_a.weight"] = few["embedding_a.weight"][:24]
    with pytest.raises(ImportRefusedError, match="frame id 24, which has no row among the 24 rows"):
        ImportConfig(write(tmp_path / "few.ckpt", few), tiny_scene, tmp_path / "run").main()
    assert {path.name for path in tmp_path.iterdir()} - before == {
        "other.pth",
        "last.ckpt",
        "encoder",
        "field.ckpt",
        "few.ckpt",
    }


def test_a_run_is_not_replaced_nor_left_half_written(
    tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as broken:
        broken.setattr("divff_nerfstudio.importing._load", fail)
        with pytest.raises(OSError, match="no room"):
            geometry(tiny_scene, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"geometry.ckpt", "tiny"}
    run = geometry(tiny_scene, tmp_path)
    with pytest.raises(ImportRefusedError, match="exists"):
        geometry(tiny_scene, tmp_path)
    assert (run / "config.yml").is_file()


def test_the_command_tells_faults_and_what_comes_next(
    tiny_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "text.ckpt").write_text("not found")
    words = ["--scene", str(tiny_scene), "--output", str(tmp_path / "run")]
    assert cli.main(["import", str(tmp_path / "text.ckpt"), *words]) == 1
    assert "is no readable checkpoint" in capsys.readouterr().err
    checkpoint = write(tmp_path / "geometry.ckpt", weights({}))
    assert cli.main(["import", str(checkpoint), *words]) == 0
    told = capsys.readouterr().out
    assert f"ns-train divff-paper --load-config {tmp_path / 'run' / 'config.yml'}" in told
    assert f"divff extract --data {tiny_scene}" in told


@pytest.mark.slow
def test_the_published_sizes_as_typed(tmp_path: Path) -> None:
    """Import, evaluate, render and train one more step, with the published network's sizes and random weights."""
    scene = write_tiny_scene(tmp_path / "scene", extras=False)
    field = PublishedField(PublishedFieldConfig(), 1000, torch.zeros(1))
    dimensions = {"image": 128, "video": 512, "regulariser": 64}
    heads = PublishedHeads(PublishedHeadsConfig(), field.encoding_dim, dimensions)
    checkpoint = write(tmp_path / "last.ckpt", field.state_dict() | heads.state_dict(), callbacks={}, epoch=0)
    save_autoencoder(Autoencoder(AutoencoderConfig()), tmp_path / "best_ckpt.pth")
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    run = tmp_path / "run"
    config = ("--load-config", run / "config.yml")
    lines = [
        ("divff", "import", checkpoint, "--scene", scene, "--autoencoder", tmp_path / "best_ckpt.pth", "--output", run),
        ("ns-eval", *config, "--output-path", tmp_path / "eval.json"),
        ("ns-render", "dataset", *config, "--rendered-output-names", "rgb", "--output-path", tmp_path / "rendered"),
        ("ns-train", "divff-paper", *config),
    ]
    for program, *words in lines:
        if program == "ns-train":
            changed = (run / "config.yml").read_text().replace("vis: viewer", "vis: tensorboard")
            changed = re.sub(r"max_num_iterations: \d+", "max_num_iterations: 18", changed)
            (run / "config.yml").write_text(changed)
        line = [str(Path(sys.executable).with_name(program)), *map(str, words)]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, f"{program} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert json.loads((tmp_path / "eval.json").read_text())["results"]["psnr"] > 0
    assert len(list((tmp_path / "rendered").rglob("rgb/*"))) == 2
    (left,) = (tmp_path / "outputs").rglob("*.ckpt")
    assert left.name == "step-000000017.ckpt"


def test_one_import_at_a_time_writes_a_run(tiny_scene: Path, tmp_path: Path) -> None:
    lock = take_lock(tmp_path / "geometry", DivffError("busy"))
    with pytest.raises(ImportRefusedError, match="Another import writes"):
        geometry(tiny_scene, tmp_path)
    lock.release()
    assert (geometry(tiny_scene, tmp_path) / "config.yml").is_file()
    assert not list(tmp_path.glob(".*"))
