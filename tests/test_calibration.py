"""A yes or no that fits the scene: thresholds, what is in the scene, rivals, and their place in evaluation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from divff_nerfstudio.calibration import Calibration, calibration, common_phrases, parting
from divff_nerfstudio.evaluation.answers import Answer, judged
from divff_nerfstudio.evaluation.classes import ClassScores
from divff_nerfstudio.evaluation.meant import meant
from divff_nerfstudio.evaluation.naming import name_things
from divff_nerfstudio.features.oracle import phrase_code
from divff_nerfstudio.features.pretrained import EncoderError
from divff_nerfstudio.query import Query, QueryConfig, QueryError
from divff_nerfstudio.relevancy import PUBLISHED_NEGATIVES

DIM = 48
ROOM = ("table", "wall", "floor", "mug", "kettle", "green lamp of our own")


def encode(phrases):
    return torch.from_numpy(np.stack([phrase_code(phrase, DIM) for phrase in phrases]))


def scene(common: float = 0.0, frames: int = 12, things=ROOM):
    """A query and the features of things that every frame shows, with noise, and with what all have in common."""
    random, shared = np.random.default_rng(3), phrase_code("what all have in common", DIM)
    features, numbers = [], []
    for frame in range(frames):
        for name in things:
            feature = phrase_code(name, DIM) + 0.03 * random.standard_normal(DIM) + common * shared
            features.append(feature / np.linalg.norm(feature))
            numbers.append(frame)
    query = Query(QueryConfig(), {"image": encode}, {"image": PUBLISHED_NEGATIVES["image"]})
    return Calibration(query, "image", np.array(features, np.float32), numbers, common_phrases()["image"])


@pytest.mark.parametrize("common", [0.0, 1.5])
def test_what_is_there_and_what_is_not(common):
    found = {v.phrase: v.in_scene for v in scene(common).verdicts([*ROOM, "violin", "sledge", "a bus", "rocket"])}
    assert found == dict.fromkeys(ROOM, True) | dict.fromkeys(("violin", "sledge", "a bus", "rocket"), False)


def test_a_thing_that_few_frames_show_is_there():
    fitted = scene(frames=30)
    rare = np.stack([phrase_code("piano", DIM)] * 5).astype(np.float32)
    every = np.concatenate((fitted.features, rare))
    numbers = np.concatenate((np.repeat(np.arange(30), len(ROOM)), np.arange(5)))
    fitted = Calibration(fitted.query, "image", every, numbers, fitted.common)
    assert [verdict.in_scene for verdict in fitted.verdicts(["piano", "sledge"])] == [True, False]


def test_what_few_frames_show_is_not_the_thing_that_is_the_likeliest_of_the_others():
    """An arm is seen in 5 of 100 frames, and is no thing: the best segment of nine tenths of them is another's."""
    fitted, arm = scene(frames=100), np.stack([phrase_code("arm", DIM)] * 5).astype(np.float32)
    numbers = np.concatenate((np.repeat(np.arange(100), len(ROOM)), np.arange(5)))
    fitted = Calibration(fitted.query, "image", np.concatenate((fitted.features, arm)), numbers, fitted.common)
    codes = {name: phrase_code(name, DIM).astype(np.float32) for name in ROOM}
    things = [SimpleNamespace(name="", feature=code) for code in codes.values()]
    found = meant("arm", things, fitted)  # pyright: ignore
    assert found.things == () and found.standing == "in the scene, not a thing of it"
    things.append(SimpleNamespace(name="", feature=arm[0]))
    assert meant("arm", things, fitted).things == (things[-1],)  # pyright: ignore


def test_thresholds_lie_between_the_thing_and_the_rest():
    fitted = scene(common=1.0)
    (verdict,) = fitted.verdicts(["mug"])
    levels = {
        name: fitted.query.relevancies(torch.from_numpy(fitted.features[fitted_rows(name)]), "image", ["mug"]).numpy()
        for name in ("mug", "kettle", "table")
    }
    assert levels["mug"].min() > verdict.threshold > max(levels["kettle"].max(), levels["table"].max())


def fitted_rows(name: str) -> slice:
    return slice(ROOM.index(name), None, len(ROOM))


def test_a_rival_takes_the_pixels_that_are_more_like_it():
    """A pixel between two things is above the threshold of both, and is what it is more like."""
    fitted = scene()
    mug, kettle = (phrase_code(name, DIM) for name in ("mug", "kettle"))
    pixels = np.stack([mug, 0.8 * mug + 0.6 * kettle, 0.57 * mug + 0.82 * kettle, kettle])
    pixels = torch.from_numpy((pixels / np.linalg.norm(pixels, axis=-1, keepdims=True))[None].astype(np.float32))
    relevancies = fitted.query.relevancies(pixels, "image", ["mug"]).numpy()
    (verdict,) = fitted.verdicts(["mug"])
    assert (relevancies[0, :3, 0] > verdict.threshold).all()
    assert fitted.masks(pixels, relevancies, ["mug"])[0, :, 0].tolist() == [True, True, False, False]


def test_an_answer_names_what_it_is_told_apart_from():
    fitted = scene()
    mug, kettle = (phrase_code(name, DIM) for name in ("mug", "kettle"))
    pixels = np.stack([mug, 0.8 * mug + 0.6 * kettle, 0.57 * mug + 0.82 * kettle, phrase_code("wall", DIM)])
    pixels = torch.from_numpy((pixels / np.linalg.norm(pixels, axis=-1, keepdims=True))[None].astype(np.float32))
    view = SimpleNamespace(embeddings=lambda kind: pixels)
    for phrase, rival in (("mug", {"phrase": "kettle", "area": 0.25}), ("violin", None)):
        relevancy = fitted.query.relevancies(pixels, "image", [phrase]).numpy()[..., 0]
        answer = Answer(
            phrase, "image", relevancy, 0.5, 0, 0, (0.0, 0.0, 0.0), 1.0, {"static": 1.0}, np.zeros((1, 4, 3))
        )
        assert answer.summary()["rival"] is None
        assert judged(answer, view, fitted).summary()["rival"] == rival  # pyright: ignore


def test_what_is_as_like_one_thing_as_another_has_no_name():
    mug, kettle = (phrase_code(name, DIM) for name in ("mug", "kettle"))
    shown = [
        SimpleNamespace(feature=(f / np.linalg.norm(f)).astype(np.float32), name="") for f in (mug, mug + 1.2 * kettle)
    ]
    name_things(SimpleNamespace(things=shown), scene())
    assert [thing.name for thing in shown] == ["mug", ""]
    name_things(SimpleNamespace(things=shown), scene(), ["mug", "wall"])
    assert [thing.name for thing in shown] == ["mug", "mug"]


def test_an_encoder_that_knows_few_things_names_no_others():
    """What lies between a mug and a thing that the encoder has never learned to tell apart from it is a mug."""

    class OfFewThings:
        names = ("mug", "wall", "table")

        def __call__(self, phrases):
            return encode(phrases)

    mug, kettle = (phrase_code(name, DIM) for name in ("mug", "kettle"))
    shown = [SimpleNamespace(feature=f.astype(np.float32), name="") for f in (mug, (mug + 1.2 * kettle) / 1.6, kettle)]
    name_things(SimpleNamespace(things=shown[:2]), scene())
    assert [thing.name for thing in shown[:2]] == ["mug", ""]
    fitted = scene()
    fitted.query.encoders["image"] = OfFewThings()
    name_things(SimpleNamespace(things=shown), fitted)
    assert [thing.name for thing in shown[:2]] == ["mug", "mug"] and shown[2].name != "kettle"


def test_an_encoder_that_does_not_load_is_told_of_in_one_sentence():
    class Missing:
        @property
        def names(self):
            raise EncoderError("The weights are not here.")

    fitted = scene()
    fitted.query.encoders["image"] = Missing()
    with pytest.raises(QueryError, match="image features cannot be used: The weights are not here"):
        fitted.query.names("image")


def test_an_example_is_in_the_scene():
    fitted = scene()
    assert fitted.verdicts(["[point 1]"])[0].in_scene


def test_other_negatives_are_other_thresholds():
    fitted = scene()
    before = fitted.verdicts(["mug"])[0]
    fitted.query.ask(negatives_image=("kettle",))
    assert fitted.verdicts(["mug"])[0].threshold != before.threshold
    fitted.query.ask(negatives_image=(), text="table")
    assert fitted.verdicts(["mug"])[0] == before


def test_where_nothing_is_stored_nothing_is_said():
    query = Query(QueryConfig(), {"image": encode})
    empty = SimpleNamespace(table=np.zeros((0, DIM), np.float16))
    assert calibration(query, "image", empty) is None
    assert calibration(query, "video", SimpleNamespace(table=np.ones((3, DIM)))) is None


def test_the_parting_leaves_chance_below():
    random = np.random.default_rng(0)
    absent, present = random.normal(2, 0.4, 230), random.normal(6, 0.8, 18)
    found = parting(np.concatenate((absent, present)))
    assert (absent < found).mean() > 0.97 and found < present.min()
    nothing = random.normal(2, 0.4, 250)
    assert (nothing < parting(nothing)).mean() > 0.8
    assert parting(np.full(3, 1.0)) > 1.0


def test_common_phrases_are_many_and_each_once():
    for phrases in common_phrases().values():
        assert len(set(phrases)) == len(phrases) >= 90


def test_scores_of_masks_are_summed_over_frames():
    scores = ClassScores(("a", "b"), 0.5)
    truth = np.zeros((2, 4, 2), bool)
    truth[0, :, 0] = True
    masks = np.zeros_like(truth)
    masks[0, :2, 0] = True
    scores.add(np.zeros((2, 4, 2)), truth, masks=masks)
    scores.add(np.zeros((2, 4, 2)), truth, masks=truth)
    assert scores.per_class()["a"]["iou_auto"] == pytest.approx(6 / 8)
    assert scores.totals()["miou_auto"] == pytest.approx(6 / 8)
    alone = ClassScores(("a",), 0.5)
    alone.add(np.zeros((2, 4, 1)), truth[..., :1])
    assert "miou_auto" not in alone.totals()
