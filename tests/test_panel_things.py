"""What the panel tells of things: a scene of boxes in the viewer, driven without a browser."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from moved_scene import BOWL, FRAMES, HEIGHT, MUG, WIDTH
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerControl
from small_scene import only
from test_door import Hands, root, scene  # noqa: F401 (fixtures)
from test_panel import Machine, Viewer, drawing, server  # noqa: F401 (a fixture)
from torch import nn
from waiting import until as wait
from waiting import until_idle

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.door import Scene, kept_beside
from divff_nerfstudio.evaluation.options import EvaluationError
from divff_nerfstudio.fields.layers import LAYERS
from divff_nerfstudio.models.view import COMPOSITED, FEATURES
from divff_nerfstudio.pipeline import MAX_UNASKED, DivFFPipeline
from divff_nerfstudio.query import QueryError
from divff_nerfstudio.viewer.elements.events import PAGE
from divff_nerfstudio.viewer.panel import QueryPanel
from divff_nerfstudio.viewer.views import Visibility


class Boxes(Hands):
    """The scene of boxes as the viewer's model."""

    device, step, available = torch.device("cpu"), 0, (*COMPOSITED, FEATURES)

    def render(self, camera, layers=LAYERS, box=None, outputs=()):
        view = super().render(camera, layers, box)
        view.pictures["mask_moving"] = view.pictures["mask_dynamic"] + view.pictures["mask_actor"]
        return only(view, outputs)


class Eyes(SimpleNamespace):
    """A client, as far as its camera is concerned."""

    def atomic(self):
        return contextlib.nullcontext()


class Open:
    """A panel in a viewer with a client, on the scene of boxes."""

    def __init__(self, server, root, monkeypatch, scene, find=None, trainer=None):  # noqa: F811
        trained = scene.trained
        self.scene = frames = trained.scene
        self.trained, self.looked = trained, []
        pipeline = nn.Module()
        pipeline.panel = self.panel = QueryPanel(
            trained.query, Visibility(), frames.frame_ids, trained.times, frames.camera_to_worlds, 0.9,
            calibrate=trained.calibration, things=find or self.find,
        )  # fmt: skip
        self.viewer = Viewer(server, root, trainer, Boxes())
        for control in (c for _, c in parse_object(pipeline, ViewerControl, "Custom Elements")):
            control._setup(self.viewer)
        self.eyes = Eyes(client_id=7, camera=SimpleNamespace(), scene=server.scene)
        monkeypatch.setattr(server, "get_clients", lambda: {7: self.eyes})
        self.sent = []
        self.elements, self.parts = self.panel.elements, self.panel.parts

    def find(self, load_config, looked):
        self.asked_for = load_config
        return Scene(self.trained, None, lambda *done: (self.looked.append(done), looked(*done)))

    def known(self):
        wait(lambda: self.parts.things.scene is not None)
        return self

    def render(self, frame, turned=False):
        """Renders from where a frame was filmed, at its time; or away from it."""
        camera = self.trained.camera_at(frame, float(self.trained.times[frame]))
        if turned:
            camera.camera_to_worlds = camera.camera_to_worlds * torch.tensor([-1.0, 1, -1, 1])
        machine = Machine(self.viewer, 7)
        machine._send_output_to_viewer = lambda outputs, static_render: self.sent.append((outputs, static_render))
        machine.shot, machine.state = camera, "high"
        self.viewer.render_statemachines[7] = machine
        machine.start()
        machine.join()
        self.settle()
        return machine.outputs

    def ask(self, text):
        self.elements.ask.value = text
        wait(lambda: self.panel._query.config.text == text)
        self.settle()

    def settle(self):
        parts = self.parts
        for part in (parts.asking, parts.answering, parts.pointing, parts.judging, parts.telling, parts.diary):
            until_idle(part.lane)

    @property
    def told(self):
        return self.elements.told.content.replace("\\", "")


@pytest.fixture
def opened(server, tmp_path, monkeypatch, scene):  # noqa: F811
    return lambda **options: Open(server, tmp_path, monkeypatch, scene, **options)


def mask(scene, frame, thing):  # noqa: F811
    """Where a frame shows an instance."""
    return scene.trained.truth.instances(frame) == thing


def test_an_answer_says_since_when_its_thing_is_here_and_where_it_was(opened):
    panel = opened().known()
    panel.ask("mug")
    panel.render(9)
    assert "the mug (thing " in panel.told and "in view: here since frame 7; before that" in panel.told
    assert "scene units to the left" in panel.told and "until frame 5." in panel.told
    assert "rests" in drawing(panel.elements.told) and not panel.elements.go_there.visible
    panel.elements.fps.value = 10.0
    wait(lambda: "here since 7.0 s" in panel.told or panel.settle())
    panel.render(6)
    assert "carried from 5.0 s to 7.0 s" in panel.told
    panel.ask("mug; bowl")
    panel.render(9)
    assert "mug: the mug" in panel.told and "bowl: the bowl" in panel.told
    panel.ask("")
    panel.render(9)
    assert panel.told == ""


def test_what_is_not_in_view_is_gone_to(opened, scene):  # noqa: F811
    panel = opened().known()
    panel.ask("mug")
    panel.render(9, turned=True)
    assert "not in view here: here since" in panel.told and panel.elements.go_there.visible
    panel.viewer.control_panel.time = float(panel.trained.times[9])
    panel.parts.telling.go_there(panel.eyes)
    poses = panel.scene.camera_to_worlds[:, :, 3] * panel.parts.context.viewer.scale
    (at,) = np.flatnonzero(np.isclose(poses, panel.eyes.camera.position).all(axis=1))
    assert at >= 7 and mask(scene, int(at), MUG).any()
    assert panel.viewer.control_panel.time == pytest.approx(panel.trained.times[9])
    panel.render(9)
    assert ", in view:" in panel.told and not panel.elements.go_there.visible
    panel.parts.telling.go_there(panel.eyes)
    assert "in view" in panel.panel.state
    # On its way it is where the frame next in time has seen it.
    panel.render(6, turned=True)
    panel.parts.telling.go_there(panel.eyes)
    assert panel.viewer.control_panel.time == pytest.approx(panel.trained.times[6])


def test_what_is_no_thing_is_said_to_be_none(opened):
    """Beside what is, and beside what is asked back; once more where it has been cleared meanwhile."""
    panel, notes = opened().known(), []
    panel.parts.context.noted.connect(notes.append)
    for text in ("arm", "", "arm"):
        panel.ask(text)
        panel.render(6)
        assert panel.told == ("arm: in the scene, not a thing of it." if text else "")
    panel.ask("kettel; arm; mug")
    panel.render(6)
    assert "the mug (thing " in panel.told and panel.told.endswith("arm: in the scene, not a thing of it.")
    assert notes[-1] == "kettel is not in the scene. Did you mean kettle?"
    panel.ask("mug")
    panel.render(6)
    assert "not a thing" not in panel.told


def test_the_thing_itself_is_outlined(opened, scene):  # noqa: F811
    panel = opened().known()
    panel.ask("mug")
    first = panel.render(3)["relevancy_overlay"]
    view = panel.parts.answering.current
    own = view.answer.masks[..., 0].numpy()
    assert (own == mask(scene, 3, MUG)).mean() > 0.98 and own.any()
    assert view.answer.masks.shape == (HEIGHT, WIDTH, 1)
    panel.render(3)
    ((outputs, final),) = panel.sent
    assert final and not torch.equal(outputs["relevancy_overlay"], first)
    # What is known to be outlined stays so: the picture is not sent twice.
    assert torch.equal(panel.render(3)["relevancy_overlay"], outputs["relevancy_overlay"]) and len(panel.sent) == 1
    panel.ask("bowl")
    panel.render(3)
    own = view.answer.masks[..., 0].numpy()
    assert (own == mask(scene, 3, BOWL)).mean() > 0.98 and own.any()


def test_a_click_gives_the_thing_and_its_spans(opened, scene):  # noqa: F811
    panel = opened().known()
    panel.render(9)
    rows, columns = np.nonzero(mask(scene, 9, MUG))
    place = ((columns.mean() + 0.5) / WIDTH, (rows.mean() + 0.5) / HEIGHT)
    panel.parts.pointing.clicked(SimpleNamespace(client_id=7, screen_pos=[place]))
    wait(lambda: panel.elements.ask.value == "[point 1]")
    panel.settle()
    said = panel.elements.pointed.content.replace("\\", "")
    assert said.startswith("[point 1]: the mug (thing ") and "dynamic layer" in said
    last = FRAMES - 1
    assert f"rests frame 0 to frame 5, carried frame 6 to frame 6, rests frame 7 to frame {last}." in said
    panel.render(9)
    assert "the mug (thing " in panel.told and "here since frame 7" in panel.told


def test_the_diary_is_a_list_to_click(opened):
    panel = opened().known()
    wait(lambda: len(panel.elements.events.buttons) == 2)
    panel.parts.diary.open(0, panel.eyes)
    assert panel.viewer.control_panel.time == pytest.approx(panel.trained.times[5])
    scale = panel.parts.context.viewer.scale
    assert np.allclose(panel.eyes.camera.position, panel.scene.camera_to_worlds[5, :, 3] * scale)
    panel.settle()
    said = panel.elements.opened.content
    assert "data:image/jpeg" in said and "the mug" in said.replace("\\", "") and panel.elements.sides.visible
    panel.parts.diary.turn(True, panel.eyes)
    assert panel.viewer.control_panel.time == pytest.approx(panel.trained.times[7])
    # The first of the buttons opens the first event; the clock changes what it says.
    before = panel.viewer.control_panel.time
    for callback in panel.elements.events.buttons[1]._impl.update_cb:
        callback(SimpleNamespace(client=panel.eyes))
    wait(lambda: panel.viewer.control_panel.time != before)
    panel.elements.fps.value = 10.0
    wait(lambda: "10.0 s" in panel.elements.opened.content.replace("\\", ""))


def test_a_long_name_hides_not_what_has_happened(opened):
    panel = opened().known()
    wait(lambda: len(panel.elements.events.buttons) == 2)
    event = panel.parts.diary.events[0]
    thing = replace(event.thing, name="small dark green glass bottle of oil")
    panel.parts.diary.events = [replace(event, thing=thing, move=replace(event.move, source=None))]
    panel.parts.things.known()
    panel.settle()
    (button,) = panel.elements.events.buttons
    label = button._impl.label
    assert label.startswith("frame 5: brought in: small") and len(label) < 40


def test_many_events_have_pages(opened):
    panel = opened().known()
    listed = panel.elements.events
    wait(lambda: listed.buttons)
    panel.parts.diary.listed([f"frame {i}: mug" for i in range(2 * PAGE + 1)])
    assert len(listed.buttons) == PAGE + 1 and "13 events" in panel.elements.events._above.content
    listed.turn(later=True)
    listed.turn(later=True)
    listed.turn(later=True)
    assert len(listed.buttons) == 2
    listed.turn(later=False)
    assert len(listed.buttons) == PAGE + 1


def test_where_nothing_can_be_told_a_line_says_why(opened):
    def fails(error):
        def find(load_config, looked):
            raise error

        return find

    panel = opened(find=fails(EvaluationError("No segments: run `divff extract --sources segments`.")))
    wait(lambda: "segments" in panel.parts.things.state)
    assert "divff extract" in panel.elements.events._above.content.replace("\\", "")
    panel.ask("mug")
    panel.render(9)
    assert panel.told == "" and panel.parts.answering.current.answer.masks is None
    other = opened(find=fails(OSError("The disk is gone")))
    wait(lambda: "The disk is gone" in other.parts.things.state)
    other.render(9)
    other.parts.pointing.clicked(SimpleNamespace(client_id=7, screen_pos=[(0.5, 0.9)]))
    wait(lambda: other.elements.ask.value == "[point 1]")
    other.settle()
    said = other.elements.pointed.content
    assert "most like" in said and "The disk is gone" in said


def test_things_are_looked_for_beside_whoever_looks_on(opened):
    panel = opened()
    panel.known()
    assert panel.looked == [(i + 1, FRAMES) for i in range(FRAMES)]
    assert panel.asked_for.name == "config.yml" and panel.parts.things.state == ""


def test_while_training_they_are_not_looked_for(opened):
    trainer = SimpleNamespace(training_state="training")
    panel = opened(trainer=trainer)
    wait(lambda: "once training is over" in panel.parts.things.state)
    assert panel.looked == []
    trainer.training_state = "completed"
    panel.known()


def test_without_a_text_encoder_things_have_no_names(opened, scene):  # noqa: F811
    def speechless(phrases):
        raise QueryError("no weights")

    scene.trained.query.encoders["image"] = speechless
    panel = opened().known()
    assert {thing.name for thing in panel.parts.things.scene.found.things} == {""}
    wait(lambda: len(panel.elements.events.buttons) == 2)


def test_the_things_of_a_long_video_are_not_looked_for_unasked(tmp_path):
    pipeline = SimpleNamespace(_trained=SimpleNamespace(scene=range(MAX_UNASKED + 1)), model=SimpleNamespace(step=3))
    config = tmp_path / "config.yml"
    config.touch()
    with pytest.raises(DivffError, match=f"of {MAX_UNASKED + 1} frames.*`divff objects --load-config .*config.yml`"):
        DivFFPipeline._scene_of_things(pipeline, config, lambda *_: None)  # pyright: ignore
    kept_beside(config, 3).parent.mkdir()
    kept_beside(config, 3).touch()
    assert isinstance(DivFFPipeline._scene_of_things(pipeline, config, lambda *_: None), Scene)  # pyright: ignore
