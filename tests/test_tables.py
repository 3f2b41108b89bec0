"""Tables of scores: CSV files, and the table over scenes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from divff_nerfstudio.cli.evaluate import EvaluateConfig
from divff_nerfstudio.evaluation.options import EvaluationError
from divff_nerfstudio.evaluation.results import Evaluation
from divff_nerfstudio.evaluation.tables import average_table, number, read_runs, save_csv, write_csv


def write_run(folder: Path, scene: str, totals: dict, baseline: dict | None = None, method: str = "divff") -> Path:
    content = {"facts": {"Scene": scene, "Method": method}, "totals": totals}
    content["baselines"] = {"nearest": {"totals": baseline}} if baseline else {}
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "scores.json").write_text(json.dumps(content))
    (folder / "config.yml").write_text("")
    return folder


def test_scenes_are_averaged_by_method(tmp_path):
    first = write_run(tmp_path / "a", "P01_01", {"psnr": 20.0, "object_ap": 0.5}, {"psnr": 10.0})
    second = write_run(tmp_path / "b", "P03_04", {"psnr": 22.0}, {"psnr": 14.0})
    table = average_table(read_runs([first, second / "config.yml"]))
    assert table.head == ("Method", "Scene", "PSNR dB", "Objects AP")
    assert table.rows == (
        ("divff", "P01_01", "20.00", "0.500"),
        ("divff", "P03_04", "22.00", ""),
        ("divff", "mean of 2", "21.00", "0.500 (1)"),
        ("nearest", "P01_01", "10.00", ""),
        ("nearest", "P03_04", "14.00", ""),
        ("nearest", "mean of 2", "12.00", ""),
    )
    lines = table.markdown().splitlines()
    assert lines[1] == "| --- | --- | ---: | ---: |" and lines[4] == "| divff | mean of 2 | 21.00 | 0.500 (1) |"
    latex = table.latex()
    assert r"\begin{tabular}{llrr}" in latex and r"P01\_01 & 20.00 & 0.500 \\" in latex and latex.count(r"\\") == 7


def test_the_command_writes_both_and_needs_no_run(tmp_path, capsys):
    run = write_run(tmp_path / "a", "kitchen", {"psnr": 20.0})
    EvaluateConfig(average=(run,), output=tmp_path / "out").main()
    shown = capsys.readouterr().out
    assert (tmp_path / "out" / "average.md").read_text() in shown
    assert (tmp_path / "out" / "average.tex").is_file()
    for options, words in (({}, "--load-config"), ({"average": (run,), "columns": ("nothing",)}, "no score nothing")):
        with pytest.raises(EvaluationError, match=words):
            EvaluateConfig(output=tmp_path, **options).main()


@pytest.mark.parametrize(("content", "words"), [(None, "divff evaluate"), ("{", "anew"), ('{"totals": {}}', "anew")])
def test_what_was_not_evaluated_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    with pytest.raises(EvaluationError, match=words):
        read_runs([tmp_path])


def test_a_run_named_twice_is_refused(tmp_path):
    runs = read_runs([write_run(tmp_path / "a", "kitchen", {"psnr": 1.0})] * 2)
    with pytest.raises(EvaluationError, match="twice"):
        average_table(runs)
    with pytest.raises(EvaluationError, match="nothing"):
        average_table([])


def test_numbers_have_few_digits():
    assert [number(value) for value in (None, 0.12345, 21.456, -12.0)] == ["", "0.123", "21.46", "-12.00"]


def test_csv_files_hold_everything(tmp_path):
    table = {"mug": {"pixels": 3, "iou": 0.5}}
    other = Evaluation({"psnr": 9.0}, {4: {"psnr": 9.0}}, {}, {})
    evaluation = Evaluation(
        {"psnr": 20.0},
        {4: {"psnr": 20.0}},
        {"object": table},
        {"object": 0.7},
        {4: {"object": table}},
        {"object": {4: 0.6}},
        {"nearest": other},
    )
    paths = {path.stem: list(csv.DictReader(path.open())) for path in save_csv(tmp_path, "divff", evaluation)}
    assert paths["totals"] == [{"method": "divff", "psnr": "20.0"}, {"method": "nearest", "psnr": "9.0"}]
    assert paths["classes"] == [{"method": "divff", "task": "object", "class": "mug", "pixels": "3", "iou": "0.5"}]
    (row,) = paths["classes_by_frame"]
    assert (row["frame"], row["threshold"], row["threshold_loo"], row["iou"]) == ("4", "0.7", "0.6", "0.5")
    assert write_csv(tmp_path / "x.csv", [{"a": 1}, {"b": "x, y"}]).read_text() == 'a,b\n1,\n,"x, y"\n'
