"""The comparison of methods: same frames and time, curves that go on where they stopped, and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.fields.encodings import PlaneEncoding


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    import compare_methods

    return compare_methods


def point(seconds: float, flop: float, psnr: float, **more: float) -> dict[str, float]:
    return {"seconds": seconds, "flop": flop, "psnr": psnr, **more}


def test_reached_is_told_of_the_last_method(compare: ModuleType) -> None:
    curves = {
        "fast": [point(1, 10, 15, moving_ap=0.1), point(2, 20, 21, moving_ap=0.2)],
        "slow": [point(10, 1000, 10, moving_ap=0.2), point(40, 4000, 20, moving_ap=0.5)],
    }
    found = compare.reached(curves)
    assert found["psnr"] == {"value": 20, "share_of_time": {"fast": 0.05}, "share_of_flop": {"fast": 0.005}}
    assert found["moving_ap"]["share_of_time"] == {"fast": None}
    assert compare.reached({"fast": curves["fast"], "slow": []}) == {}


def test_flop_of_products_and_of_bags(compare: ModuleType) -> None:
    weight = torch.rand(3, 5, requires_grad=True)
    with compare.flop_counter() as counter:
        (torch.rand(7, 3) @ weight).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 7 * 3 * 5)
    table, shares = torch.rand(10, 4, requires_grad=True), torch.rand(6, 2, requires_grad=True)
    rows = torch.randint(10, (6, 2))
    with compare.flop_counter() as counter:
        bags = torch.nn.functional.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")
        bags.sum().backward()
    assert counter.get_total_flops() == 3 * (2 * 6 * 2 * 4)
    planes = PlaneEncoding((8,), 4)
    with compare.flop_counter() as counter:
        planes(torch.rand(6, 3)).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * (3 * 6) * 4 * 4)


def test_counting_a_step_changes_nothing(compare: ModuleType, tiny_scene: Path, tmp_path: Path) -> None:
    trainer = tiny_run.config(tiny_scene, tmp_path).setup(local_rank=0, world_size=1)
    trainer.setup(test_mode="test")
    before, state = tiny_run.parameters(trainer.pipeline.model), torch.get_rng_state()
    assert compare.flop_of_step(trainer, 5) > 0
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in trainer.pipeline.model.named_parameters():
        assert torch.equal(parameter, before[name]) and (parameter.grad is None or not parameter.grad.any())


def test_an_unknown_method_is_refused(compare: ModuleType) -> None:
    with pytest.raises(DivffError, match="There is no method nothing"):
        compare.registered("nothing")


def test_methods_are_trained_resumed_and_drawn(
    compare: ModuleType, tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny(name: str):
        chosen = tiny_run.config(tiny_scene, tmp_path, steps=40)
        chosen.method_name = name
        return chosen

    monkeypatch.setattr(compare, "registered", tiny)
    output = tmp_path / "compared"

    def run(**changes):
        options = {"data": tiny_scene, "methods": ("a", "b"), "at": (1e-9, 1.0), "iterations": (6, 3)}
        return compare.Compare(**{**options, "output": output, "device": "cpu", **changes}).main()

    with monkeypatch.context() as broken:
        evaluations = []
        from divff_nerfstudio.pipeline import DivFFPipeline

        def stop(self, step=None, **_):
            evaluations.append(step)
            if len(evaluations) == 2:
                raise KeyboardInterrupt
            return {"psnr": 10.0}

        broken.setattr(DivFFPipeline, "get_average_eval_image_metrics", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    partial = json.loads((output / "compare.json").read_text())
    (first,) = partial["methods"]["a"]["points"]
    assert first["step"] == 1 and not partial["methods"]["a"]["finished"]

    with pytest.raises(DivffError, match="another minutes, seed"):
        run(minutes=1.0, seed=1)
    with pytest.raises(DivffError, match="a with another number of iterations"):
        run(iterations=(7,))
    report = run()
    again = report["methods"]["a"]["points"]
    assert again[0] == first and again[1]["step"] == 6 and again[1]["flop"] > first["flop"] > 0
    assert {"psnr", "moving_ap", "psnr_static_room"} <= again[1].keys()
    assert report == json.loads((output / "compare.json").read_text())
    assert all(record["finished"] for record in report["methods"].values())
    assert set(report["reached"]["psnr"]["share_of_time"]) == {"a"}
    picture = np.asarray(Image.open(output / "compare.png").convert("RGB"))
    assert picture.shape[0] > 500 and picture.std() > 5

    def untrained(*_: object) -> None:
        raise AssertionError("a finished method is trained again")

    monkeypatch.setattr(compare, "iterate", untrained)
    assert run() == report


def test_a_shorter_schedule_ends_a_method_and_fewer_frames_are_looked_at(
    compare: ModuleType, tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "registered", lambda _: tiny_run.config(tiny_scene, tmp_path, steps=40))
    chosen = compare.Compare(
        data=tiny_scene, methods=("a",), minutes=10.0, at=(0.5, 1.0), iterations=(4,), output=tmp_path / "c", frames=1
    )
    chosen.device = "cpu"
    points = chosen.main()["methods"]["a"]["points"]
    assert [each["step"] for each in points] == [4]
    assert "psnr" in points[0] and "moving_ap" not in points[0], "of two frames the second has an empty annotation"
