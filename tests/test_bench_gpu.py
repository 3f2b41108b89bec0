"""The figures of a GPU are taken by code that works: here at a hundredth of the size, on a CPU."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import tiny_run

from divff_nerfstudio.registry import divff, divff_paper, divff_splat


def test_every_figure_is_taken(tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    from bench_gpu import AIMS, Gpu, Sizes

    tiny_run.write_features(tiny_scene, tmp_path / "encoder")
    sizes = Sizes(rays=32, view=(28, 16), seconds=0.2, steps=8, gaussians=60, splat_view=(28, 16), repeats=1)
    sizes.shrink = tiny_run.shrink
    registered = [copy.deepcopy(method.config) for method in (divff, divff_paper, divff_splat)]
    figures = Gpu(tiny_scene, only=tuple(AIMS.keys() - {"segments"}), device="cpu", sizes=sizes).main()["figures"]
    assert registered == [method.config for method in (divff, divff_paper, divff_splat)]
    assert {name: entry["error"] for name, entry in figures.items() if "error" in entry} == {}
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.rindex('{\n  "machine"') :])["figures"].keys() == figures.keys()
    assert figures["step"]["found"]["flop"] > 1e4 and figures["step"]["found"]["bytes"] > 1e5
    assert figures["minute"]["found"]["psnr"] > 0 and figures["stages"]["found"]["seconds"] > 0
    assert figures["splat"]["found"]["geometry_step"]["seconds"] > 0 and figures["view"]["found"]["seconds"] > 0
    assert figures["view"]["found"]["half_precision"]["seconds"] > 0
    minute = figures["minute"]["found"]
    assert minute["half_precision"]["psnr"] == minute["psnr"], "of a CPU, whose networks take no part in it"
