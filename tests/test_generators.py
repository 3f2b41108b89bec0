"""Networks that are built beside a training take nothing from its random generator, and do not set it back."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.text import TextEncoder, _text_encoder, text_encoder
from divff_nerfstudio.generators import DrawingFrom


def drawn() -> list[torch.Tensor]:
    """Draws of all kinds."""
    values = torch.empty(7)
    return [
        torch.rand(3),
        torch.randn(2, 3, dtype=torch.float64),
        torch.randint(9, (5,)),
        torch.randint(2, 9, (5,)),
        torch.randperm(11),
        torch.normal(0.0, 1.0, (4,)),
        torch.bernoulli(torch.full((9,), 0.5)),
        torch.multinomial(torch.ones(6), 3),
        values.uniform_().clone(),
        values.normal_().clone(),
        nn.init.trunc_normal_(values).clone(),
        nn.Linear(3, 4).weight.detach(),
        nn.Embedding(5, 2).weight.detach(),
    ]


def test_draws_are_the_usual_ones_and_the_global_generator_stays() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        expected = drawn()
        before = torch.get_rng_state()
        with DrawingFrom(torch.Generator().manual_seed(5)):
            found = drawn()
        assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_what_another_thread_draws_meanwhile_is_not_drawn_again() -> None:
    inside, drew = threading.Event(), threading.Event()

    def build() -> None:
        with DrawingFrom(torch.Generator().manual_seed(0)):
            drawn()
            inside.set()
            assert drew.wait(60)
            drawn()

    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        expected = torch.rand(20)
        torch.manual_seed(1)
        thread = threading.Thread(target=build)
        thread.start()
        assert inside.wait(60)
        first = torch.rand(10)
        drew.set()
        thread.join()
        found = torch.cat((first, torch.rand(10)))
    assert torch.equal(found, expected)


def test_a_text_encoder_takes_nothing_from_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(TextEncoder, "__init__", lambda self, entry: built.append((nn.Linear(3, 3), torch.rand(2))))
    _text_encoder.cache_clear()
    before = torch.get_rng_state()
    text_encoder({"encoder": "demo"})
    assert built and torch.equal(torch.get_rng_state(), before)
    monkeypatch.undo()
    for cache in (_text_encoder, load_encoder):
        cache.cache_clear()
    assert text_encoder({"encoder": "demo"})(["a mug"]).isfinite().all()
    assert torch.equal(torch.get_rng_state(), before)
    _text_encoder.cache_clear()
