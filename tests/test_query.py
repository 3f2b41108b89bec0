"""Relevancy, overlay and the state of a query."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.pca import fit_feature_basis, project
from divff_nerfstudio.query import (
    MAX_PHRASES,
    Query,
    QueryConfig,
    QueryError,
    build_query,
    overlay,
    split_phrases,
)
from divff_nerfstudio.relevancy import PUBLISHED_NEGATIVES, relevancy

WORDS = ["mug", "bowl", "cut the bread", *PUBLISHED_NEGATIVES["image"], *PUBLISHED_NEGATIVES["video"]]
CODES = dict(zip(WORDS, torch.eye(len(WORDS)), strict=True))


class Encoder:
    """A text tower of fixed codes that remembers what it was asked."""

    def __init__(self):
        self.asked: list[list[str]] = []

    def __call__(self, phrases):
        self.asked.append(list(phrases))
        return torch.stack([CODES[phrase] for phrase in phrases])


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000), st.floats(0.5, 50))
@settings(max_examples=40)
def test_relevancy_is_the_least_softmax_over_the_negatives(phrases, others, seed, temperature):
    features, positives, negatives = (
        unit(7, 8, seed=seed),
        unit(phrases, 8, seed=seed + 1),
        unit(others, 8, seed=seed + 2),
    )
    expected = np.empty((7, phrases))
    for i in range(7):
        for j in range(phrases):
            shares = []
            for k in range(others):
                pair = temperature * np.array([float(features[i] @ positives[j]), float(features[i] @ negatives[k])])
                weights = np.exp(pair - pair.max())
                shares.append(weights[0] / weights.sum())
            expected[i, j] = min(shares)
    found = relevancy(features, positives, negatives, temperature)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_another_negative_never_raises_relevancy():
    features, positives, negatives = unit(50, 16), unit(3, 16, seed=1), unit(4, 16, seed=2)
    fewer = relevancy(features, positives, negatives[:3])
    assert (relevancy(features, positives, negatives) <= fewer + 1e-7).all()


def test_overlay_shows_the_best_pixel_in_colour_and_lightens_the_rest():
    image = torch.full((2, 2, 3), 0.4)
    relevance = torch.tensor([[0.9, 0.52], [0.5, 0.1]])[..., None]
    picture = overlay(image, relevance)
    assert torch.allclose(picture[0, 1], torch.tensor(0.7)) and torch.allclose(picture[1, 0], torch.tensor(0.7))
    assert picture[0, 0, 0] > picture[0, 0, 2]  # the upper end of "turbo" is red
    assert torch.allclose(overlay(image, relevance, strength=0.0), image)


def test_overlay_of_a_view_without_any_relevancy_is_the_lightened_image():
    image = torch.rand(3, 4, 3)
    assert torch.allclose(overlay(image, torch.zeros(3, 4, 1)), 0.5 + 0.5 * image)


def test_phrases_are_split_and_cleaned():
    assert split_phrases(" a  mug ;; bowl; a mug ;") == ("a mug", "bowl")
    assert split_phrases(" ; ") == ()
    with pytest.raises(QueryError, match="at most"):
        split_phrases(";".join(str(i) for i in range(MAX_PHRASES + 1)))


def features_of(*words: str) -> torch.Tensor:
    """An image of one row whose pixels show the words."""
    return torch.stack([CODES[word] for word in words])[None]


def test_answer_is_the_largest_over_the_phrases_and_finds_each():
    query = Query(QueryConfig(text="mug; bowl"), {"image": Encoder()})
    features = features_of("mug", "bowl", "things")
    found = query.answer({"rgb": torch.zeros(1, 3, 3)}, {"image": features})
    assert list(found) == ["relevancy", "relevancy_overlay"]
    assert found["relevancy"].shape == (1, 3, 1) and found["relevancy_overlay"].shape == (1, 3, 3)
    hit = 1 / (1 + np.exp(-10.0))
    np.testing.assert_allclose(found["relevancy"][0, :, 0].numpy(), [hit, hit, 1 - hit], atol=1e-6)


def test_encoder_is_asked_at_the_first_answer_only():
    encoder = Encoder()
    query = Query(QueryConfig(text="mug"), {"image": encoder})
    assert encoder.asked == []
    for _ in range(3):
        query.answer({"rgb": torch.zeros(1, 1, 3)}, {"image": features_of("mug")})
    assert encoder.asked == [["mug"], list(PUBLISHED_NEGATIVES["image"])]


def test_nothing_asked_or_nothing_to_ask_gives_no_output():
    outputs = {"rgb": torch.zeros(1, 1, 3)}
    query = Query(QueryConfig(), {"image": Encoder()})
    assert not query.active and query.answer(outputs, {"image": features_of("mug")}) == {}
    query.ask(text="mug")
    assert query.active and query.answer(outputs, {}) == {}


def test_negatives_come_from_the_user_then_the_source_then_the_paper():
    query = Query(QueryConfig(), {"image": Encoder()}, {"image": ("bowl",)})
    assert query.negatives("image") == ("bowl",)
    assert query.negatives("video") == PUBLISHED_NEGATIVES["video"]
    query.ask(negatives_image=("things", "stuff"))
    assert query.negatives("image") == ("things", "stuff")


def test_video_phrases_lose_the_caption_prefix_and_take_the_configured_one():
    encoder = Encoder()
    query = Query(QueryConfig(features="video", text="#C C cut the bread"), {"video": encoder})
    query.ask()
    assert encoder.asked[0] == ["cut the bread"]
    CODES["#C C cut the bread"] = CODES["cut the bread"]
    query.ask(prefix_video="#C C ")
    assert encoder.asked[-1] == ["#C C cut the bread"]
    with pytest.raises(QueryError, match=r"Nothing has been pointed at as \[point 9\]"):
        query.ask(text="[point 9]")


def test_a_query_that_cannot_be_answered_leaves_the_old_one():
    query = Query(QueryConfig(text="mug"), {"image": Encoder()})
    with pytest.raises(QueryError, match="not video features"):
        query.ask(features="video")
    with pytest.raises(QueryError, match="text encoder of the image features cannot be used"):
        query.ask(text="a word unknown to the encoder")
    assert query.config == QueryConfig(text="mug")


def test_the_query_of_feature_stores_builds_each_encoder_once_and_late():
    built = []

    def make_encoder(settings):
        built.append(settings["name"])
        return Encoder()

    def store(text_encoder, negatives=()):
        header = SimpleNamespace(text_encoder=text_encoder, negatives=list(negatives), decoder=None)
        return SimpleNamespace(header=header)

    stores = {"image": store({"name": "demo"}, ["things"]), "video": store({"name": "ego"}), "regulariser": store(None)}
    query = build_query(QueryConfig(), stores, make_encoder)  # pyright: ignore[reportArgumentType]
    assert query.kinds == ("image", "video") and built == []
    assert query.negatives("image") == ("things",) and query.negatives("video") == PUBLISHED_NEGATIVES["video"]
    query.ask(text="mug")
    query.ask(text="bowl")
    assert built == ["demo"]


def test_codes_are_decoded_before_they_are_compared(monkeypatch):
    monkeypatch.setattr("divff_nerfstudio.query._DECODED", 4)
    matrix = torch.randn(3, len(WORDS), generator=torch.Generator().manual_seed(1))

    def decode(codes):
        assert codes.shape[0] <= 4
        return torch.nn.functional.normalize(codes @ matrix, dim=-1)

    codes = unit(3, 5, 3)
    query = Query(QueryConfig(), {"image": Encoder()}, decoders={"image": decode})
    plain = Query(QueryConfig(), {"image": Encoder()})
    expected = plain.relevancies(torch.nn.functional.normalize(codes @ matrix, dim=-1), "image", ["mug", "bowl"])
    torch.testing.assert_close(query.relevancies(codes, "image", ["mug", "bowl"]), expected)


def test_a_failing_encoder_does_not_stop_a_render():
    def broken(phrases):
        raise OSError("the weights are not there")

    query = Query(QueryConfig(text="mug"), {"image": broken})
    assert query.answer({"rgb": torch.zeros(1, 1, 3)}, {"image": features_of("mug")}) == {}
    assert query.error is not None and "the weights are not there" in query.error


def test_a_failing_decoder_does_not_stop_a_render():
    def broken(codes):
        raise DivffError("the autoencoder is not there")

    query = Query(QueryConfig(text="mug"), {"image": Encoder()}, decoders={"image": broken})
    assert query.answer({"rgb": torch.zeros(1, 1, 3)}, {"image": features_of("mug")}) == {}
    assert query.error == "the autoencoder is not there"


def test_feature_colours_are_fixed_and_spread_over_the_range():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(4000, 6, generator=generator) * torch.tensor([5.0, 3, 2, 0.1, 0.1, 0.1]) + 1
    basis = fit_feature_basis(table)
    again = fit_feature_basis(table.half().numpy())
    assert torch.allclose(basis.directions, again.directions, atol=1e-2)
    assert torch.allclose(basis.directions.T @ basis.directions, torch.eye(3), atol=1e-5)
    assert torch.allclose(basis.directions.abs()[:3], torch.eye(3), atol=0.05)
    colours = project(table.reshape(40, 100, 6), basis)
    assert colours.shape == (40, 100, 3) and colours.min() == 0 and colours.max() == 1
    assert torch.allclose(project(table[:10], basis), colours.reshape(-1, 3)[:10])
    assert ((colours == 0).float().mean() < 0.04) and ((colours == 1).float().mean() < 0.04)


def test_feature_colours_need_rows():
    with pytest.raises(ValueError, match="rows"):
        fit_feature_basis(torch.zeros(0, 8))
