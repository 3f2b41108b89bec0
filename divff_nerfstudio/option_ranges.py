"""Ranges of options that nerfstudio's own configuration classes declare without any."""

from __future__ import annotations

from typing import Annotated, Any, Optional

from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, MachineConfig, ViewerConfig
from nerfstudio.configs.experiment_config import ExperimentConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig, OptimizerConfig
from nerfstudio.engine.schedulers import CosineDecaySchedulerConfig, ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import ModelConfig
from pydantic import Field

from divff_nerfstudio.schema import Amount, Count, Port, Positive, Ranges, Share, Weight, check_options

Rays = Annotated[int, Field(ge=1, le=2**24)]
"""Rays at a time."""
_Seed = Annotated[int, Field(ge=0, lt=2**32)]
NERFSTUDIOS: Ranges = {
    ExperimentConfig: {
        "max_num_iterations": Optional[Count],  # noqa: UP045
        **{f"steps_per_{each}": Amount for each in ("save", "eval_batch", "eval_image", "eval_all_images")},
    },
    TrainerConfig: {"load_step": Optional[Amount], "gradient_accumulation_steps": dict[str, Count]},  # noqa: UP045
    MachineConfig: {"seed": _Seed, "num_devices": Amount, "num_machines": Count, "machine_rank": Amount},
    LoggingConfig: {"steps_per_log": Count, "max_buffer_size": Count},
    LocalWriterConfig: {"max_log_size": Amount},
    ViewerConfig: {
        "websocket_port": Optional[Port],  # noqa: UP045
        "websocket_port_default": Port,
        "num_rays_per_chunk": Count,
        "max_num_display_images": Annotated[int, Field(ge=-1)],
        "jpeg_quality": Annotated[int, Field(ge=1, le=100)],
        "camera_frustum_scale": Positive,
    },
    ModelConfig: {"eval_num_rays_per_chunk": Rays, "loss_coefficients": dict[str, Weight]},
    VanillaDataManagerConfig: {
        "train_num_rays_per_batch": Optional[Rays],  # noqa: UP045
        "eval_num_rays_per_batch": Rays,
    },
    OptimizerConfig: {"lr": Positive, "eps": Weight, "max_norm": Optional[Positive]},  # noqa: UP045
    AdamOptimizerConfig: {"weight_decay": Weight},
    ExponentialDecaySchedulerConfig: {
        "lr_pre_warmup": Weight,
        "lr_final": Optional[Positive],  # noqa: UP045
        "warmup_steps": Amount,
        "max_steps": Count,
    },
    CosineDecaySchedulerConfig: {"warm_up_end": Amount, "learning_rate_alpha": Share, "max_steps": Count},
}
"""Types of fields by the class that declares them; they hold for its subclasses, too."""


def check_config(config: Any, prefix: str = "") -> None:
    """As `check_options`, of a configuration that has classes of nerfstudio in it.

    Args:
        config: The configuration.
        prefix: Names of the options that lead to it, with dots behind.

    Raises:
        OptionError: For the first option that is out of its range, with its name on the command line.
    """
    check_options(config, prefix, NERFSTUDIOS)
