"""The methods that nerfstudio finds."""

from __future__ import annotations

from typing import Any

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from divff_nerfstudio.data.epic_diff import EpicDiffDataParserConfig
from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.fields.layered import LayeredFieldConfig
from divff_nerfstudio.frame_datamanager import FrameDataManagerConfig
from divff_nerfstudio.guard import guard_configs
from divff_nerfstudio.models.divff import DivFFModelConfig
from divff_nerfstudio.models.paper import PublishedModelConfig
from divff_nerfstudio.models.schedule import StagedCosineConfig
from divff_nerfstudio.models.splat.model import SplatModelConfig
from divff_nerfstudio.pipeline import DivFFPipelineConfig
from divff_nerfstudio.query import QueryConfig
from divff_nerfstudio.trainer import DivFFTrainerConfig, FastAdamConfig


def _optimizer(rate: float, final: float) -> dict:
    return {
        "optimizer": FastAdamConfig(lr=rate),
        "scheduler": ExponentialDecaySchedulerConfig(lr_final=rate * final, warmup_steps=50),
    }


def _method(name: str, description: str, **options: Any) -> MethodSpecification:
    evaluated = {"steps_per_eval_batch": 500, "steps_per_eval_image": 1000, "steps_per_eval_all_images": 100000}
    config = DivFFTrainerConfig(
        method_name=name,
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        steps_per_save=1000,
        viewer=ViewerConfig(num_rays_per_chunk=4096, websocket_host="127.0.0.1"),
        vis="viewer",
        **{**evaluated, **options},
    )
    return MethodSpecification(config, description)


divff = _method(
    "divff",
    "Dynamic image-video feature fields: static, dynamic and actor layers that answer text.",
    pipeline=DivFFPipelineConfig(
        datamanager=DivFFDataManagerConfig(train_num_rays_per_batch=None, eval_num_rays_per_batch=1024),
        # Off where a config.yml of an earlier version does not name them.
        model=DivFFModelConfig(
            fields=LayeredFieldConfig(time_codes="apart", shadow_octaves=6), evidence="auto", hints="auto"
        ),
    ),
    optimizers={
        "grids": _optimizer(1.7e-2, 0.1),
        "networks": _optimizer(5e-3, 0.1),
        "actor": _optimizer(8.5e-3, 0.1),
        "heads": _optimizer(3e-3, 0.3),
    },
)

divff_paper = _method(
    "divff-paper",
    "The published DIV-FF network, sampling, losses and schedule, as they are in its checkpoints.",
    steps_per_eval_batch=1000,
    steps_per_eval_image=10000,
    steps_per_eval_all_images=1000000,
    pipeline=DivFFPipelineConfig(
        datamanager=DivFFDataManagerConfig(
            dataparser=EpicDiffDataParserConfig(time_rows=1000, pixel_centres=False),
            train_num_rays_per_batch=1024,
            eval_num_rays_per_batch=1024,
        ),
        model=PublishedModelConfig(),
        query=QueryConfig(unit_video_text=False),
    ),
    optimizers={
        group: {"optimizer": AdamOptimizerConfig(lr=5e-4, eps=1e-8), "scheduler": StagedCosineConfig()}
        for group in ("networks", "codes", "heads")
    },
)

divff_splat = _method(
    "divff-splat",
    "Gaussians in three layers with features: what divff does, rendered in real time on a GPU.",
    pipeline=DivFFPipelineConfig(
        datamanager=FrameDataManagerConfig(), model=SplatModelConfig(evidence="auto", hints="auto")
    ),
    optimizers={
        "means": _optimizer(1e-3, 0.02),
        "scales": _optimizer(1e-2, 0.2),
        "quats": _optimizer(5e-3, 0.2),
        "opacities": _optimizer(5e-2, 0.2),
        "colours": _optimizer(2e-2, 0.1),
        "harmonics": _optimizer(1e-3, 0.1),
        "codes": _optimizer(2e-2, 0.3),
        "durations": _optimizer(1e-2, 0.2),
        "motions": _optimizer(1e-3, 0.1),
        "uncertainties": _optimizer(2e-2, 0.2),
        "networks": _optimizer(5e-3, 0.1),
        "heads": _optimizer(3e-3, 0.3),
    },
)

# At import, alone of all: ns-eval and others read a config.yml, which may be a stranger's, before they set up anything.
guard_configs([divff.config, divff_paper.config, divff_splat.config])
