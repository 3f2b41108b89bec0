"""The figures of a GPU are taken by code that works: here at a hundredth of the size, on a CPU."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
import torch

from divff_nerfstudio.captured_steps import FIRST_CHECKS, WARM_UP
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.models.splat import drawing
from divff_nerfstudio.registry import divff, divff_paper, divff_splat


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))


def test_every_figure_is_taken(tiny_scene: Path, tmp_path: Path, capsys):
    from bench_gpu import AIMS, Gpu, Sizes

    tiny_run.write_features(tiny_scene, tmp_path / "encoder")
    sizes = Sizes(rays=32, view=(28, 16), seconds=0.5, tried=(2, 3, 8), steps=8, gaussians=60, splat_view=(28, 16))
    sizes.repeats, sizes.product, sizes.copied = 1, 64, 1000
    sizes.shrink = tiny_run.shrink
    registered = [copy.deepcopy(method.config) for method in (divff, divff_paper, divff_splat)]
    figures = Gpu(tiny_scene, only=tuple(AIMS.keys() - {"segments"}), device="cpu", sizes=sizes).main()["figures"]
    assert registered == [method.config for method in (divff, divff_paper, divff_splat)]
    assert {name: entry["error"] for name, entry in figures.items() if "error" in entry} == {}
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.rindex('{\n  "machine"') :])["figures"].keys() == figures.keys()
    found = {name: entry["found"] for name, entry in figures.items()}
    for part in ("static_layer", "all_layers", "heads", "everything"):
        for way in ("one_by_one", "captured"):
            step = found["step"][part][way]
            assert step["flop"] > 1e4 and step["bytes"] > 1e5 and step["seconds"] > 0 and not step["by_graph"]
            assert step["share_of_flop"] > 0 and step["share_of_bytes"] > 0
    for name in ("minute", "stages"):
        seconds = [found[name][key] for key in ("seconds_of_steps", "seconds_of_evidence", "seconds")]
        assert seconds[0] > 0 and seconds[2] == pytest.approx(seconds[0] + seconds[1], abs=0.02)
        assert found[name]["psnr"] > 0 and found[name]["moving_ap"] > 0
    assert found["minute"]["steps"] > 0 and found["stages"]["object_ap"] >= 0
    assert {"rgb", "features_pca", "relevancy"} <= set(found["view"]["outputs"]) & set(found["splat"]["outputs"])
    assert found["view"]["all_outputs"]["flop"] > found["view"]["pictures"]["flop"] > found["view"]["colours"]["flop"]
    half = found["view"]["half_precision"]
    assert half.keys() == {"all_outputs", "pictures", "colours"} and all(each["seconds"] > 0 for each in half.values())
    minute = found["minute"]
    assert minute["half_precision"]["psnr"] == minute["psnr"], "of a CPU, whose networks take no part in it"
    for name in ("colours", "colours_and_features", "all_outputs", "between_refinements"):
        assert found["splat"][name]["share_of_bytes"] > 0
    assert found["splat"]["geometry_step"]["seconds"] > 0 and sum(found["splat"]["gaussians"].values()) == 60


def test_a_scene_without_features_is_told_at_the_start(tiny_scene: Path, monkeypatch: pytest.MonkeyPatch):
    import bench_gpu

    monkeypatch.setattr(bench_gpu.Limits, "of", lambda *_: pytest.fail("something is measured"))
    with pytest.raises(DivffError, match=r"no features, of which step, view are: run `divff extract --data .*tiny`"):
        bench_gpu.Gpu(tiny_scene, only=("minute", "view", "step"), device="cpu").main()
    with pytest.raises(DivffError, match="--only pictures: there is no such figure"):
        bench_gpu.Gpu(tiny_scene, only=("pictures",), device="cpu").main()
    bench_gpu.Gpu(tiny_scene, device="cpu")._require_features(("minute", "segments"), bench_gpu.AIMS)


@pytest.mark.parametrize("by_graph", [False, True])
def test_steps_are_timed_behind_their_capture_and_its_checks(monkeypatch: pytest.MonkeyPatch, by_graph: bool):
    import timed_training

    taken: list[int] = []
    monkeypatch.setattr(timed_training, "iterate", lambda trainer, step: taken.append(step))
    found = timed_training.time_step(SimpleNamespace(by_graph=by_graph), 5, 7)
    assert taken == [5] * (WARM_UP + 2 + (max(FIRST_CHECKS) if by_graph else 0) + 7)
    assert found["by_graph"] == by_graph and found["seconds"] >= 0


def test_shares_of_what_a_card_can_do():
    from card_limits import Limits, Work, plane_work

    limits = Limits.of("cpu", 32, 10_000, 2)
    assert limits.flop["highest"] > 0 and limits.flop["high"] > 0 and limits.bytes > 0
    assert torch.get_float32_matmul_precision() == "highest"
    found = Limits({"highest": 5.0, "high": 50.0}, 40.0).beside(Work(10, 20), 2.0, "highest")
    assert found == {"flop": 10, "bytes": 20, "share_of_flop": 1.0, "share_of_bytes": 0.25}
    # A place, four corners of three planes and a value; then those of both other planes, and sums in all corners.
    assert plane_work(1, 1, timed=False, backward=False) == Work(3 * 8, 4 * (3 + 12 + 1))
    assert plane_work(10, 2, timed=True, backward=True) == Work(20 * (6 * 8 + 24), 4 * (40 + 20 * (24 + 24 + 1)))


def test_kernels_that_pytorch_does_not_see_are_counted(monkeypatch: pytest.MonkeyPatch):
    plane_kernels = pytest.importorskip("divff_nerfstudio.fields.plane_kernels", reason="Triton is on no Windows")
    from card_limits import gaussian_bytes, plane_work, work_of

    monkeypatch.setattr(plane_kernels, "_launch", lambda *_: None)  # as if a card did it
    table = torch.rand(3 * 4 * 5, 2, requires_grad=True)

    def look_up() -> None:
        values = plane_kernels.plane_product(table, torch.rand(7, 3), torch.rand(7, 1), 4, 5)
        values.backward(torch.ones_like(values))

    parts = [plane_work(7, 2, timed=True, backward=backward) for backward in (False, True)]
    found = work_of(look_up)
    assert found.flop == sum(part.flop for part in parts)
    assert found.bytes > sum(part.bytes for part in parts)

    def rasterised(means: Any, *_: Any, width: int, height: int, colors: Any, **__: Any) -> Any:
        return means, means, {"flatten_ids": range(90), "means2d": means[None, :, :2]}

    monkeypatch.setattr(drawing, "rasterization", rasterised)
    sizes = {"width": 6, "height": 5, "colors": torch.rand(8, 4)}
    for followed in (False, True):
        means = torch.rand(8, 3, requires_grad=followed)
        expected = gaussian_bytes(8, 90, 30, 4, followed)
        assert work_of(lambda means=means: drawing.rasterization(means, **sizes)).bytes == expected
    assert gaussian_bytes(8, 90, 30, 4, True) > 2 * gaussian_bytes(8, 90, 30, 4, False) > 4 * 90 * 10
