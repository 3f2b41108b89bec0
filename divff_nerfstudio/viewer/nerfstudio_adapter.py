"""nerfstudio's viewer as the panel sees it: no other file knows what nerfstudio keeps to itself.

Its viewer has no interface for plugins that would reach this far. What stands here was tried with nerfstudio 1.1.5 and
viser 0.2.7; after a change of version, this file is the one to look at, and `pytest -m browser` tells.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.viewer_elements import ViewerControl
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from torch import Tensor
from viser.transforms import SO3

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

_SECONDS = {"low_move": 1 / 12, "low_static": 1 / 3}
"""What a picture may take while the view moves, and before the full one."""
_MIN_HEIGHT = 30
_CPU_RESOLUTION = 228
"""Width of the viewer's picture on a CPU, unless the frames are wider; seconds pass before it is there."""


class PanelControl(ViewerControl):
    """Tells the panel of the viewer; nerfstudio finds it where it is a public attribute of a public module."""

    def __init__(self, attach: Callable[[Viewer], None]):
        self._attach = attach

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        self._attach(viewer)


class NerfstudioViewer:
    """nerfstudio's viewer.

    Args:
        viewer: nerfstudio's own object.

    Attributes:
        gui: The elements that all clients share.
        scene: What lies in space for all clients.
        model: What renders.
        scale: The viewer's units in one of the scene's.
        training: Whether it runs while training.
        order: Where the panel stands among the elements: above the tabs.
        camera_paths: The folder that the tab Render writes to.
        config_file: The run's configuration.
    """

    def __init__(self, viewer: Viewer):
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

        self._viewer, self._control = viewer, viewer.control_panel
        self._welcomed = False
        self.gui, self.scene = viewer.viser_server.gui, viewer.viser_server.scene
        self.model: Any = viewer.get_model()
        self.scale = VISER_NERFSTUDIO_SCALE_RATIO
        self.training = viewer.trainer is not None
        self.order = viewer.stats_markdown.order + 0.5
        self.camera_paths = Path(viewer.datapath) / "camera_paths"
        self.config_file = viewer.log_filename.parent / "config.yml"

    def prepare(self) -> None:
        """Takes away what has no use without training, and begins at a size that a CPU can render."""
        viewer = self._viewer
        if not self.training:
            viewer.pause_train.visible = viewer.resume_train.visible = False
        if self.model.device.type == "cpu":
            width = int(viewer.pipeline.datamanager.train_dataset.cameras.width.max())  # pyright: ignore
            self._control._max_res.value = min(512, max(_CPU_RESOLUTION, width))

    def draw_with(self, outputs: Callable[..., dict[str, Tensor]]) -> None:
        """Has the clients' pictures drawn by a function in place of `get_outputs_for_camera`.

        The viewer alone gets another model, so that evaluation during training renders with the model as it is.

        Args:
            outputs: Takes a camera and `obb_box`, a part of the scene or None; gives the outputs by their names.
        """
        shown: Any = SimpleNamespace(
            datamanager=self._viewer.pipeline.datamanager, model=_ShownModel(self.model, outputs)
        )
        self._viewer.pipeline = shown

    @property
    def in_training(self) -> bool:
        """Whether training goes on or is paused: afterwards, its viewer stays open."""
        trainer = self._viewer.trainer
        return trainer is not None and trainer.training_state != "completed"

    def training_lock(self) -> contextlib.AbstractContextManager[Any]:
        """What training and renders take turns by. Where nobody trains, looking over time keeps no render waiting."""
        return (self._viewer.train_lock if self.training else None) or contextlib.nullcontext()

    # Time and output, of which nerfstudio's own elements are the only record.

    @property
    def time(self) -> float:
        """The time that is shown, 0 to 1."""
        return self._control.time

    @time.setter
    def time(self, moment: float) -> None:
        self._control.time = moment

    def on_time(self, follow: Callable[[], None]) -> None:
        """Has a function called whenever the time has changed."""
        _also(self._control._time, follow)

    def place_time(self) -> Any:
        """Moves the time slider to where elements are being added, and returns its handle."""
        slider = self._control._time
        slider.remove()
        slider.install(self._viewer.viser_server)
        return slider.gui_handle

    def folder_of(self, text: Any) -> Any:
        """The folder that a text of the panel is in, in which more can be added, whatever the thread."""
        return self.gui._container_handle_from_id[text._parent_container_id]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that can be shown; one alone until something has been rendered."""
        return tuple(self._control._output_render.options)

    @property
    def output(self) -> str:
        """Name of the output that is shown."""
        return self._control.output_render

    @output.setter
    def output(self, name: str) -> None:
        if name != self.output:
            self._control._output_render.value = name

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the outputs that are in the picture: two where it is split."""
        both = self._control.output_render, self._control.split_output_render
        return both if self._control.split else both[:1]

    def on_output(self, follow: Callable[[], None]) -> None:
        """Has a function called whenever another output is shown."""
        _also(self._control._output_render, follow)

    # Clients; each has a thread of its own that renders for it.

    def on_client(self, came: Callable[[Any], None], gone: Callable[[int], None]) -> None:
        """Has functions called for each client that comes (its handle) and goes (its number)."""
        self._viewer.viser_server.on_client_connect(came)
        self._viewer.viser_server.on_client_disconnect(lambda client: gone(client.client_id))

    def rendering_client(self) -> int:
        """The client that the calling thread, one of the viewer's, renders for."""
        from nerfstudio.viewer.render_state_machine import RenderStateMachine

        thread = threading.current_thread()
        assert isinstance(thread, RenderStateMachine)
        return thread.client.client_id

    def clients(self) -> list[int]:
        """The clients that are connected and rendered for."""
        connected = self._viewer.viser_server.get_clients()
        return [client for client in list(self._viewer.render_statemachines) if client in connected]

    def handle(self, client: int) -> Any:
        """Handle of a client, with a scene of its own; None if it has gone."""
        return self._viewer.viser_server.get_clients().get(client)

    def at_rest(self, client: int) -> bool:
        """Whether a client's view rests, so that it is rendered, or has been, in full."""
        machine = self._viewer.render_statemachines.get(client)
        return machine is not None and machine.state == "high"

    def render_again(self, client: int) -> None:
        """Has a client's picture made anew, beginning with a small one."""
        from nerfstudio.viewer.render_state_machine import RenderAction

        machine, handle = self._viewer.render_statemachines.get(client), self.handle(client)
        if machine is not None and handle is not None:
            machine.action(RenderAction("move", self._viewer.get_camera_state(handle)))

    def send(self, client: int, camera: Cameras, outputs: Mapping[str, Tensor], final: bool = False) -> None:
        """Shows a client outputs that were not rendered just now.

        Args:
            client: Its number.
            camera: What they were rendered for.
            outputs: The outputs.
            final: Whether they are sent as well as a view at rest is.
        """
        machine, shown = self._viewer.render_statemachines.get(client), dict(outputs)
        if machine is None:
            return
        if self._control.layer_depth:
            ahead = camera.generate_rays(camera_indices=0).directions @ -camera.camera_to_worlds.reshape(3, 4)[:, 2]
            shown["gl_z_buf_depth"] = ahead[..., None] * shown["depth"].to(ahead)  # as nerfstudio itself adds it
        machine._send_output_to_viewer(shown, static_render=final)

    def welcome(self, client: Any, rays_per_second: Callable[[], float], failed: Callable[[Exception], None]) -> None:
        """Gives a new client progressive pictures; hides the frames' cameras when the first one comes.

        Args:
            client: The client.
            rays_per_second: How fast pictures are rendered.
            failed: Is told why a picture could not be made.
        """
        viewer, machine = self._viewer, self._viewer.render_statemachines.get(client.client_id)
        if machine is not None:
            machine._calculate_image_res = partial(
                self._resolution, machine, machine._calculate_image_res, rays_per_second
            )
            machine._render_img = partial(_uninterrupted, machine, machine._render_img, failed)
        if not self._welcomed and viewer.ready and hasattr(viewer, "camera_handles"):
            # The frames' own cameras stand in the way of who looks through one of them.
            self._welcomed = True
            viewer.set_camera_visibility(False)
            viewer.toggle_cameravis_button()
            viewer.update_step(viewer.step)

    def _resolution(
        self, machine: Any, full: Callable[[float], tuple[int, int]], speed: Callable[[], float], aspect_ratio: float
    ) -> tuple[int, int]:
        """Height and width of a client's next picture: three steps, each as large as its time allows.

        nerfstudio has two, and takes a kept view, which costs nothing, for proof of a fast renderer.
        """
        if machine.state == "high":
            return full(aspect_ratio)
        rays = max(speed(), 1.0) * _SECONDS[machine.state]
        max_height = self._control.max_res / max(aspect_ratio, 1.0)
        height = int(min(max((rays / aspect_ratio) ** 0.5, _MIN_HEIGHT), max_height))
        return height, int(height * aspect_ratio)

    def stand(self, client: Any, pose: Float[np.ndarray, "3 4"], fov: float) -> None:
        """Puts a client to a camera's place, with its vertical field of view in radians."""
        turned = SO3.from_matrix(pose[:, :3].astype(np.float64)) @ SO3.from_x_radians(np.pi)
        with client.atomic():
            client.camera.wxyz = turned.wxyz
            client.camera.position = pose[:, 3] * self.scale
            client.camera.fov = fov


class _ShownModel:
    """A model as the viewer has it: pictures come from elsewhere, all else from the model itself."""

    def __init__(self, model: Any, outputs: Callable[..., dict[str, Tensor]]):
        self._model, self.get_outputs_for_camera = model, outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _uninterrupted(
    machine: Any, render: Callable[[Any], Any], failed: Callable[[Exception], None], camera_state: Any
) -> Any:
    """Renders, whatever was to be interrupted before; a picture that cannot be made is told and passed over.

    nerfstudio interrupts also where nothing is being rendered, and so loses the next picture: a fifth of a second. Any
    other error than an interruption ends its thread, and with it all pictures of the client.
    """
    machine.interrupt_render_flag = False
    try:
        return render(camera_state)
    except IOChangeException:
        raise
    except Exception as error:
        failed(error)
        raise IOChangeException from error


def _also(element: Any, follow: Callable[[], None]) -> None:
    """Has a function called after an element's own callback."""
    own = element.cb_hook

    def both(changed: Any) -> None:
        own(changed)
        follow()

    element.cb_hook = both
