"""The methods that nerfstudio finds."""

from __future__ import annotations

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.ffmpeg import ensure_ffmpeg
from divff_nerfstudio.pipeline import DivFFPipelineConfig
from divff_nerfstudio.trainer import DivFFTrainerConfig, FastAdamConfig

ensure_ffmpeg()


def _optimizer(rate: float, final: float) -> dict:
    return {
        "optimizer": FastAdamConfig(lr=rate),
        "scheduler": ExponentialDecaySchedulerConfig(lr_final=rate * final, warmup_steps=50),
    }


divff = MethodSpecification(
    config=DivFFTrainerConfig(
        method_name="divff",
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        steps_per_eval_batch=500,
        steps_per_eval_image=1000,
        steps_per_eval_all_images=100000,
        steps_per_save=1000,
        pipeline=DivFFPipelineConfig(
            datamanager=DivFFDataManagerConfig(train_num_rays_per_batch=0, eval_num_rays_per_batch=1024)
        ),
        optimizers={
            "grids": _optimizer(1e-2, 0.1),
            "networks": _optimizer(3e-3, 0.1),
            "actor": _optimizer(5e-3, 0.1),
            "heads": _optimizer(3e-3, 0.3),
        },
        viewer=ViewerConfig(num_rays_per_chunk=4096, websocket_host="127.0.0.1"),
        vis="viewer",
    ),
    description="Dynamic image-video feature fields: static, dynamic and actor layers that answer text.",
)
