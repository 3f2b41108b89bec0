"""Options of ``ns-render``, ``ns-eval`` and ``ns-viewer``, which these look at once a run is loaded, or never."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

from pydantic import Field

from divff_nerfstudio.option_ranges import Rays
from divff_nerfstudio.outputs import check_output_file, check_output_folder
from divff_nerfstudio.schema import Amount, Number, OptionError, Positive, Ranges, check_options
from divff_nerfstudio.viewer.camera_paths import MAX_CAMERAS, check_path_to_render
from divff_nerfstudio.viewer.listening import require_listening

if TYPE_CHECKING:
    from nerfstudio.scripts.render import BaseRender

_Rate = Annotated[int, Field(ge=1, le=240)]


def check_eval_options(arguments: Sequence[str]) -> None:
    """Looks at what was typed, if that was ``ns-eval``: where scores and pictures shall be written.

    Args:
        arguments: The program's name and what stands behind it, as in `sys.argv`.

    Raises:
        OutputError: If they cannot be.
    """
    if not _is_program(arguments, "eval"):
        return
    import tyro
    from nerfstudio.scripts.eval import ComputePSNR

    asked = tyro.cli(ComputePSNR, args=arguments[1:])
    check_output_file(asked.output_path, ".json", "--output-path")
    if asked.render_output_path is not None:
        check_output_folder(asked.render_output_path, "--render-output-path")


def check_viewer_options(arguments: Sequence[str]) -> None:
    """Looks at what was typed, if that was ``ns-viewer``: where it shall listen.

    Args:
        arguments: The program's name and what stands behind it, as in `sys.argv`.

    Raises:
        OptionError: If it cannot listen there.
    """
    if not _is_program(arguments, "viewer"):
        return
    import tyro
    from nerfstudio.scripts.viewer.run_viewer import RunViewer

    asked = tyro.cli(RunViewer, args=arguments[1:])
    if asked.vis == "viewer":
        require_listening(asked.viewer.websocket_host, asked.viewer.websocket_port)


def _is_program(arguments: Sequence[str], name: str) -> bool:
    """Whether a command line is that of a command of nerfstudio, ``ns-NAME``."""
    program = Path(arguments[0]) if arguments else Path()
    return program.stem == f"ns-{name}" or program.parts[-3:] == ("nerfstudio", "scripts", f"{name}.py")


def check_render_options(arguments: Sequence[str]) -> None:
    """Looks at what was typed, if that was ``ns-render``; nothing is said of other programs.

    Args:
        arguments: The program's name and what stands behind it, as in `sys.argv`.

    Raises:
        OptionError: If an option cannot be obeyed.
        CameraFileError: If the camera path is none.
    """
    asked = _typed(arguments)
    if asked is None:
        return
    from nerfstudio.scripts import render

    check_options(asked, "", _ranges())
    near, far = asked.depth_near_plane, asked.depth_far_plane
    if near is not None and far is not None and near >= far:
        raise OptionError(f"--depth-near-plane {near:g} --depth-far-plane {far:g}: give a near below far.")
    cropped = False
    if isinstance(asked, render.RenderCameraPath):
        cropped = check_path_to_render(asked.camera_path_filename)
    names = asked.rendered_output_names or []
    if "rgba" not in names:
        return
    if asked.image_format != "png":
        raise OptionError("rgba has a channel that JPEG does not hold: add --image-format png.")
    if isinstance(asked, render.DatasetRender):
        return
    if getattr(asked, "output_format", "") != "images":
        raise OptionError("rgba has a channel that videos do not hold: add --output-format images.")
    if len(names) > 1 or asked.render_nearest_camera:
        raise OptionError("rgba does not fit beside pictures of three channels: render it by itself.")
    if cropped:
        raise OptionError("rgba is not rendered of a camera path with a crop: leave one of them out.")


def path_to_render(arguments: Sequence[str]) -> Path | None:
    """The camera path that ``ns-render`` was asked for; None: none, or another program was typed.

    Args:
        arguments: The program's name and what stands behind it, as in `sys.argv`.
    """
    asked = _typed(arguments)
    return getattr(asked, "camera_path_filename", None)


def outputs_to_render(arguments: Sequence[str]) -> frozenset[str] | None:
    """Names of a view's outputs that ``ns-render`` reads; None: all of them, or another program was typed.

    Args:
        arguments: The program's name and what stands behind it, as in `sys.argv`.
    """
    asked = _typed(arguments)
    if asked is None or asked.rendered_output_names is None:
        return None
    from nerfstudio.scripts import render

    names = asked.rendered_output_names
    if isinstance(asked, render.DatasetRender):
        names = [name.removeprefix("raw-") for name in names]
        names = [name for name in names if not name.startswith("gt-")]
    read = {*names}
    if "rgba" in read:
        read = read - {"rgba"} | {"rgb", "accumulation"}
    if any("depth" in name for name in names):  # what is not seen is drawn white
        read.add("accumulation")
    return frozenset(read)


def _typed(arguments: Sequence[str]) -> BaseRender | None:
    """What ``ns-render`` was asked for; None: another program was typed."""
    if not _is_program(arguments, "render"):
        return None
    import tyro
    from nerfstudio.scripts import render

    return tyro.cli(render.Commands, args=arguments[1:])  # pyright: ignore


def _ranges() -> Ranges:
    from nerfstudio.scripts import render
    from nerfstudio.utils.colormaps import ColormapOptions

    return {
        render.BaseRender: {
            "downscale_factor": Annotated[float, Field(ge=1 / 64, le=64)],
            "jpeg_quality": Annotated[int, Field(ge=1, le=100)],
            "eval_num_rays_per_chunk": Optional[Rays],  # noqa: UP045
            "rendered_output_names": Optional[Annotated[list[str], Field(min_length=1)]],  # noqa: UP045
            "depth_near_plane": Optional[Number],  # noqa: UP045
            "depth_far_plane": Optional[Number],  # noqa: UP045
            "camera_idx": Optional[Amount],  # noqa: UP045
        },
        render.DatasetRender: {"downscale_factor": Optional[Annotated[float, Field(ge=1 / 64, le=64)]]},  # noqa: UP045
        render.RenderInterpolated: {
            "interpolation_steps": Annotated[int, Field(ge=1, le=MAX_CAMERAS)],
            "frame_rate": _Rate,
        },
        render.SpiralRender: {
            "seconds": Annotated[float, Field(gt=0, le=3600)],
            "frame_rate": _Rate,
            "radius": Positive,
        },
        ColormapOptions: {"colormap_min": Number, "colormap_max": Number},
    }
