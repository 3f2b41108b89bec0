"""A training run so small that tests can afford it: tiny fields, few rays, random features with a random encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils import writer
from test_feature_encoders import write_encoder
from torch import nn

from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.store import FeatureWriter, FrameFeatures, StoreHeader
from divff_nerfstudio.fields.layered import LayeredFieldConfig
from divff_nerfstudio.fields.published import PublishedFieldConfig
from divff_nerfstudio.fields.published_heads import PublishedHeadsConfig
from divff_nerfstudio.fields.semantic_heads import SemanticHeadsConfig
from divff_nerfstudio.models.divff import DivFFModelConfig
from divff_nerfstudio.models.paper import PublishedModelConfig
from divff_nerfstudio.models.splat.heads import SplatHeadsConfig
from divff_nerfstudio.models.splat.model import SplatModelConfig
from divff_nerfstudio.registry import divff, divff_paper, divff_splat
from divff_nerfstudio.trainer import DivFFTrainer, DivFFTrainerConfig

FIELDS = {"static_resolutions": (8, 16), "static_channels": 4, "dynamic_resolutions": (8,), "dynamic_channels": 4}
NETWORKS = {"dynamic_hidden": 16, "actor_hidden": 16, "hidden": 16, "encoding_dim": 5}

PUBLISHED = {"position_octaves": 3, "direction_octaves": 2, "time_octaves": 4, "trunk_width": 32, "branch_width": 12}


def shrink(model: DivFFModelConfig) -> DivFFModelConfig:
    """Makes a model's configuration tiny."""
    model.fields = LayeredFieldConfig(**FIELDS, **NETWORKS, time_codes="apart")
    model.heads = SemanticHeadsConfig(resolutions=(8,), channels=4, hidden=16, samples=4)
    model.num_proposal_samples, model.num_samples = 12, 8
    return model


def config(scene: Path, output: Path, steps: int = 12, registered: TrainerConfig = divff.config) -> DivFFTrainerConfig:
    """The registered method, or one derived from it, on a scene, tiny, on the CPU, without a viewer."""
    chosen = copy.deepcopy(registered)
    assert isinstance(chosen, DivFFTrainerConfig)
    _quiet(chosen, scene, output, steps)
    assert isinstance(chosen.pipeline.model, DivFFModelConfig)
    shrink(chosen.pipeline.model)
    return chosen


def published_config(scene: Path, output: Path, steps: int = 13) -> DivFFTrainerConfig:
    """The registered method divff-paper, as `config` has the default one."""
    chosen = copy.deepcopy(divff_paper.config)
    assert isinstance(chosen, DivFFTrainerConfig)
    _quiet(chosen, scene, output, steps)
    model = chosen.pipeline.model
    assert isinstance(model, PublishedModelConfig)
    model.fields = PublishedFieldConfig(**PUBLISHED)
    model.heads = PublishedHeadsConfig(hidden=8, samples=4)
    model.coarse_samples, model.importance_samples = 8, 6
    return chosen


def splat_config(scene: Path, output: Path, steps: int = 12) -> DivFFTrainerConfig:
    """The registered method of Gaussians on a scene, with few of them, refined after each third step."""
    chosen = copy.deepcopy(divff_splat.config)
    assert isinstance(chosen, DivFFTrainerConfig)
    _quiet(chosen, scene, output, steps)
    model = chosen.pipeline.model
    assert isinstance(model, SplatModelConfig)
    model.static_start, model.max_static, model.max_dynamic, model.max_actor = 60, 90, 40, 30
    model.seed_rounds, model.densification.every, model.densification.gradient = 2, 3, 0.0
    model.heads = SplatHeadsConfig(code_dim=6, hidden=16)
    model.hidden = 16
    return chosen


def _quiet(chosen: DivFFTrainerConfig, scene: Path, output: Path, steps: int) -> None:
    """On a scene, with few rays, on the CPU, without a viewer."""
    chosen.machine.device_type = "cpu"
    chosen.vis = "tensorboard"
    chosen.output_dir, chosen.experiment_name, chosen.timestamp = output, "tiny", "run"
    chosen.max_num_iterations = steps
    chosen.pipeline.datamanager.dataparser.data = scene
    chosen.pipeline.datamanager.features = "auto"
    chosen.pipeline.datamanager.train_num_rays_per_batch = 32
    chosen.pipeline.datamanager.eval_num_rays_per_batch = 32


def trainer_of(chosen: DivFFTrainerConfig) -> DivFFTrainer:
    """The trainer of a configuration, where other trainings may have gone before: nerfstudio's writers are the
    process's own."""
    writer.EVENT_WRITERS.clear()
    writer.GLOBAL_BUFFER.clear()
    trainer = chosen.setup(local_rank=0, world_size=1)
    assert isinstance(trainer, DivFFTrainer)
    return trainer


Paint = Callable[[int, int, int], np.ndarray]
"""Index of the word that each pixel of a frame shows, given the frame's index, height and width."""


def write_features(
    root: Path,
    encoder_folder: Path,
    words: Sequence[str] = (),
    paint: Paint | None = None,
    negatives: Sequence[str] = ("cu",),
    video_encoder: str | None = None,
) -> str:
    """Writes image, video and regulariser features of a scene, and the encoder that answers for them.

    Args:
        root: The scene.
        encoder_folder: Where the encoder, whose weights are random, goes.
        words: What pixels show; their embeddings are the image and video features. None given: random features.
        paint: Which of them each pixel shows.
        negatives: The negatives of image and video features.
        video_encoder: Name of the text encoder that the video features ask for, if not this one.

    Returns:
        The encoder's name.
    """
    name = write_encoder(encoder_folder)
    encoder = load_encoder(name)
    scene = load_scene(root)
    random = np.random.default_rng(0)
    for kind, dimension in (("image", encoder.dimension), ("video", encoder.dimension), ("regulariser", 6)):
        asked = kind != "regulariser"
        text = video_encoder if kind == "video" and video_encoder else name
        header = StoreHeader(
            kind=kind,
            source="random",
            model=name,
            fingerprint=encoder.fingerprint,
            dimension=dimension,
            frame_ids=scene.frame_ids.tolist(),
            image_size=[scene.height, scene.width],
            text_encoder={"encoder": text, "fingerprint": encoder.fingerprint} if asked else None,
            negatives=list(negatives) if asked else [],
        )
        with FeatureWriter(root / "features" / kind, header) as writer:
            for i in range(len(scene.frame_ids)):
                table = random.normal(size=(max(3, len(words)), dimension))
                table /= np.linalg.norm(table, axis=1, keepdims=True)
                index = random.integers(0, 3, (scene.height // 4, scene.width // 4))
                if paint is not None:
                    index = paint(i, scene.height, scene.width)
                    table = encoder.encode_text(words).numpy() if asked else table
                writer.append(FrameFeatures(index.astype(np.uint16), table))
            writer.finish()
    return name


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
