"""What earlier versions call options, classes, optimizers and rows: their commands and runs keep working."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

import tyro

CLASSES = {
    "divff_nerfstudio.datamanager.FrameDataManagerConfig": "divff_nerfstudio.frame_datamanager.FrameDataManagerConfig",
    "divff_nerfstudio.fields.published.PublishedHeadsConfig": (
        "divff_nerfstudio.fields.published_heads.PublishedHeadsConfig"
    ),
    "divff_nerfstudio.model": "divff_nerfstudio.models.divff",
    "divff_nerfstudio.models.splat.density.DensityConfig": (
        "divff_nerfstudio.models.splat.density_control.DensityControlConfig"
    ),
    "divff_nerfstudio.published_model": "divff_nerfstudio.models.paper",
    "divff_nerfstudio.schedule": "divff_nerfstudio.models.schedule",
    "divff_nerfstudio.splat": "divff_nerfstudio.models.splat",
    "divff_nerfstudio.trainer.PublishedTrainerConfig": "divff_nerfstudio.trainer.DivFFTrainerConfig",
    "divff_nerfstudio.trainer.SplatTrainerConfig": "divff_nerfstudio.trainer.DivFFTrainerConfig",
}
"""Modules and classes by their former names; what is above serves what is below it."""
OPTIMIZERS = {"lives": "durations"}
"""Optimizers of earlier versions, in the ``config.yml`` and the checkpoints of runs, and what they are called now."""
ROWS = {"middles": "centres", "extents": "durations", "edges": "ramps"}
"""What checkpoints of earlier versions call rows of Gaussians, and what they are called now."""


def formerly(option: str) -> Any:
    """Metadata of an option that had another name: ``new_name: Annotated[int, formerly("--pipeline.model.old-name")]``.

    The command line takes both names, and so does a run's ``config.yml``; of a group of options, each of which says its
    own, the latter alone.

    Args:
        option: The former name as it is typed.
    """
    return tyro.conf.arg(aliases=(option,))


def former_options(hints: Mapping[str, Any]) -> dict[str, str]:
    """Present names of a configuration's fields by the former ones.

    Args:
        hints: Types of the fields with their metadata, by name.
    """
    found = {}
    for name, hint in hints.items():
        for each in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
            for option in getattr(each, "aliases", None) or ():
                found[option.rpartition(".")[2].replace("-", "_")] = name
    return found
