"""The viewer's side of a query: asks, shows what was found and where, points, looks through time, keeps the state."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.viewer.viewer_elements import ViewerControl
from torch import Tensor, nn
from viser.transforms import SO3

from divff_nerfstudio.overlays import as_rgb
from divff_nerfstudio.query import Example, Query, QueryError
from divff_nerfstudio.viewer.background import Latest
from divff_nerfstudio.viewer.camera_paths import write_still_path
from divff_nerfstudio.viewer.layout import FEATURES, NO_PRESET, SHOWN, Elements, build
from divff_nerfstudio.viewer.markup import as_code, as_image, as_markdown, legend, one_line, phrase_colour, plot
from divff_nerfstudio.viewer.panel_state import PanelState, panel_state_path
from divff_nerfstudio.viewer.pointing import best_words, layer_at, pixel_at, place_of, vocabulary
from divff_nerfstudio.viewer.presets import Preset
from divff_nerfstudio.viewer.timeline import HEIGHT, MOMENTS, Timeline, between, change, coarse_to_fine, what_is_seen
from divff_nerfstudio.viewer.views import View, Views, small_camera, viewpoint

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

    from divff_nerfstudio.rendering import Visibility

_LABEL = 40
_QUIET = 0.7
"""Seconds that a view must rest before it is looked at over time."""
_SECONDS = {"low_move": 1 / 12, "low_static": 1 / 3}
"""What a picture may take while the view moves, and before the full one."""
_LEAST_HEIGHT = 30
_CPU_RESOLUTION = 228
"""Width of the viewer's picture on a CPU, unless the frames are wider; seconds pass before it is there."""


class PanelControl(ViewerControl):
    """Tells the panel of the viewer; nerfstudio finds it where the panel is a public attribute of the pipeline."""

    def __init__(self, attach: Callable[[Viewer], None]):
        self._attach = attach

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        self._attach(viewer)


class QueryPanel(nn.Module):
    """The panel in nerfstudio's viewer. Without a viewer it does nothing.

    It stands above the viewer's tabs. Its callbacks return at once: text encoders load, phrases are encoded and views
    looked at in threads of its own, so that neither training nor rendering waits for them. Nothing is raised: what goes
    wrong is shown in the line of state, and the previous query stays.

    Args:
        query: What is asked.
        visibility: Layers to hide, read by the model at every render.
        frame_ids: Ids of all frames of the scene, ascending.
        times: Their times, 0 to 1.
        poses: Their camera-to-world matrices.
        fov: Their vertical field of view, in radians.
        presets: Gives the questions to offer; called in the background.

    Attributes:
        state: The line of state, as plain text.
        elements: Handles of the elements, once there is a viewer.
    """

    def __init__(
        self,
        query: Query,
        visibility: Visibility,
        frame_ids: Int[np.ndarray, "frames"],
        times: Float[np.ndarray, "frames"],
        poses: Float[np.ndarray, "frames 3 4"],
        fov: float,
        presets: Callable[[], Sequence[Preset]] = list,
    ):
        super().__init__()
        self._query, self._visibility = query, visibility
        self._frame_ids, self._times = np.asarray(frame_ids), np.asarray(times)
        self._poses, self._fov = np.asarray(poses), fov
        self._find_presets, self._presets = presets, dict[str, Preset]()
        self._lock = threading.Lock()
        self._wanted: dict[str, Any] = {}
        self._asked_at: tuple[float, int] | None = None
        self._encoded: set[str] = set()
        self._current: tuple[int, View] | None = None
        self._settled: dict[int, View] = {}
        self._marks: dict[int, list[Any]] = {}
        self._timeline: Timeline | None = None
        self._jump = False
        self._pointing = self._welcomed = False
        self.state = ""
        self.elements: Elements | None = None
        self.viewer_control = PanelControl(self._attach)

    # Attaching to the viewer.

    def _attach(self, viewer: Viewer) -> None:
        from nerfstudio.viewer.render_state_machine import RenderStateMachine

        def client() -> int | None:
            thread = threading.current_thread()
            return thread.client.client_id if isinstance(thread, RenderStateMachine) else None

        self._viewer = viewer
        self._asking, self._drawing, self._looking, self._finding = (
            Latest(f"panel {name}", self._failed) for name in ("asking", "drawing", "looking", "pointing")
        )
        if self._query.config.contour is None:
            self._query.ask(contour=True)
        model: Any = viewer.get_model()
        self._views = Views(model, lambda: (*self._hidden, getattr(model, "step", 0)), self._answer, self._seen, client)
        self._views.attach()
        config, kinds = self._query.config, self._kinds
        if kinds and config.features not in kinds:
            self._query.config = config = replace(config, features=kinds[0])
        self.elements = build(
            viewer.viser_server.gui,
            viewer.stats_markdown.order + 0.5,
            place_time=self._place_time,
            kinds=kinds,
            text=config.text,
            features=config.features,
            negatives="; ".join(self._query.negatives(config.features)),
            threshold=config.threshold,
            strength=config.strength,
            contour=bool(config.contour),
            hide_actor=self._visibility.hide_actor,
            hide_dynamic=self._visibility.hide_dynamic,
            frames=(int(self._frame_ids[0]), int(self._frame_ids[-1])),
            over_time=bool(kinds) and viewer.trainer is None,
        )
        self._wire(self.elements)
        viewer.viser_server.on_client_connect(self._welcome)
        viewer.viser_server.on_client_disconnect(lambda gone: self._forget(gone.client_id))
        if viewer.trainer is None:
            viewer.pause_train.visible = viewer.resume_train.visible = False
        self._note(self._describe())
        if model.device.type == "cpu":
            width = int(viewer.pipeline.datamanager.train_dataset.cameras.width.max())  # pyright: ignore
            viewer.control_panel._max_res.value = min(512, max(_CPU_RESOLUTION, width))
        # Listed here: what is written before the thread runs is new, too.
        self._camera_paths = _files(Path(self._viewer.datapath) / "camera_paths")
        for work in (self._offer_presets, self._watch_camera_paths):
            threading.Thread(target=work, name="panel", daemon=True).start()

    def _place_time(self) -> None:
        """Moves nerfstudio's time slider to where the panel has come in its layout."""
        slider = self._viewer.control_panel._time
        slider.remove()
        slider.install(self._viewer.viser_server)

    def _wire(self, e: Elements) -> None:
        """Attaches what the elements do, and follows nerfstudio's own elements for output and time."""
        e.ask.on_update(lambda _: self._change(text=e.ask.value))
        e.preset.on_update(lambda _: self._choose(e.preset.value))
        e.features.on_update(lambda _: self._choose_features(e.features.value))
        e.negatives.on_update(lambda _: self._change_negatives(e.negatives.value))
        e.threshold.on_update(lambda _: self._change(threshold=float(e.threshold.value)))
        e.strength.on_update(lambda _: self._change(strength=float(e.strength.value)))
        e.contour.on_update(lambda _: self._change(contour=bool(e.contour.value)))
        e.mark_best.on_update(lambda _: self._repaint())
        e.show.on_update(lambda _: self._show(SHOWN[e.show.value]))
        e.hide_actor.on_update(lambda _: self._hide(hide_actor=e.hide_actor.value))
        e.hide_dynamic.on_update(lambda _: self._hide(hide_dynamic=e.hide_dynamic.value))
        e.frame.on_update(lambda _: self._go_to(e.frame.value))
        e.stand.on_click(lambda event: self._stand(event.client))
        e.next_move.on_click(lambda _: self._find_move())
        e.over_time.on_update(lambda _: self._look_over_time())
        e.point.on_click(lambda _: self._toggle_pointing())
        e.still.on_click(lambda event: self._save_still(event.client_id))
        control = self._viewer.control_panel
        for element, follow in ((control._output_render, self._follow_output), (control._time, self._follow_time)):
            element.cb_hook = partial(_both, element.cb_hook, follow)

    def _welcome(self, client: Any) -> None:
        """Lets a new client begin where the scene was filmed from, with progressive pictures."""
        machine = self._viewer.render_statemachines.get(client.client_id)
        if machine is not None:
            full, render = machine._calculate_image_res, machine._render_img
            machine._calculate_image_res = lambda aspect_ratio: self._resolution(machine, full, aspect_ratio)
            machine._render_img = partial(_uninterrupted, machine, render)
        if not self._welcomed and self._viewer.ready and hasattr(self._viewer, "camera_handles"):
            # The frames' own cameras stand in the way of who looks through one of them.
            self._welcomed = True
            self._viewer.set_camera_visibility(False)
            self._viewer.toggle_cameravis_button()
            self._viewer.update_step(self._viewer.step)
        self._stand(client)

    def _resolution(self, machine: Any, full: Callable[[float], tuple[int, int]], aspect: float) -> tuple[int, int]:
        """Height and width of a client's next picture: three steps, each as large as its time allows.

        nerfstudio has two, and takes a kept view, which costs nothing, for proof of a fast renderer.
        """
        if machine.state == "high":
            return full(aspect)
        rays = max(self._views.rays_per_second, 1.0) * _SECONDS[machine.state]
        largest = self._viewer.control_panel.max_res / max(aspect, 1.0)
        height = int(min(max((rays / aspect) ** 0.5, _LEAST_HEIGHT), largest))
        return height, int(height * aspect)

    def _stand(self, client: Any) -> None:
        """Puts a client where the present frame was filmed from."""
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO as SCALE

        pose = self._poses[self._frame_at(self._viewer.control_panel.time)]
        turned = SO3.from_matrix(pose[:, :3].astype(np.float64)) @ SO3.from_x_radians(np.pi)
        with client.atomic():
            client.camera.wxyz = turned.wxyz
            client.camera.position = pose[:, 3] * SCALE
            client.camera.fov = self._fov

    @property
    def _kinds(self) -> list[str]:
        """The kinds of features that can be asked."""
        return [kind for kind in FEATURES if kind in self._query.kinds]

    @property
    def _hidden(self) -> tuple[bool, bool]:
        return self._visibility.hide_actor, self._visibility.hide_dynamic

    def _training_lock(self) -> contextlib.AbstractContextManager[Any]:
        """What training and renders take turns by. Where nobody trains, looking over time keeps no render waiting."""
        lock = None if self._viewer.trainer is None else self._viewer.train_lock
        return lock or contextlib.nullcontext()

    # The line of state.

    def _note(self, text: str) -> None:
        """Replaces the line of state; whatever it holds is shown as it is, not taken for markup."""
        self.state = text
        if self.elements is not None:
            self.elements.note.content = as_markdown(text)

    def _failed(self, error: Exception) -> None:
        self._note(str(error) or type(error).__name__)

    def _describe(self) -> str:
        """The state in words, when nothing has just happened."""
        kinds = self._kinds
        if not kinds:
            return "This run has no features to ask: extract them with divff extract, and train."
        missing = "".join(f" No {kind} features in this run." for kind in FEATURES if kind not in kinds)
        if not self._query.phrases:
            return f"Type what to look for, or pick a preset.{missing}"
        return f"The {self._query.config.features} features answer.{missing}"

    # Asking.

    def _change(self, **changes: Any) -> None:
        """Has the query changed in the background; of several changes that wait, the last ones count."""
        with self._lock:
            self._wanted.update(changes)
            self._asked_at = time.perf_counter(), self._views.rendered
        self._asking.submit(self._ask)

    def _change_negatives(self, text: str) -> None:
        phrases = tuple(" ".join(part.split()) for part in text.split(";") if part.strip())
        self._change(**{f"negatives_{self._query.config.features}": phrases})

    def _choose(self, label: str) -> None:
        """Asks a preset."""
        if label == NO_PRESET:
            return
        assert self.elements is not None
        preset = self._presets[label]
        self.elements.preset.value = NO_PRESET
        self.elements.ask.value = preset.text
        if preset.features is None or preset.features not in self._kinds:
            self._change(text=preset.text)
        else:
            self._change(text=preset.text, features=preset.features)
            self.elements.features.value = FEATURES[preset.features]

    def _choose_features(self, label: str) -> None:
        self._change(features=next(kind for kind, text in FEATURES.items() if text == label))

    def _ask(self) -> None:
        """Asks what is wanted; in the thread for it."""
        with self._lock:
            changes, self._wanted = self._wanted, {}
        if not changes:
            return
        kind = changes.get("features", self._query.config.features)
        if str(changes.get("text", self._query.config.text)).strip() and kind not in self._encoded:
            self._note(f"The text encoder of the {kind} features loads ...")
        try:
            self._query.ask(**changes)
        except QueryError as error:
            self._note(str(error))
            return
        assert self.elements is not None
        if self._query.phrases:
            self._encoded.add(kind)
        if "features" in changes:
            self._fill(self.elements.negatives, "; ".join(self._query.negatives(kind)))
        if self._asking.outdated:
            return
        with self._lock:
            # Not if a render has answered already, and said how long it took.
            if self._asked_at is not None:
                self._note(self._describe())
        if self._query.phrases and self._viewer.control_panel.output_render == "rgb" and "text" in changes:
            self._show("relevancy_overlay")
        self._repaint()

    def _fill(self, element: Any, value: Any) -> None:
        """Sets an element's value where it differs: setting calls its callback."""
        if element.value != value:
            element.value = value

    def _repaint(self, same_views: bool = True) -> None:
        """Has every client's picture made anew, from kept views where they have not changed.

        Args:
            same_views: Whether all views stay the same. One that is being rendered in full is not interrupted then: it
                will answer the new question, and until it does, the smaller picture before it answers.
        """
        clients = self._viewer.viser_server.get_clients()
        for number, machine in list(self._viewer.render_statemachines.items()):
            if number not in clients:
                continue
            if same_views and machine.state == "high" and self._views.at_work(number):
                self._answer_meanwhile(number, machine)
                if self._views.at_work(number):
                    continue
            self._render_again(machine, clients[number])

    def _render_again(self, machine: Any, client: Any) -> None:
        from nerfstudio.viewer.render_state_machine import RenderAction

        machine.action(RenderAction("move", self._viewer.get_camera_state(client)))

    def _answer_meanwhile(self, client: int, machine: Any) -> None:
        """Sends a client what it saw last, with the new answer, while a better picture is being rendered."""
        view = self._views.latest(client)
        if view is None:
            return
        machine._send_output_to_viewer({**view.pictures, **self._answer(view)}, static_render=False)
        self._describe_view(client, view)

    # Answering; called by the viewer's render threads, and by nobody while text encoders load.

    def _answer(self, view: View) -> dict[str, Tensor]:
        """The outputs that the query adds; their names stay the same whether or not anything is asked."""
        view.answer = None
        if not view.features or not self._kinds:
            return {}
        rgb = view.pictures["rgb"]
        if self._query.known:
            try:
                view.answer = self._query.look(view.features)
            except QueryError as error:
                self._note(str(error))
        elif self._query.phrases and self._asking.idle:
            # The configuration came with a question, which nobody has encoded yet.
            self._change(text=self._query.config.text)
        if view.answer is None:
            return {"relevancy": torch.zeros_like(rgb[..., :1]), "relevancy_overlay": rgb}
        return view.answer.pictures(rgb)

    def _seen(self, client: int, view: View) -> None:
        """Takes note of what a client sees, and has it described."""
        machine = self._viewer.render_statemachines.get(client)
        if machine is not None and machine.state == "high":
            self._settled[client] = view
        self._current = client, view
        self._describe_view(client, view)

    def _describe_view(self, client: int, view: View) -> None:
        """Says how long the answer in a view took, if it was waited for, and has its legend drawn."""
        query, answer = self._query, view.answer
        with self._lock:
            if self._asked_at is not None and not self._wanted:
                since, rendered = self._asked_at
                if answer is not None and answer.config == query.config:
                    along = " with rendering the view" if self._views.rendered > rendered else ""
                    took = _duration(time.perf_counter() - since)
                    self._note(f"The query took {took}{along} ({query.config.features} features).")
                    self._asked_at = None
                elif query.active and not view.features:
                    self._note("The features are not trained yet: the question is kept until they are.")
        self._drawing.submit(partial(self._draw, client, view))

    def _draw(self, client: int, view: View) -> None:
        """Shows the legend, the plot and, once the view is at rest, the best points."""
        assert self.elements is not None
        answer = view.answer
        if answer is None:
            self._content(self.elements.legend, "")
        else:
            scores = [answer.best(i)[2] for i in range(len(answer.phrases))]
            self._content(self.elements.legend, as_image(legend(answer.phrases, scores, answer.config.threshold)))
        self._plot()
        if self._settled.get(client) is view:
            self._mark(client, view)
            if self.elements.over_time.value and self._query.active and view.features:
                self._looking.submit(self._look)

    def _content(self, element: Any, content: str) -> None:
        if element.content != content:
            element.content = content

    # Points in space.

    def _mark(self, client: int, view: View) -> None:
        """Marks the best point of each phrase that is seen, for one client."""
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO as SCALE

        assert self.elements is not None
        handle = self._viewer.viser_server.get_clients().get(client)
        if handle is None:
            return
        for mark in self._marks.pop(client, []):
            mark.remove()
        answer = view.answer
        if answer is None or not self.elements.mark_best.value:
            return
        marks = self._marks.setdefault(client, [])
        for i, phrase in enumerate(answer.phrases):
            row, col, score = answer.best(i)
            if score < answer.config.threshold or float(view.pictures["accumulation"][row, col, 0]) < 0.5:
                continue
            place = place_of(view, row, col).numpy() * SCALE
            colour = tuple(round(255 * part) for part in as_rgb(phrase_colour(i, len(answer.phrases))))
            size = 0.008 * SCALE * float(view.pictures["depth"][row, col, 0])
            marks.append(
                handle.scene.add_icosphere(f"/answer/{i}", radius=size, color=colour, position=place)  # pyright: ignore
            )
            label = f"{one_line(phrase, _LABEL)} {score:.2f}"
            marks.append(handle.scene.add_label(f"/answer/{i}/label", label))

    def _forget(self, client: int) -> None:
        """Drops what belongs to a client that has gone."""
        self._views.forget(client)
        self._settled.pop(client, None)
        self._marks.pop(client, None)

    # Pointing.

    def _toggle_pointing(self) -> None:
        scene = self._viewer.viser_server.scene
        if self._pointing:
            self._pointing = False
            scene.remove_pointer_callback()
            self._note(self._describe())
            return
        self._pointing = True
        scene.on_pointer_event("click")(self._clicked)
        self._note("Click into the picture: what is there is asked. The button again: never mind.")

    def _clicked(self, event: Any) -> None:
        self._pointing = False
        self._viewer.viser_server.scene.remove_pointer_callback()
        across, down = event.screen_pos[0]
        self._finding.submit(partial(self._point_at, int(event.client_id), float(across), float(down)))

    def _point_at(self, client: int, across: float, down: float) -> None:
        """Asks what is at a place of a client's picture, and says what it is like."""
        assert self.elements is not None
        view = self._views.latest(client)
        if view is None:
            self._note("There is no picture yet: click again in a moment.")
            return
        row, col = pixel_at(view, across, down)
        layer = layer_at(view, row, col)
        where = f"{layer.name} layer ({100 * layer.share:.0f} %)"
        kinds = [kind for kind in self._kinds if kind in view.features]
        if not kinds:
            self.elements.pointed.content = as_markdown(f"{where}; there are no features yet to tell more.")
            return
        name = f"[point {1 + len(self._query.examples)}]"
        examples = {kind: Example.of(self._query.decode(view.features[kind], kind), row, col) for kind in kinds}
        self._query.examples[name] = examples
        self._fill(self.elements.ask, name)
        self._change(text=name)
        kind = self._query.config.features if self._query.config.features in kinds else kinds[0]
        self.elements.pointed.content = as_markdown(f"{name}: {where}; comparing it with words ...")
        words = [preset.text for preset in self._presets.values() if preset.features in (kind, None)]
        try:
            best = best_words(self._query, kind, examples[kind].feature, [*words, *vocabulary(kind)])
        except QueryError as error:
            self.elements.pointed.content = as_markdown(f"{name}: {where}. {error}")
            return
        like = ", ".join(f"{word} {score:.2f}" for word, score in best)
        self.elements.pointed.content = as_markdown(f"{name}: {where}; most like {like}.")

    # Time.

    def _go_to(self, frame_id: float) -> None:
        """Sets the viewer's time to that of the nearest frame."""
        nearest = int(np.abs(self._frame_ids - float(frame_id)).argmin())
        # The slider may stand a little beside the frame's own time; that is left as it is.
        if nearest != self._frame_at(self._viewer.control_panel.time):
            self._viewer.control_panel.time = float(self._times[nearest])
            self._note(f"Frame {self._frame_ids[nearest]} at time {self._times[nearest]:.4f}.")

    def _frame_at(self, moment: float) -> int:
        return int(np.abs(self._times - moment).argmin())

    def _follow_time(self) -> None:
        if self.elements is not None:
            frame = int(self._frame_ids[self._frame_at(self._viewer.control_panel.time)])
            self._fill(self.elements.frame, frame)

    def _look_over_time(self) -> None:
        assert self.elements is not None
        if self.elements.over_time.value:
            self._looking.submit(self._look)
        else:
            self._content(self.elements.plot, "")

    def _find_move(self) -> None:
        self._jump = True
        self._looking.submit(self._look)

    def _look(self) -> None:
        """Looks at the present viewpoint at many times, coarse to fine; then goes to the next move, if asked to."""
        rested = time.perf_counter() + _QUIET
        while not self._jump and time.perf_counter() < rested:
            if self._looking.outdated:
                return
            time.sleep(0.05)
        if self._current is None:
            self._note("There is no picture yet: try again in a moment.")
            return
        camera = self._current[1].camera
        key = viewpoint(camera), self._hidden
        timeline = self._timeline
        if timeline is None or timeline.key != key:
            chosen = np.unique(np.linspace(0, len(self._times) - 1, MOMENTS).round().astype(int))
            timeline = self._timeline = Timeline(key, camera, self._times[chosen])
        for done, i in enumerate(coarse_to_fine(len(timeline.times))):
            if timeline.views[i] is None:
                if self._looking.outdated:
                    return
                timeline.views[i] = self._small_view(timeline, float(timeline.times[i]))
                if done % 4 == 3:
                    self._plot()
                if self._jump:
                    self._note(f"Looking through the scene: {done + 1} of {len(timeline.times)} moments.")
        self._plot()
        if self._jump:
            self._jump = False
            self._go_to_move(timeline)

    def _small_view(self, timeline: Timeline, moment: float) -> View:
        """A small picture of a viewpoint at another time."""
        camera = small_camera(timeline.camera, HEIGHT, moment)
        with self._training_lock():
            view = self._views.render(camera, most_decoded=0)
        time.sleep(0.01)  # A render thread that waits for the lock gets it here.
        return view

    def _go_to_move(self, timeline: Timeline) -> None:
        """Goes to the frame in which what is asked for has begun to move."""
        what = "It" if self._query.phrases else "Anything"
        begins = timeline.next_move(self._query, self._viewer.control_panel.time)
        if begins is None:
            self._note(f"{what} does not move in this view." if self._query.phrases else "Nothing moves in this view.")
            return
        before, after = timeline.views[begins], timeline.views[begins + 1]
        assert before is not None and after is not None
        moments = between(self._times, float(timeline.times[begins]), float(timeline.times[begins + 1]))
        first, last = 0, len(moments) - 1
        seen = [what_is_seen(view, self._query) for view in (before, after)]
        while last - first > 1:
            middle = (first + last) // 2
            found = what_is_seen(self._small_view(timeline, moments[middle]), self._query)
            if change(seen[0], found) >= change(found, seen[1]):
                last, seen[1] = middle, found
            else:
                first, seen[0] = middle, found
        self._viewer.control_panel.time = moments[last]
        self._note(f"{what} moves at frame {self._frame_ids[self._frame_at(moments[last])]}.")

    def _plot(self) -> None:
        """Draws the scores over time, as far as they are known."""
        assert self.elements is not None
        timeline, current = self._timeline, self._current
        if timeline is None or current is None or not self.elements.over_time.value or not self._query.active:
            self._content(self.elements.plot, "")
            return
        if timeline.key != (viewpoint(current[1].camera), self._hidden) or not self._query.known:
            self._content(self.elements.plot, "")
            return
        config, phrases = self._query.config, self._query.phrases
        scores = timeline.scores(self._query)
        now = self._viewer.control_panel.time
        ends = int(self._frame_ids[0]), int(self._frame_ids[-1])
        drawing = plot(phrases, timeline.times, scores, config.threshold, now, ends)
        self._content(self.elements.plot, as_image(drawing))

    # What is shown.

    def _show(self, output: str) -> None:
        """Chooses nerfstudio's output."""
        element = self._viewer.control_panel._output_render
        if output in element.options:
            self._fill(element, output)
        elif len(element.options) > 1:
            self._note(f"There is no output {output} yet: train the features first.")
        self._follow_output()

    def _follow_output(self) -> None:
        shown = self._viewer.control_panel.output_render
        label = next((label for label, output in SHOWN.items() if output == shown), None)
        if self.elements is not None and label is not None:
            self._fill(self.elements.show, label)

    def _hide(self, **switches: bool) -> None:
        for name, value in switches.items():
            setattr(self._visibility, name, bool(value))
        self._repaint(same_views=False)

    def _offer_presets(self) -> None:
        """Reads the questions to offer, which may take a while in a long scene."""
        assert self.elements is not None
        try:
            self._presets = {preset.label: preset for preset in self._find_presets()}
        except Exception as error:  # as in Latest
            self._failed(error)
        self.elements.preset.options = [NO_PRESET, *self._presets]

    # Films.

    def _watch_camera_paths(self) -> None:
        """Saves the panel's state beside each camera path that nerfstudio's Render tab writes."""
        folder = Path(self._viewer.datapath) / "camera_paths"
        known = self._camera_paths
        while True:
            time.sleep(1)
            found = _files(folder)
            for path in found:
                if known.get(path) != found[path]:
                    self._save_state(path)
            known = found

    def _save_state(self, camera_path: Path) -> None:
        assert self.elements is not None
        state = PanelState.of(self._query, self._visibility, self._viewer.control_panel.output_render)
        try:
            state.save(panel_state_path(camera_path))
        except OSError as error:
            self._note(f"The panel's state could not be saved beside {camera_path}: {error}")
            return
        config = self._viewer.log_filename.parent / "config.yml"
        command = ["divff", "video", "--load-config", str(config), "--camera-path", str(camera_path)]
        text = as_code(shlex.join([*command, "--layout", "other"]))
        self.elements.saved.content = f"Saved with this panel's state. To film it:\n\n{text}"

    def _save_still(self, client: int | None) -> None:
        """Writes the camera path that stands where a client stands, through all times."""
        view = self._views.latest(client) if client is not None else None
        if view is None:
            self._note("There is no picture yet: try again in a moment.")
            return
        name = f"still-{datetime.now():%Y%m%d-%H%M%S}.json"
        path = Path(self._viewer.datapath) / "camera_paths" / name
        try:
            write_still_path(path, view.camera, self._times)
        except OSError as error:
            self._note(f"The camera path could not be written: {error}")
            return
        self._save_state(path)
        self._note(f"{path} is written; the command that films it stands under Film.")


def _uninterrupted(machine: Any, render: Callable[[Any], Any], camera_state: Any) -> Any:
    """Renders, whatever was to be interrupted before.

    nerfstudio interrupts also where nothing is being rendered, and so loses the next picture: a fifth of a second.
    """
    machine.interrupt_render_flag = False
    return render(camera_state)


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _both(hook: Callable[[Any], None], follow: Callable[[], None], element: Any) -> None:
    """nerfstudio's own callback of an element, then the panel's."""
    hook(element)
    follow()


def _files(folder: Path) -> dict[Path, int]:
    """The JSON files of a folder and when they were written."""
    files = {}
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError):
            files[path] = path.stat().st_mtime_ns
    return files
