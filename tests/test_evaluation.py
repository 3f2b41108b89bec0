"""Scores against known answers, figures, videos and the evaluation of a whole scene."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import small_scene
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score

from divff_nerfstudio.data.annotations import LabelledMasks
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.classes import ClassScores
from divff_nerfstudio.evaluation.consistency import consistency
from divff_nerfstudio.evaluation.figures import FIGURE, frame_figure, relevancy_cell
from divff_nerfstudio.evaluation.metrics import average_precision, lpips, lpips_weights, psnr, ssim
from divff_nerfstudio.evaluation.options import EvaluationError
from divff_nerfstudio.evaluation.report import Gallery, Report, report_page, save_report, save_scores
from divff_nerfstudio.evaluation.results import Evaluation, FrameResult, Task
from divff_nerfstudio.evaluation.run import Wanted, _things_among, evaluate, evaluate_scene
from divff_nerfstudio.evaluation.scores import FRAME_SCORES, frame_scores
from divff_nerfstudio.evaluation.surroundings import surroundings
from divff_nerfstudio.evaluation.tiles import (
    BACKGROUND,
    as_picture,
    blank,
    caption,
    column_of,
    fitted,
    marked,
    outlined,
    row_of,
)
from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.evaluation.videos import LAYOUTS, fixed_moments, path_moments, video_pictures, write_video
from divff_nerfstudio.evaluation.viewpoints import central_frame
from divff_nerfstudio.models.view import COMPOSITED, FEATURES, PICTURES
from divff_nerfstudio.viewer.camera_paths import CameraPath


@pytest.fixture(scope="module")
def scene_root(tmp_path_factory) -> Path:
    return small_scene.write(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def datamanager(scene_root):
    return small_scene.datamanager(scene_root)


@pytest.fixture
def trained(datamanager) -> TrainedScene:
    return TrainedScene(small_scene.KnowingModel(), datamanager, small_scene.make_query())


def test_psnr_of_a_known_error():
    target = np.full((4, 5, 3), 0.5)
    assert psnr(target + 0.1, target) == pytest.approx(20.0)
    assert psnr(target, target) == 100.0
    half = np.zeros((4, 5), bool)
    half[:2] = True
    image = target.copy()
    image[2:] += 0.3
    image[:2] += 0.01
    assert psnr(image, target, half) == pytest.approx(40.0)
    assert psnr(image, target, np.zeros((4, 5), bool)) is None


def test_ssim_of_equal_and_of_noisy_pictures():
    image = np.random.default_rng(0).random((20, 30, 3))
    assert ssim(image, image) == pytest.approx(1.0)
    noisy = ssim(image, np.random.default_rng(1).random((20, 30, 3)))
    assert noisy is not None and abs(noisy) < 0.2
    assert ssim(image[:8], image[:8]) is None


def test_average_precision_of_a_known_ranking():
    scores, truth = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert average_precision(scores, truth) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(scores, np.zeros(4, bool)) is None


@st.composite
def annotated_frames(draw):
    classes, frames = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    scores = (
        generator.integers(0, 65, (frames, 6, 7, classes)) / 64
        if draw(st.booleans())
        else np.full((frames, 6, 7, classes), 0.5)
    )
    truth = generator.random((frames, 6, 7, classes)) < draw(st.sampled_from([0.02, 0.3]))
    truth &= generator.random((frames, 1, 1, classes)) < 0.6
    return scores.astype(np.float32), truth


@given(annotated_frames(), st.floats(0.05, 0.95))
@settings(max_examples=60)
def test_class_scores_agree_with_counting_by_hand(frames, threshold):
    scores, truth = frames
    names = [f"class {i}" for i in range(truth.shape[-1])]
    summed = ClassScores(names, threshold)
    for frame in zip(scores, truth, strict=True):
        summed.add(*frame)
    per_class, published, sound, precisions = summed.per_class(), [], [], []
    for i, name in enumerate(names):
        has = truth[..., i].any(axis=(1, 2))
        found = scores[..., i] > np.float32(threshold)
        there = [(found[f] & truth[f, ..., i], found[f] | truth[f, ..., i]) for f in np.flatnonzero(has)]
        iou = sum(both.sum() for both, _ in there) / max(sum(either.sum() for _, either in there), 1)
        published.append(iou)
        assert per_class[name]["iou"] == pytest.approx(iou)
        assert per_class[name]["frames"] == has.sum()
        if not has.any():
            assert set(per_class[name]) == {"frames", "iou", "ap_published"} and iou == 0
            continue
        shown = (truth[has][..., i].ravel(), scores[has][..., i].ravel())
        assert per_class[name]["ap_published"] == pytest.approx(average_precision_score(*shown), abs=2e-3)
        sound.append((found & truth[..., i]).sum() / (found | truth[..., i]).sum())
        precisions.append(average_precision_score(truth[..., i].ravel(), scores[..., i].ravel()))
        assert per_class[name]["iou_sound"] == pytest.approx(sound[-1])
        assert per_class[name]["ap"] == pytest.approx(precisions[-1], abs=2e-3)
        every = [
            ((scores[..., i] > t) & truth[..., i]).sum() / ((scores[..., i] > t) | truth[..., i]).sum()
            for t in np.unique(scores[..., i]) - 1e-6
        ]
        assert per_class[name]["iou_oracle"] == pytest.approx(max(every), abs=2e-3)
    totals = summed.totals()
    assert totals["miou"] == pytest.approx(np.mean(published))
    if sound:
        assert totals["miou_sound"] == pytest.approx(np.mean(sound))
        assert totals["ap"] == pytest.approx(np.mean(precisions), abs=2e-3)
    else:
        assert totals == {"miou": 0.0, "ap_published": 0.0}
    assert all(math.isfinite(value) for value in totals.values())


def test_false_positives_where_a_class_is_absent_count_only_in_the_sound_convention():
    summed = ClassScores(["mug"], 0.7)
    truth = np.zeros((2, 10, 10, 1), bool)
    truth[0, :5] = True
    scores = np.where(truth, 0.9, 0.1)
    scores[1] = 0.95
    for frame in zip(scores, truth, strict=True):
        summed.add(*frame)
    assert summed.per_class()["mug"]["iou"] == 1.0
    assert summed.per_class()["mug"]["iou_sound"] == pytest.approx(50 / 150)
    assert summed.per_class()["mug"]["ap"] == pytest.approx(50 / 150, abs=1e-6)


def test_class_scores_without_a_frame_say_nothing():
    assert ClassScores(["mug"], 0.7).totals() == {}
    with pytest.raises(ValueError, match="classes"):
        ClassScores(["mug"], 0.7).add(np.zeros((2, 2, 2)), np.zeros((2, 2, 2), bool))


def test_what_is_yet_to_be_moved_is_left_out_where_annotations_leave_it_out():
    layers, ever = np.zeros((2, 4, 6), np.uint8)
    layers[0], ever[0], ever[2] = 1, 1, 1
    truth = SimpleNamespace(layers=lambda _: layers, layers_ever=lambda _: ever, clean_room=lambda _: None)
    shown = {"mask_dynamic": (ever == 1)[..., None] * 0.8, "mask_moving": (ever == 1)[..., None] * 0.8}

    def scores(**more: np.ndarray) -> dict[str, float]:
        result = FrameResult(0, 0, np.zeros((4, 6, 3)), shown | more, np.zeros((4, 6, 3)), layers > 0, truth)  # type: ignore[arg-type]
        return {key: round(value, 3) for key, value in frame_scores(result).items() if key.endswith(("_ap", "_ever"))}

    assert scores() == {"moving_ap": 0.5, "moving_ap_ever": 1.0, "dynamic_ap": 0.5, "dynamic_ap_ever": 1.0}
    told = scores(mask_moved=(layers == 1)[..., None] * 0.7)
    assert told == {"moving_ap": 1.0, "moving_ap_ever": 1.0, "dynamic_ap": 1.0, "dynamic_ap_ever": 1.0}


def test_an_answer_shows_what_is_found_at_a_threshold_that_fits():
    """Nothing reaches the fixed threshold, and half of the class the fitted one."""
    truth, fitted_mask = np.zeros((2, 40, 60, 1), bool)
    truth[10:30, 10:50], fitted_mask[10:30, 10:30] = True, True
    task = Task("object", "objects", "image", 0.7, LabelledMasks(("mug",), {3: truth}))
    grey, low = np.full((40, 60, 3), 0.5, np.float32), np.full((40, 60, 1), 0.4, np.float32)
    result = FrameResult(3, 3, grey, {"rgb": grey}, grey, None, None, {"object": low})
    bare, text = relevancy_cell(result, task, 0, (40, 60))
    assert text == "mug: IoU 0.00 at 0.7"
    result.masks["object"] = fitted_mask
    shown, text = relevancy_cell(result, task, 0, (40, 60))
    assert text == "mug: IoU 0.50 fitted, 0.00 at 0.7"
    changed = np.argwhere((shown != bare).any(axis=-1))
    assert changed.min(axis=0).tolist() == [11, 29] and changed.max(axis=0).tolist() == [28, 29]


def test_a_model_that_knows_the_scene_gets_the_scores_it_deserves(datamanager):
    model = small_scene.KnowingModel(error=0.1)
    evaluation = evaluate(model, datamanager, small_scene.make_query())
    totals = evaluation.totals
    assert list(evaluation.frames) == list(small_scene.TEST)
    assert totals["psnr"] == pytest.approx(20.0, abs=0.01)
    for key in ("moving_ap", "moving_ap_ever", "dynamic_ap", "dynamic_ap_ever", "actor_ap", "object_ap"):
        assert totals[key] == pytest.approx(1.0), key
    assert totals["psnr_static_room"] == 100.0
    nearest = [psnr(small_scene.picture(i - 1) / 255.0, small_scene.picture(i) / 255.0) for i in small_scene.TEST]
    assert totals["psnr_nearest_frame"] == pytest.approx(np.mean(nearest), abs=1e-4)  # of two as near, the earlier
    assert totals["object_miou"] == pytest.approx(2 / 3)  # the class never annotated counts as 0
    assert totals["object_miou_sound"] == pytest.approx(1.0)
    assert totals["affordance_miou"] == pytest.approx(1.0)
    assert set(evaluation.classes["object"]) == set(small_scene.OBJECTS)
    assert evaluation.thresholds == {
        "object": 0.7, "object_video": 0.7, "affordance": 0.54, "affordance_image": 0.54,
    }  # fmt: skip
    assert totals["psnr_moving"] == pytest.approx(20.0, abs=0.01) and totals["psnr_published"] == totals["psnr"]


def test_evaluation_sees_all_layers_whatever_is_asked(datamanager):
    model, query = small_scene.KnowingModel(), small_scene.make_query(text="mug")
    evaluate(model, datamanager, query, wanted=Wanted(tasks=("masks", "objects", "affordances")))
    assert len(model.seen) == 2 and all(not hidden for _, hidden, _ in model.seen)


SCORED = {"rgb", "rgb_static", "mask_dynamic", "mask_actor", "mask_moving", "mask_moved"}


@pytest.mark.parametrize(
    ("tasks", "asked", "figures", "outputs"),
    [
        (("masks",), True, False, SCORED),
        (("masks",), False, False, {"rgb"}),
        (("objects",), True, False, {"rgb", FEATURES}),
        (("objects",), True, True, {"rgb", FEATURES, *FIGURE}),
        (("masks", "affordances"), False, True, {"rgb", *FIGURE}),
    ],
)
def test_a_frame_is_rendered_for_its_scores_and_figures(tmp_path, tasks, asked, figures, outputs):
    root, model = small_scene.write(tmp_path / "scene"), small_scene.KnowingModel()
    if not asked:
        for folder in ("annotations", "object_annotations", "affordance_annotations", "ground_truth"):
            shutil.rmtree(root / folder)
    on_frame = frame_figure if figures else None
    evaluate(model, small_scene.datamanager(root), small_scene.make_query(), on_frame, Wanted(tasks=tasks))
    assert model.asked_for == [outputs] * len(small_scene.TEST)


def test_views_are_rendered_for_what_is_asked_in_them(trained):
    """Layers alone, what was moved, uncertainty and features as colours are nobody's question."""
    consistency(trained), surroundings(trained), trained.view(frame=3)
    assert len(trained.model.asked_for) > 3
    assert {*map(frozenset, trained.model.asked_for)} == {frozenset({*COMPOSITED, FEATURES})}


def test_scores_read_what_they_say_that_they_read():
    random, truth = np.random.default_rng(0), small_scene.layers(4)
    pictures = {name: random.random((*truth.shape, 3 if "rgb" in name else 1), np.float32) for name in PICTURES}
    known = SimpleNamespace(
        layers=lambda _: truth, layers_ever=lambda _: truth, clean_room=lambda _: 200 * truth[..., None]
    )
    for name, score in FRAME_SCORES.items():
        read = {name: pictures[name] for name in score.reads}
        results = [
            FrameResult(4, 4, pictures["rgb"] / 2, shown, pictures["rgb"], truth > 0, known)  # pyright: ignore
            for shown in (pictures, read)
        ]
        whole, found = map(score.compute, results)
        assert whole == found and (whole is not None or name == "lpips"), name


def test_flat_scores_are_finite_and_figures_are_written(datamanager, tmp_path):
    scores = evaluate_scene(small_scene.KnowingModel(), datamanager, small_scene.make_query(), tmp_path, get_std=True)
    assert all(isinstance(value, float) and math.isfinite(value) for value in scores.values())
    json.dumps(scores, allow_nan=False)
    assert scores["moving_ap_std"] == 0.0 and "object_miou_std" not in scores
    figures = sorted(path.name for path in tmp_path.iterdir())
    assert figures == ["consistency.png", "frame_000004.png", "frame_000008.png"]
    assert Image.open(tmp_path / figures[1]).size[0] > 1000


def test_what_is_not_there_is_left_out(scene_root, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(scene_root, bare)
    for folder in ("annotations", "object_annotations", "affordance_annotations", "ground_truth"):
        shutil.rmtree(bare / folder)
    scores = evaluate_scene(small_scene.KnowingModel(), small_scene.datamanager(bare), small_scene.make_query())
    assert set(scores) == {"psnr", "ssim", "psnr_nearest_frame"}  # LPIPS has no weights here


def test_no_features_no_classes(datamanager):
    model = small_scene.KnowingModel()
    model.features = lambda camera: {}
    scores = evaluate_scene(model, datamanager, small_scene.make_query())
    assert "psnr" in scores and not any(key.startswith(("object", "affordance")) for key in scores)


def test_without_a_text_encoder_the_other_scores_are_not_lost(datamanager, capsys):
    def absent(phrases):
        raise RuntimeError("no weights")

    query = small_scene.make_query()
    query.encoders["video"] = absent
    scores = evaluate_scene(small_scene.KnowingModel(), datamanager, query)
    assert {"psnr", "object_miou", "affordance_image_miou"} <= scores.keys()
    assert not {"affordance_miou", "object_video_miou"} & scores.keys()
    assert "no weights" in capsys.readouterr().out


def test_frames_that_were_trained_on_are_refused(scene_root):
    with pytest.raises(EvaluationError, match="trained on"):
        evaluate(small_scene.KnowingModel(), small_scene.datamanager(scene_root, "train"), small_scene.make_query())


def test_frames_that_were_trained_on_before_the_splits_changed_are_refused(datamanager):
    model = small_scene.KnowingModel()
    model.train_times = torch.tensor([0.0, 4 / 11])
    with pytest.raises(EvaluationError, match=r"Frame 4 of .* was trained on"):
        evaluate(model, datamanager, small_scene.make_query())


def test_only_what_is_wanted_is_evaluated(datamanager):
    model, shown = small_scene.KnowingModel(), []
    wanted = Wanted(tasks=("objects",), frames=1, queries=("mug", "bowl", "take the mug", "video: take the mug"))
    evaluation = evaluate(
        model, datamanager, small_scene.make_query(), lambda result, tasks: shown.append(result.shown), wanted
    )
    assert list(evaluation.frames) == [4] and len(model.seen) == 1
    assert set(evaluation.classes) == {"object", "object_video"} and set(evaluation.classes["object"]) == {
        "mug",
        "bowl",
    }
    assert set(shown[0]) == {("image", "take the mug"), ("video", "take the mug")}
    assert not any(key.startswith(("psnr", "affordance", "consistency")) for key in evaluation.totals)
    assert evaluation.frame_classes[4]["object"]["mug"]["iou"] == 1.0
    assert "object_miou_loo" not in evaluation.totals  # one frame cannot be left out


def test_baselines_see_training_frames_and_are_scored_alike(scene_root):
    datamanager = small_scene.datamanager(scene_root)
    datamanager.feature_stores = {"image": KnownFeatures(), "video": KnownFeatures()}
    wanted = Wanted(tasks=("masks", "objects"), baselines=("nearest", "mean", "extracted"))
    evaluation = evaluate(small_scene.KnowingModel(), datamanager, small_scene.make_query(), wanted=wanted)
    nearest, mean, extracted = (evaluation.baselines[name] for name in wanted.baselines)
    assert nearest.totals["psnr"] == pytest.approx(evaluation.totals["psnr_nearest_frame"])
    average = np.mean([small_scene.picture(i) / 255.0 for i in (0, 1, 3, 5, 6, 7, 9, 10, 11)], axis=0)
    expected = [psnr(average, small_scene.picture(i) / 255.0) for i in small_scene.TEST]
    assert mean.totals["psnr"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert 0.1 < mean.totals["moving_ap"] < 1 and 0.1 < nearest.totals["moving_ap"] < 1
    assert "psnr" not in extracted.totals and "ssim" not in extracted.totals
    assert extracted.classes["object"]["mug"]["iou"] == 1.0
    moved = [(small_scene.layers(i) == 1, small_scene.layers(i - 1) == 1) for i in small_scene.TEST]
    iou = sum((a & b).sum() for a, b in moved) / sum((a | b).sum() for a, b in moved)
    assert nearest.classes["object"]["mug"]["iou"] == pytest.approx(iou)
    assert 0 <= mean.totals["object_ap"] < nearest.totals["object_ap"] < extracted.totals["object_ap"]
    with pytest.raises(DivffError, match="no baseline nobody"):
        evaluate(
            small_scene.KnowingModel(), datamanager, small_scene.make_query(), wanted=Wanted(baselines=("nobody",))
        )


class KnownFeatures:
    """A feature store that knows what each frame shows; the actor has no feature."""

    table = np.zeros((0, 6), np.float16)
    """Nothing is stored, so that nothing is fitted to the scene."""

    def frame_features(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        index = np.where(small_scene.object_masks(frame)[..., 0], 1, 0).astype(np.uint16)
        index[small_scene.layers(frame) == 2] = 65535
        return index, np.stack([small_scene.CODES["object"].numpy(), small_scene.CODES["mug"].numpy()])


def test_thresholds_are_chosen_without_the_frame_they_are_used_on():
    scores = ClassScores(["mug"], 0.7)
    truth = np.zeros((4, 5, 1), bool)
    truth[:2] = True
    for level in (0.2, 0.4, 0.6):
        scores.add(np.where(truth, level + 0.1, level), truth)
    first, second, third = scores.left_out_thresholds()
    # Best for 0.4/0.5 and 0.6/0.7 is either gap, since both cost a whole frame: never the gap of the frame left out.
    assert not 0.2 <= first < 0.3 and not 0.4 <= second < 0.5 and not 0.6 <= third < 0.7
    table = scores.per_class()["mug"]
    assert table["iou_loo"] < table["iou_oracle"] and table["iou_sound"] == 0.0
    easy = ClassScores(["mug"], 0.7)
    for _ in range(3):
        easy.add(np.where(truth, 0.4, 0.1), truth)
    assert easy.per_class()["mug"]["iou_loo"] == 1.0 and easy.totals()["miou"] == 0.0
    assert all(0.1 < threshold < 0.4 for threshold in easy.left_out_thresholds())


def test_pixels_may_be_left_out():
    scores, truth = ClassScores(["mug"], 0.5), np.zeros((4, 4, 1), bool)
    truth[:2] = True
    where = np.zeros((4, 4), bool)
    where[1:3] = True
    table = scores.add(np.where(truth, 0.9, 0.8), truth, where)
    assert table["mug"] == {"pixels": 4, "found": 8, "iou": 0.5, "ap": 1.0}


def test_lpips_is_left_out_without_its_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    image = np.zeros((40, 40, 3))
    assert lpips_weights() == tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    assert lpips(image, image) is None


def test_pictures_are_brought_to_size_and_joined():
    image = np.zeros((2, 3, 1))
    image[0, 0] = 1.0
    large = as_picture(image, (20, 30), smooth=False)
    assert large.shape == (20, 30, 3) and (large[:10, :10] == 255).all() and large[10:].max() == 0
    joined = column_of([row_of([large, large]), large])
    assert joined.shape == (44, 64, 3) and (joined[30, 50] == BACKGROUND).all()


def test_outline_is_the_border_of_the_mask():
    mask = np.zeros((6, 6), bool)
    mask[1:5, 1:5] = True
    drawn = outlined(np.zeros((6, 6, 3), np.uint8), mask, (255, 0, 0))
    assert (drawn[..., 0] > 0).sum() == 12 and drawn[2, 2, 0] == 0 and drawn[1, 1, 0] == 255


def test_words_fit_their_cells():
    for text in ("mug", "a very long query that can never fit into so narrow a strip of pixels", ""):
        strip = caption(text, 120, 24)
        assert strip.shape == (24, 120, 3)
        assert (strip[:, :2] == BACKGROUND).all() and (strip[:, -2:] == BACKGROUND).all()
    assert caption("mug", 120, 24).std() > 0
    assert blank((90, 160), ["one", "two"]).shape == (90, 160, 3)
    assert blank((10, 160), ["one", "two", "three"]).shape == (10, 160, 3)


def test_a_ring_marks_the_point():
    drawn = marked(np.zeros((100, 200, 3), np.uint8), 0.5, 0.25)
    rows, cols = np.nonzero(drawn.max(axis=-1))
    assert abs(rows.mean() - 50) < 1.5 and abs(cols.mean() - 50) < 1.5


def read_back(path: Path) -> tuple[dict, list[np.ndarray]]:
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def test_video_decodes_to_what_was_written(tmp_path):
    pictures = [np.full((31, 45, 3), value, np.uint8) for value in (0, 60, 120, 180, 240)]
    assert write_video(tmp_path / "out.mp4", iter(pictures), fps=5) == 5
    meta, frames = read_back(tmp_path / "out.mp4")
    assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p") and meta["fps"] == 5
    assert meta["size"] == (46, 32) and len(frames) == 5
    for frame, picture in zip(frames, pictures, strict=True):
        assert abs(float(frame.mean()) - float(picture.mean())) < 3
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_an_interrupted_video_leaves_nothing_and_keeps_the_old_one(tmp_path):
    write_video(tmp_path / "out.mp4", [np.zeros((32, 32, 3), np.uint8)])
    before = (tmp_path / "out.mp4").read_bytes()

    def failing():
        yield np.zeros((32, 32, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "out.mp4", failing())
    assert (tmp_path / "out.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    with pytest.raises(EvaluationError, match="no picture"):
        write_video(tmp_path / "none.mp4", [])


def test_cameras_of_all_frames_have_their_own_pose_and_time(trained):
    scene, cameras = trained.scene, trained.cameras
    assert len(cameras) == small_scene.FRAMES
    np.testing.assert_allclose(cameras.times[:, 0].numpy(), scene.times())
    np.testing.assert_allclose(cameras.camera_to_worlds.numpy(), scene.camera_to_worlds)
    for name in ("fx", "fy", "cx", "cy"):
        assert float(getattr(cameras, name)[3]) == float(getattr(trained.datamanager.train_dataset.cameras, name)[0])
    assert central_frame(scene) in (5, 6)  # the camera slides along a line


def test_published_video_shows_own_and_fixed_viewpoint_at_the_same_times(trained, tmp_path):
    moments = fixed_moments(trained, [0, 6, 11], 7)
    pictures = list(video_pictures(trained, moments, LAYOUTS["published"], [("image", "mug")], size=(48, 80)))
    assert [(frame, round(x, 4)) for frame, _, x in trained.model.seen] == [
        (0, 0.0), (0, 0.07), (6, 0.06), (6, 0.07), (11, 0.11), (11, 0.07),
    ]  # fmt: skip
    assert write_video(tmp_path / "v.mp4", pictures) == 3
    meta, frames = read_back(tmp_path / "v.mp4")
    assert meta["size"] == (6 * 80 + 5 * 4, 2 * 48 + 28 + 2 * 4) and len(frames) == 3
    expected = as_picture(small_scene.picture(6) / 255.0, (48, 80))
    np.testing.assert_array_equal(pictures[1][:48, :80], expected)
    relevant = pictures[1][:48, -80:].astype(int)
    mug = as_picture((small_scene.layers(6) == 1)[..., None].astype(float), (48, 80), smooth=False)[..., 0] > 0
    assert (relevant[..., 0] - relevant[..., 2])[mug].mean() > 80


@pytest.mark.parametrize(
    ("layout", "columns", "rows"),
    [("own", 6, 1), ("other", 5, 1), ("masks", 8, 2), ("relevancy", 2, 2), ("prediction", 1, 1)],
)
def test_layouts_have_their_rows_and_columns(trained, layout, columns, rows):
    moments = fixed_moments(trained, [3], 7)
    (picture,) = video_pictures(trained, moments, LAYOUTS[layout], [("image", "mug")], size=(48, 80))
    assert picture.shape[1] == 84 * columns - 4 and picture.shape[0] == 52 * rows + 28
    assert len(trained.model.seen) == rows


@pytest.mark.parametrize(
    ("layout", "asked", "outputs"),
    [
        ("own", False, {"rgb", "rgb_static", "rgb_dynamic", "rgb_actor"}),
        ("masks", True, {"rgb", "rgb_static", "rgb_dynamic", "rgb_actor", "mask_dynamic", "mask_actor", FEATURES}),
        ("relevancy", True, {"rgb", FEATURES}),
        ("prediction", True, {"rgb"}),
    ],
)
def test_a_videos_views_are_rendered_for_its_columns(trained, layout, asked, outputs):
    queries = [("image", "mug")] if asked else []
    list(video_pictures(trained, fixed_moments(trained, [3], 7), LAYOUTS[layout], queries, size=(48, 80)))
    assert trained.model.asked_for == [outputs] * len(LAYOUTS[layout].rows)


def test_layers_are_hidden_in_every_row_and_shown_again(trained):
    moments = fixed_moments(trained, [3], 7)
    list(video_pictures(trained, moments, LAYOUTS["published"], hide=("actor",), size=(48, 80)))
    list(video_pictures(trained, moments, LAYOUTS["published"], size=(48, 80)))
    assert [hidden for _, hidden, _ in trained.model.seen] == [True, True, False, False]


def test_a_camera_path_gives_a_picture_for_each_camera_at_its_time(trained, tmp_path):
    cameras = trained.cameras[2:8]
    cameras.times = None
    moments = path_moments(trained, CameraPath(tmp_path, cameras, None, None), [0, 3, 5], (48, 80))
    assert [moment.frame for moment in moments] == [0, 7, 11]  # spread over the video
    assert [float(moment.other.camera_to_worlds[0, 0, 3]) for moment in moments] == pytest.approx([0.02, 0.05, 0.07])
    assert moments[1].note == ("camera path", "4 of 6", "(no target)")
    moments = path_moments(trained, CameraPath(tmp_path, trained.cameras[2:8], None, None), [0, 5], (48, 80))
    assert [moment.frame for moment in moments] == [2, 7]


def test_other_proportions_get_borders():
    cell = fitted(np.ones((10, 10, 1)), (48, 80))
    assert cell.shape == (48, 80, 3) and (cell[:, 16:64] == 255).all() and (cell[:, :16] == BACKGROUND).all()
    assert (fitted(np.ones((24, 40, 1)), (48, 80)) == 255).all()


def test_a_long_video_is_made_a_picture_at_a_time(trained):
    pictures = video_pictures(trained, iter(fixed_moments(trained, [0, 1, 2], 7)), LAYOUTS["own"], size=(48, 80))
    next(pictures)
    assert len(trained.model.seen) == 1


def test_ffmpeg_that_fails_is_reported(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises((EvaluationError, OSError)):
        write_video(tmp_path / "x" / "out.mp4", [np.zeros((256, 256, 3), np.uint8)] * 40)
    assert list((tmp_path / "x").iterdir()) == []


@pytest.fixture(scope="module")
def report(scene_root, tmp_path_factory) -> Report:
    folder = tmp_path_factory.mktemp("report")
    gallery = Gallery(folder / "frames")
    model, datamanager = small_scene.KnowingModel(), small_scene.datamanager(scene_root)
    evaluation = evaluate(model, datamanager, small_scene.make_query(), gallery.add)
    write_video(folder / "video.mp4", [np.zeros((32, 32, 3), np.uint8)] * 2)
    return Report(
        title="A <scene> & more",
        introduction="Two sentences.",
        evaluation=evaluation,
        gallery=gallery,
        facts={"Scene": "<b>tiny</b>"},
        targets={"psnr": 25.0, "moving_ap": 0.8},
        video=folder / "video.mp4",
        commands=[("Open the viewer.", "ns-viewer --load-config 'a b.yml'")],
    )


class Page(HTMLParser):
    """Tags, sources of pictures and videos, and the words of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.sources, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name == "src" and value]

    def handle_data(self, data):
        self.words += data


def test_report_stands_alone_and_says_what_was_reached(report, tmp_path):
    save_report(tmp_path / "report.html", report)
    page = Page((tmp_path / "report.html").read_text())
    assert "A <scene> & more" in page.words and "<b>tiny</b>" in page.words and "b" not in page.tags
    assert "≥ 25.00 missed by 5.00" in page.words and "≥ 0.80 reached" in page.words
    assert "take the mug" in page.words and "never shown" in page.words
    assert all(source.startswith("data:") for source in page.sources)
    pictures = [source for source in page.sources if source.startswith("data:image")]
    assert len(pictures) == 3 + 2  # an answer for each annotated class, a figure for each test frame
    decoded = Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2])))
    assert decoded.size == (300, 180)


def test_the_report_names_tasks_and_fitted_thresholds(tmp_path):
    classes = {"object_video": {"mug": {"frames": 4, "iou": 0.125, "iou_auto": 0.625}}}
    evaluation = Evaluation({}, {}, classes, {"object": 0.7, "object_video": 0.6})
    page = Page(report_page(Report("title", "text", evaluation, Gallery(tmp_path)), tmp_path))
    assert "Fixed thresholds of relevancy: Objects 0.7, Objects by video 0.6." in page.words
    assert "Objects by video, one by one" in page.words
    assert "IoU, publishedIoU, fittedmug40.120.62" in page.words


def test_a_large_video_is_linked(report, monkeypatch):
    monkeypatch.setattr("divff_nerfstudio.evaluation.report.MAX_VIDEO", 10)
    page = Page(report_page(report, report.video.parent))
    assert "video.mp4" in page.sources


def test_scores_are_saved_as_plain_json(report, tmp_path):
    save_scores(tmp_path / "scores.json", report.evaluation, {"Scene": "tiny"})
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["totals"] == report.evaluation.totals
    assert set(scores["frames"]) == {"4", "8"} and scores["classes"]["object"]["mug"]["frames"] == 2


def test_views_are_asked_for_things_alone():
    """Not for what is done, nor for what other features are asked; in words, actions are known by their annotations."""
    queries = ("mug", "video: cut the bread", "image: bowl", "take the mug")
    assert _things_among(queries, SimpleNamespace(names=("take the mug",))) == ("mug", "bowl")  # pyright: ignore
    assert _things_among(queries, None) == ("mug", "bowl", "take the mug")
