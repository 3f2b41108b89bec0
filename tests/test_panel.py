"""The panel in nerfstudio's viewer, driven without a browser."""

from __future__ import annotations

import ast
import base64
import contextlib
import importlib.util
import json
import re
import shlex
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import viser
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.control_panel import ControlPanel
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerControl
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from small_scene import only
from torch import nn
from waiting import PATIENCE, until_idle
from waiting import until as wait

from divff_nerfstudio.calibration import Calibration
from divff_nerfstudio.fields.layers import LAYERS
from divff_nerfstudio.models.view import COMPOSITED, EVERYTHING, FEATURES, Features, RenderedView
from divff_nerfstudio.query import Query, QueryConfig
from divff_nerfstudio.relevancy import PUBLISHED_NEGATIVES
from divff_nerfstudio.viewer import views
from divff_nerfstudio.viewer.context import NO_PICTURE
from divff_nerfstudio.viewer.elements import Follower
from divff_nerfstudio.viewer.elements.picture import SHOWN
from divff_nerfstudio.viewer.layout import LAYOUT, TITLE
from divff_nerfstudio.viewer.panel import QueryPanel
from divff_nerfstudio.viewer.panel_state import load_panel_state, panel_state_path
from divff_nerfstudio.viewer.presets import Preset
from divff_nerfstudio.viewer.views import Visibility

ROOT = Path(__file__).parents[1]
HEIGHT, WIDTH = 36, 64
WORDS = {"mug": 0, "bowl": 1, "take the mug": 0}
IDS = np.arange(0, 2000, 2)


def encode(phrases):
    if any("broken" in phrase for phrase in phrases):
        raise OSError("no <b>weights</b> here")
    return torch.eye(8)[[WORDS.get(phrase, 2 + len(phrase) % 6) for phrase in phrases]]


class Model:
    """A mug of dynamic pixels that jumps to the right at half-time, and a room."""

    device = torch.device("cpu")
    step = 0
    available = (*COMPOSITED, "rgb_static", "rgb_actor", FEATURES)

    def __init__(self):
        self.rendered, self.asked = [], []

    def get_outputs_for_camera(self, camera, obb_box=None):
        return self.render(camera).pictures

    def render(self, camera, layers=LAYERS, box=None, outputs=EVERYTHING):
        height, width, moment = int(camera.height), int(camera.width), float(camera.times)
        self.rendered.append((height, moment))
        self.asked.append({*outputs})
        mug = torch.zeros(height, width, 1)
        start = width // 8 if moment < 0.5 else width // 2
        mug[height // 4 : height // 2, start : start + width // 4] = 1
        pictures = {
            "rgb": torch.full((height, width, 3), 0.5),
            "depth": torch.full((height, width, 1), 2.0),
            "accumulation": torch.ones(height, width, 1),
            "mask_dynamic": mug,
            "mask_actor": torch.zeros_like(mug),
            "mask_moving": mug,
            **dict.fromkeys(("rgb_static", "rgb_actor"), torch.zeros(height, width, 3)),
        }
        features = torch.eye(8)[torch.where(mug[..., 0] > 0, 0, 7)]
        view = RenderedView(camera, pictures, Features(("image", "video"), lambda _: features))
        return only(view, {*outputs} & {*self.available})


class Machine(RenderStateMachine):
    """A render thread that renders once, and takes note of what it is told to do."""

    def __init__(self, viewer, number):
        super().__init__(viewer, 10.0, SimpleNamespace(client_id=number))
        self.told = []

    def action(self, action):
        self.told.append(action.action)

    def run(self):
        self.outputs = self.viewer.get_model().get_outputs_for_camera(self.shot)


def camera(height=HEIGHT, moment=0.0, shift=0.0):
    pose = torch.eye(4)[None, :3]
    pose[0, 0, 3] = shift
    focal = height / 2
    size = {"width": height * WIDTH // HEIGHT, "height": height, "cx": height * WIDTH / HEIGHT / 2, "cy": height / 2}
    return Cameras(pose, focal, focal, **size, times=torch.tensor([[moment]]))


class Viewer:
    """As much of nerfstudio's viewer as the panel uses."""

    def __init__(self, server, root, trainer=None, model=None):
        gui = server.gui
        self.viser_server, self.trainer, self.train_lock, self.ready = server, trainer, threading.Lock(), True
        self.model = model or Model()
        self.stats_markdown = gui.add_markdown("Step: 0")
        self.pause_train, self.resume_train = gui.add_button("Pause"), gui.add_button("Resume")
        self.control_panel = ControlPanel(server, True, 10.0, lambda: None, lambda _: None, lambda _: None)
        self.control_panel.update_output_options(list(SHOWN.values()))
        self.control_panel._output_render.value = "rgb"
        self.datapath, self.log_filename = root, root / "run" / "log.txt"
        data = SimpleNamespace(train_dataset=SimpleNamespace(cameras=SimpleNamespace(width=torch.tensor([WIDTH]))))
        self.pipeline = SimpleNamespace(datamanager=data, model=self.model)
        self.render_statemachines = {}

    def get_model(self):
        return self.pipeline.model

    def get_camera_state(self, client):
        return client


class Pipeline(nn.Module):
    """A pipeline as far as the viewer is concerned."""

    def __init__(self, kinds=("image", "video"), text="", calibrated=False):
        super().__init__()
        self.calibrated = calibrated
        self.query = Query(QueryConfig(text=text), dict.fromkeys(kinds, encode))
        self.visibility = Visibility()
        poses = np.repeat(np.eye(4)[None, :3], len(IDS), 0)
        presets = [Preset("mug", "image"), Preset("take the mug", "video")]
        self.panel = QueryPanel(
            self.query, self.visibility, IDS, IDS / IDS[-1], poses, 0.9, lambda: presets, self.calibrate
        )

    def calibrate(self, kind):
        """A scene of a mug on a table, in every frame, held against what else there might be."""
        if not self.calibrated:
            return None
        features = np.eye(8, dtype=np.float32)[[0, 7] * 12]
        return Calibration(self.query, kind, features, np.arange(24) // 2, [f"{'x' * n}" for n in range(1, 60)])


@pytest.fixture
def server(monkeypatch):
    # viser looks at all processes of the machine for one that builds its page, and fails where one ends meanwhile.
    monkeypatch.setattr("viser._client_autobuild.ensure_client_is_built", lambda: None)
    server = viser.ViserServer(host="127.0.0.1", port=0)
    yield server
    server.stop()


@pytest.fixture
def attached(server, tmp_path, monkeypatch):
    """A panel in a viewer with a client, which has rendered once."""

    def attach(pipeline):
        viewer = Viewer(server, tmp_path)
        for control in (c for _, c in parse_object(pipeline, ViewerControl, "Custom Elements")):
            control._setup(viewer)
        client = SimpleNamespace(scene=server.scene)
        monkeypatch.setattr(server, "get_clients", lambda: {7: client})
        viewer.render_statemachines[7] = Machine(viewer, 7)
        return pipeline.panel, viewer

    return attach


def render(viewer, shot=None, state="high"):
    """Renders as one of the viewer's threads."""
    machine = Machine(viewer, 7)
    machine.shot, machine.state = shot or camera(), state
    viewer.render_statemachines[7] = machine
    machine.start()
    machine.join()
    return machine.outputs


def ask(panel, text):
    """Types a question and waits until it is asked."""
    panel.elements.ask.value = text
    wait(lambda: panel._query.config.text == text)
    settle(panel)


def settle(panel):
    for lane in (panel.parts.asking.lane, panel.parts.answering.lane, panel.parts.pointing.lane):
        until_idle(lane)


def press(button, client):
    """Presses a button as a client."""
    for callback in button._impl.update_cb:
        callback(SimpleNamespace(client_id=client, client=SimpleNamespace(), target=button))


def drawing(markdown):
    return base64.b64decode(re.search(r"base64,([^\"]+)", markdown.content)[1]).decode()


def test_without_a_viewer_it_is_nothing_but_a_module_without_weights():
    pipeline = Pipeline()
    assert pipeline.panel.elements is None and pipeline.state_dict() == {}
    assert [path for path, _ in parse_object(pipeline, ViewerControl, "x")] == ["x/panel/viewer_control"]


def test_another_question_is_answered_without_rendering_again(attached):
    panel, viewer = attached(Pipeline())
    before = render(viewer)
    assert torch.equal(before["relevancy_overlay"], before["rgb"]) and not before["relevancy"].any()
    panel.elements.ask.value = "bowl"
    wait(lambda: viewer.render_statemachines[7].told == ["move"])
    assert viewer.control_panel.output_render == "relevancy_overlay"
    render(viewer)
    settle(panel)
    assert "took" in panel.state and "with rendering" in panel.state
    ask(panel, "mug; bowl")
    after = render(viewer)
    assert (after["relevancy"] > 0.9).float().equal(after["mask_dynamic"])
    assert viewer.model.asked == [{*COMPOSITED}, {*COMPOSITED, FEATURES}]
    settle(panel)
    assert "took" in panel.state and "rendering" not in panel.state
    legend = drawing(panel.elements.legend)
    assert legend.index("mug") < legend.index("bowl") and "not in view" in legend


def test_what_nobody_looks_at_is_not_rendered_and_can_be_chosen(attached):
    panel, viewer = attached(Pipeline())
    control, asked = viewer.control_panel, viewer.model.asked
    before = render(viewer)
    assert asked == [{*COMPOSITED}]
    assert {*before} == {*viewer.model.available, "relevancy", "relevancy_overlay"} - {FEATURES}
    control.update_output_options(list(before))
    assert list(before).index("accumulation") < list(before).index("rgb_static") < list(before).index("mask_dynamic")
    assert torch.equal(before["rgb_static"], before["rgb"])
    control._output_render.value = "rgb_static"
    for _ in range(2):
        assert not render(viewer)["rgb_static"].any() and len(asked) == 2
    assert asked[-1] == {*COMPOSITED, "rgb_static"}
    for name in ("rgb", "mask_moving", "depth"):
        control._output_render.value = name
        assert list(render(viewer)) == list(before) and len(asked) == 2
    control._split.value, control._split_output_render.value = True, "rgb_actor"
    after = render(viewer)
    assert not after["rgb_actor"].any() and after["rgb_static"].any() and len(asked) == 3
    control._split.value, control._output_render.value = False, "rgb_static"
    assert not render(viewer)["rgb_static"].any() and len(asked) == 3, "the view before is kept, too"
    ask(panel, "mug")
    control._output_render.value = "rgb"
    assert render(viewer)["relevancy"].any() and asked[-1] == {*COMPOSITED, FEATURES}


def test_a_question_during_a_render_is_answered_by_another_one(attached):
    """That one was begun without features."""
    panel, viewer = attached(Pipeline())
    plain, machine = viewer.model.render, viewer.render_statemachines[7]

    def asked_meanwhile(*arguments):
        viewer.model.render = plain
        machine.state = "high"
        viewer.render_statemachines[7] = machine
        ask(panel, "mug")
        return plain(*arguments)

    viewer.model.render = asked_meanwhile
    assert not render(viewer)["relevancy"].any() and machine.told == ["move"]
    assert "not trained" not in panel.state
    assert render(viewer)["relevancy"].any() and len(viewer.model.rendered) == 2


def test_the_legend_tells_whether_the_scene_has_it(attached):
    panel, viewer = attached(Pipeline(calibrated=True))
    render(viewer)
    ask(panel, "mug; bowl")
    render(viewer)
    settle(panel)
    until_idle(panel.parts.judging.lane)
    legend = drawing(panel.elements.legend)
    assert legend.index("mug") < legend.index("bowl") < legend.index("not in the scene")
    assert "not in view" not in legend


def test_a_kept_view_answers_lower_resolutions_and_gives_its_own(attached):
    _, viewer = attached(Pipeline())
    render(viewer)
    small = camera(18)
    assert render(viewer, small)["rgb"].shape[:2] == (HEIGHT, WIDTH)
    # nerfstudio multiplies the rays of the camera that it passed with the depth that it got.
    assert small.generate_rays(0).directions.shape[:2] == (HEIGHT, WIDTH)
    render(viewer, camera(72))
    assert [height for height, _ in viewer.model.rendered] == [36, 72]


@pytest.mark.parametrize("change", ["moment", "shift", "hidden", "step"])
def test_a_view_that_has_changed_is_rendered(attached, change):
    pipeline = Pipeline()
    _, viewer = attached(pipeline)
    render(viewer)
    pipeline.visibility.hide_actor = change == "hidden"
    viewer.model.step += change == "step"
    render(viewer, camera(moment=0.4 * (change == "moment"), shift=1.0 * (change == "shift")))
    assert len(viewer.model.rendered) == 2


def test_the_model_is_left_as_it_is_and_the_viewers_differs_in_its_pictures_alone(attached):
    _, viewer = attached(Pipeline())
    assert vars(viewer.model).keys() == vars(Model()).keys()
    shown = viewer.get_model()
    assert shown.get_outputs_for_camera != viewer.model.get_outputs_for_camera
    viewer.model.step = 5
    assert shown.step == 5 and shown.device is viewer.model.device and not hasattr(shown, "camera_optimizer")
    assert viewer.pipeline.datamanager.train_dataset.cameras.width == WIDTH


def test_a_render_in_full_is_not_interrupted_by_typing(attached):
    panel, viewer = attached(Pipeline())
    machine = viewer.render_statemachines[7]
    panel.parts.answering.views._busy[7] = frozenset(COMPOSITED)
    machine.state = "high"
    panel.parts.answering.repaint()
    assert machine.told == []
    machine.state = "low_move"
    panel.parts.answering.repaint()
    assert machine.told == ["move"]


def test_a_smaller_picture_answers_while_a_better_one_is_rendered(attached):
    panel, viewer = attached(Pipeline())
    ask(panel, "bowl")
    render(viewer, camera(18), state="low_static")
    machine, sent = viewer.render_statemachines[7], []
    machine._send_output_to_viewer = lambda outputs, static_render: sent.append(outputs)
    panel.parts.answering.views._busy[7] = frozenset(viewer.model.available)
    machine.state = "high"
    ask(panel, "mug")
    wait(lambda: sent)
    assert (sent[-1]["relevancy"] > 0.9).float().equal(sent[-1]["mask_dynamic"])
    assert "The query took" in panel.state and len(viewer.model.rendered) == 1 and machine.told == []
    # Layers that are hidden make every view another one.
    panel.elements.hide_actor.value = True
    wait(lambda: machine.told == ["move"])


def test_a_flag_from_before_interrupts_no_render(attached):
    panel, viewer = attached(Pipeline())
    machine = viewer.render_statemachines[7]
    machine._render_img = lambda camera_state: (camera_state, machine.interrupt_render_flag)
    panel.parts.answering.welcome(SimpleNamespace(client_id=7, camera=SimpleNamespace(), atomic=contextlib.nullcontext))
    machine.interrupt_render_flag = True
    assert machine._render_img("here") == ("here", False)


def test_a_picture_that_cannot_be_made_is_told_and_the_next_one_comes(attached):
    """nerfstudio's thread lives on through nothing but an interruption."""
    panel, viewer = attached(Pipeline())
    machine, left = viewer.render_statemachines[7], [RuntimeError("fisheye cameras are not drawn")]

    def picture(camera_state):
        if left:
            raise left.pop()
        return camera_state

    machine._render_img = picture
    panel.parts.answering.welcome(SimpleNamespace(client_id=7, camera=SimpleNamespace(), atomic=contextlib.nullcontext))
    with pytest.raises(IOChangeException):
        machine._render_img("here")
    assert "fisheye cameras are not drawn" in panel.state and machine._render_img("here") == "here"


def test_untrained_features_are_waited_for(attached):
    panel, viewer = attached(Pipeline())
    viewer.model.available = COMPOSITED
    ask(panel, "mug")
    render(viewer)
    wait(lambda: "not trained yet" in panel.state)


def test_the_time_slider_stands_beside_the_frame_box(attached):
    panel, viewer = attached(Pipeline())
    slider, frame = viewer.control_panel._time.gui_handle, panel.elements.frame
    assert slider._impl.parent_container_id == frame._impl.parent_container_id
    assert slider.order < frame.order
    viewer.control_panel._time.set_hidden(False)


def test_neither_callbacks_nor_renders_wait_for_a_text_encoder(attached):
    pipeline, loads = Pipeline(text="mug"), threading.Event()
    slow = lambda phrases: (loads.wait(PATIENCE), encode(phrases))[1]  # noqa: E731
    pipeline.query.encoders = dict.fromkeys(pipeline.query.encoders, slow)
    panel, viewer = attached(pipeline)
    assert not render(viewer)["relevancy"].any()
    for text in ("b", "bo", "bow", "bowl"):
        panel.elements.ask.value = text
    wait(lambda: "loads" in panel.state)
    assert not render(viewer)["relevancy"].any()
    loads.set()
    wait(lambda: pipeline.query.config.text == "bowl")
    settle(panel)
    asked = {phrase for _, phrase in pipeline.query._remembered}
    assert len(asked & {"b", "bo", "bow"}) <= 1, "what is typed on while an encoder loads is not asked"


@pytest.mark.parametrize(
    "text", ["broken", ";".join(map(str, range(99))), "x" * 10_000, "🥄 勺子 {a} <script>", "[point 9]"]
)
def test_no_text_raises_and_errors_are_shown(attached, text):
    pipeline = Pipeline()
    panel, viewer = attached(pipeline)
    panel.elements.ask.value = text
    wait(lambda: pipeline.query.phrases == (text,) or re.search("cannot be used|at most|pointed at", panel.state))
    settle(panel)
    render(viewer)
    settle(panel)
    if pipeline.query.phrases:
        assert "<script" not in drawing(panel.elements.legend) and len(panel.elements.legend.content) < 5000
    else:
        assert "<" not in panel.elements.note.content.replace("\\<", "")


def test_settings_reach_the_query(attached):
    pipeline = Pipeline()
    panel, _ = attached(pipeline)
    e = panel.elements
    e.threshold.value, e.strength.value, e.contour.value, e.negatives.value = 0.6, 0.25, False, "stuff ;; floor"
    settings = ("negatives_image", "threshold", "strength", "contour")
    wanted = [("stuff", "floor"), 0.6, 0.25, False]
    wait(lambda: [getattr(pipeline.query.config, name) for name in settings] == wanted)


@pytest.mark.parametrize(("contour", "shown"), [(None, True), (False, False), (True, True)])
def test_the_outline_begins_as_the_run_says(attached, contour, shown):
    pipeline = Pipeline()
    pipeline.query.config = QueryConfig(contour=contour)
    panel, _ = attached(pipeline)
    assert panel.elements.contour.value is shown and pipeline.query.config.contour is shown


def test_presets_bring_their_features_and_negatives(attached):
    pipeline = Pipeline()
    panel, _ = attached(pipeline)
    wait(lambda: "take the mug (action)" in panel.elements.preset.options)
    panel.elements.preset.value = "take the mug (action)"
    wait(lambda: pipeline.query.config.features == "video" and pipeline.query.phrases == ("take the mug",))
    settle(panel)
    assert panel.elements.ask.value == "take the mug"
    assert panel.elements.negatives.value == "; ".join(PUBLISHED_NEGATIVES["video"])


def test_a_run_without_features_says_so(attached):
    panel, _ = attached(Pipeline(kinds=()))
    assert panel.elements.ask.disabled and "no features" in panel.state


def test_a_run_without_video_features_says_so(attached):
    panel, _ = attached(Pipeline(kinds=("image",)))
    assert "No video features in this run" in panel.state


def test_switches_hide_layers(attached):
    pipeline = Pipeline()
    panel, viewer = attached(pipeline)
    panel.elements.hide_actor.value = panel.elements.hide_dynamic.value = True
    wait(lambda: pipeline.visibility.hide_actor and pipeline.visibility.hide_dynamic)
    wait(lambda: len(viewer.render_statemachines[7].told) == 2)


def test_every_frame_can_be_reached_and_the_box_follows_the_slider(attached):
    """The slider has steps of 0.01, the box reaches each of 1000 frames."""
    panel, viewer = attached(Pipeline())
    panel.elements.frame.value = 1046
    wait(lambda: viewer.control_panel.time == pytest.approx(1046 / 1998))
    viewer.control_panel.time = 0.25
    wait(lambda: panel.elements.frame.value == 500)
    assert viewer.control_panel.time == 0.25


def test_what_an_element_is_filled_with_is_nobodys_choice():
    """viser calls back later, when something else may have happened since."""
    chosen, state = [], SimpleNamespace(frame=1)
    box = SimpleNamespace(value=1, on_update=lambda called: setattr(box, "called", called))

    def go_to(frame):
        chosen.append(frame)
        state.frame = frame

    follower = Follower(box, go_to)
    for state.frame in (5, 7):
        follower.follow(lambda: state.frame)
    state.frame = 9
    box.called(None)
    assert box.value == 7 and chosen == [] and state.frame == 9
    follower.follow(lambda: state.frame)
    box.value = 3
    box.called(None)
    box.called(None)
    box.value = 9
    box.called(None)
    assert chosen == [3, 9]


def test_a_click_asks_what_is_there(attached):
    pipeline = Pipeline()
    panel, viewer = attached(pipeline)
    render(viewer)
    assert viewer.model.asked == [{*COMPOSITED}]
    panel.parts.pointing.clicked(SimpleNamespace(client_id=7, screen_pos=[(0.25, 0.4)]))
    wait(lambda: pipeline.query.phrases == ("[point 1]",))
    settle(panel)
    assert panel.elements.ask.value == "[point 1]"
    assert "dynamic layer" in panel.elements.pointed.content and "like mug 1" in panel.elements.pointed.content
    outputs = render(viewer)
    assert (outputs["relevancy"] > 0.9).float().equal(outputs["mask_dynamic"])
    assert viewer.model.asked == [{*COMPOSITED}, {FEATURES}], "the view that was clicked in got features"


def test_best_points_are_marked_in_space(attached):
    panel, viewer = attached(Pipeline())
    ask(panel, "mug; bowl")
    render(viewer)
    wait(lambda: panel.parts.marks.of.get(7))
    settle(panel)
    ball, _ = panel.parts.marks.of[7]
    # A mug in the picture's upper left, two units along its ray from the eye; the viewer's units are ten times larger.
    x, y, z = np.asarray(ball.position)
    assert np.linalg.norm([x, y, z]) == pytest.approx(20, rel=1e-3) and x < 0 < y and z < 0
    panel.elements.mark_best.value = False
    render(viewer)
    wait(lambda: not panel.parts.marks.of.get(7))


def test_the_next_move_is_found_in_the_frame_where_it_begins(attached):
    panel, viewer = attached(Pipeline())
    ask(panel, "mug")
    render(viewer)
    panel.parts.over_time.find_move()
    wait(lambda: "moves at frame" in panel.state)
    moment = viewer.control_panel.time
    assert 0.5 <= moment < 0.5 + 1.5 / len(IDS)
    assert "polyline" in drawing(panel.elements.plot)
    looked = len(viewer.model.rendered)
    ask(panel, "bowl")
    panel.parts.over_time.find_move()
    wait(lambda: "does not move" in panel.state)
    assert len(viewer.model.rendered) == looked


def test_a_viewpoint_is_looked_at_over_time_for_what_is_asked(attached):
    """Asked for nothing, for what moves; what was looked at so is looked at anew for a question."""
    panel, viewer = attached(Pipeline())
    render(viewer)
    for text, outputs in (("", {"mask_moving"}), ("mug", {"mask_moving", FEATURES})):
        ask(panel, text)
        render(viewer)
        until_idle(panel.parts.over_time._lane)
        panel.parts.context.note("")
        panel.parts.over_time.find_move()
        wait(lambda: "moves at frame" in panel.state)
        assert viewer.model.asked.count(outputs) >= 32
        assert 0.5 <= viewer.control_panel.time < 0.5 + 1.5 / len(IDS)


def test_a_move_asked_for_before_there_is_a_picture_is_not_gone_to_later(attached):
    panel, viewer = attached(Pipeline())
    panel.parts.over_time.find_move()
    wait(lambda: panel.state == NO_PICTURE)
    moment = viewer.control_panel.time
    ask(panel, "mug")
    render(viewer)
    wait(lambda: "polyline" in drawing(panel.elements.plot) if panel.elements.plot.content else False)
    until_idle(panel.parts.over_time._lane)
    assert viewer.control_panel.time == moment and "moves at frame" not in panel.state


def test_what_cannot_be_asked_is_told_until_something_else_is_asked(attached):
    panel, viewer = attached(Pipeline())
    ask(panel, "mug")
    render(viewer)
    panel.elements.ask.value = ";".join(f"phrase {number}" for number in range(17))
    wait(lambda: "has at most" in panel.state)
    render(viewer, camera(18))
    settle(panel)
    assert "has at most" in panel.state


def test_a_viewpoint_that_has_become_sharper_is_looked_at_in_pictures_of_the_same_size(attached):
    panel, viewer = attached(Pipeline())
    ask(panel, "mug")
    render(viewer)
    panel.parts.over_time.find_move()
    wait(lambda: "moves at frame" in panel.state)
    timeline = panel.parts.over_time._timeline
    timeline.views[1::2] = [None] * len(timeline.views[1::2])
    render(viewer, camera(55))
    wait(lambda: panel.parts.answering.current.height == 55)
    panel.parts.context.note("")
    panel.parts.over_time.find_move()
    wait(lambda: "moves at frame" in panel.state)
    assert panel.parts.over_time._timeline is timeline
    assert {(view.height, view.width) for view in timeline.views} == {(HEIGHT, WIDTH)}


def test_state_is_saved_beside_camera_paths(attached, tmp_path):
    pipeline = Pipeline()
    panel, viewer = attached(pipeline)
    ask(panel, "mug")
    render(viewer)
    press(panel.elements.still, client=7)
    wait(lambda: "is written" in panel.state)
    (path,) = (tmp_path / "camera_paths").glob("*.json")
    content = json.loads(path.read_text())
    assert len(content["camera_path"]) == len(IDS) and content["camera_path"][-1]["render_time"] == 1.0
    assert load_panel_state(panel_state_path(path)).query == pipeline.query.config
    theirs = tmp_path / "camera_paths" / "tour.json"
    theirs.write_text("{}")
    wait(panel_state_path(theirs).is_file)


def test_names_of_camera_paths_are_shown_as_code(attached, tmp_path):
    """nerfstudio's tab Render takes the name of the file from the browser."""
    panel, _ = attached(Pipeline())
    (tmp_path / "camera_paths").mkdir()
    (tmp_path / "camera_paths" / "x```{alert(1)} $(touch y) `<b>.json").write_text("{}")
    wait(lambda: "alert" in panel.elements.saved.content)
    code = panel.elements.saved.content.partition("<code ")[2]
    assert code.endswith("</code>")
    words = shlex.split(json.loads(code[code.index('"', code.index(">")) : code.rindex('"') + 1]))
    assert words[:2] == ["divff", "video"]
    assert words[words.index("--camera-path") + 1].endswith("/x```{alert(1)} $(touch y) `<b>.json")


def test_nerfstudio_reads_the_still_path(attached, tmp_path):
    from nerfstudio.cameras.camera_paths import get_path_from_json

    panel, viewer = attached(Pipeline())
    render(viewer, camera(shift=0.5))
    panel.parts.recording.save_still(7)
    (path,) = (tmp_path / "camera_paths").glob("*.json")
    cameras = get_path_from_json(json.loads(path.read_text()))
    assert torch.allclose(cameras.camera_to_worlds[0], camera(shift=0.5).camera_to_worlds[0])
    assert float(cameras.fy[0]) == pytest.approx(HEIGHT / 2) and int(cameras.height[0]) == HEIGHT


def test_a_client_that_has_gone_leaves_nothing_behind(attached):
    panel, viewer = attached(Pipeline())
    render(viewer)
    assert panel.parts.answering.views.latest(7) is not None
    panel.parts.forget(7)
    assert panel.parts.answering.views.latest(7) is None and 7 not in panel.parts.answering._settled


def test_a_client_that_goes_while_its_picture_is_made_leaves_nothing_behind(attached, server, monkeypatch):
    panel, viewer = attached(Pipeline())
    monkeypatch.setattr(server, "get_clients", dict)
    render(viewer)
    assert panel.parts.answering.views.latest(7) is None and 7 not in panel.parts.answering._settled


def test_small_pictures_beside_do_not_count_as_the_speed_of_those_that_are_waited_for(attached):
    panel, viewer = attached(Pipeline())
    kept = panel.parts.answering.views
    kept.render(camera(height=8), ("rgb",))
    assert kept.rays_per_second == 0
    render(viewer)
    assert kept.rays_per_second > 0


@pytest.mark.parametrize(("free", "decoded"), [(None, 1), (2**30, 1), (2**10, 3)])
def test_features_are_kept_as_far_as_memory_allows(attached, monkeypatch, free, decoded):
    panel, viewer = attached(Pipeline())
    monkeypatch.setattr(views, "free_bytes", lambda device: free)
    assert free is None or views.max_kept(viewer.model.device) == free // 8
    view, times = panel.parts.answering.views.render(camera(), (*COMPOSITED, FEATURES)), []
    decode = view.features._decode
    view.features._decode = lambda kind: times.append(kind) or decode(kind)
    for _ in range(3):
        assert view.features["image"].shape == (HEIGHT, WIDTH, 8)
    assert len(times) == decoded


def test_a_client_begins_where_the_scene_was_filmed_and_renders_in_three_steps(attached):
    panel, viewer = attached(Pipeline())
    client = SimpleNamespace(client_id=7, camera=SimpleNamespace(), atomic=contextlib.nullcontext)
    panel.parts.answering.views.rays_per_second = 60_000.0
    panel.parts.answering.welcome(client)
    # nerfstudio's eyes look along +z, the scene's cameras along -z.
    assert np.allclose(client.camera.wxyz, [0, 1, 0, 0]) and np.allclose(client.camera.position, 0)
    assert client.camera.fov == 0.9
    machine, sizes = viewer.render_statemachines[7], {}
    for machine.state in ("low_move", "low_static", "high"):
        sizes[machine.state] = machine._calculate_image_res(2.0)
    assert sizes == {"low_move": (50, 100), "low_static": (100, 200), "high": (114, 228)}


def test_the_button_that_the_architecture_shows_is_added_by_its_file_and_its_line(attached, tmp_path, monkeypatch):
    manual = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("### A button in the panel")[2]
    file, line = re.findall(r"```python\n(.+?)```", manual, re.DOTALL)[:2]
    path = re.match(r"# divff_nerfstudio/viewer/elements/(\w+)\.py\n", file)
    (tmp_path / "added.py").write_text(file)
    spec = importlib.util.spec_from_file_location(f"divff_nerfstudio.viewer.elements.{path[1]}", tmp_path / "added.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ((name, add),) = eval("{" + line.strip() + "}", {path[1]: module}).items()
    monkeypatch.setitem(LAYOUT[TITLE], name, add)
    panel, viewer = attached(Pipeline())
    ask(panel, "mug")
    assert render(viewer)["relevancy"].any()
    press(getattr(panel.elements, name), client=7)
    wait(lambda: panel._query.config.text == panel.elements.ask.value == "")
    assert not render(viewer)["relevancy"].any()


def test_one_file_alone_touches_what_others_keep_to_themselves():
    found = []
    for path in (ROOT / "divff_nerfstudio" / "viewer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                found += [] if own else [path.name]
    assert set(found) == {"nerfstudio_adapter.py"}
