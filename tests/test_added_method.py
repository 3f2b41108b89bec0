"""The method that docs/architecture.md shows, added by its file and its line as a stranger would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_run
import torch
import yaml
from conftest import write_tiny_scene
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.plugins.registry import discover_methods

from divff_nerfstudio.evaluation.runs import load_run
from divff_nerfstudio.run_config import UnsafeConfigError
from divff_nerfstudio.trainer import DivFFTrainer

MANUAL = Path(__file__).parents[1] / "docs" / "architecture.md"


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The method's name; its file is where Python finds it, and its line in the environment."""
    text = MANUAL.read_text(encoding="utf-8").partition("### A method")[2]
    found = re.search(r"```python\n# (\w+\.py)\n(.+?)```.+?```bash\nexport (\w+)=\"(.+?)\"\n```", text, re.DOTALL)
    assert found is not None
    file, code, variable, line = found.groups()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / file).write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "theirs")
    monkeypatch.setenv(variable, line)
    name = line.partition("=")[0]
    monkeypatch.setitem(all_methods, name, discover_methods()[0][name])
    return name


def test_a_method_is_a_file_and_a_line(added: str, tmp_path: Path) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    torch.manual_seed(0)
    chosen = tiny_run.config(scene, tmp_path / "runs", steps=2, registered=all_methods[added])
    assert chosen.method_name == added
    chosen.pipeline.model.moving_start_step = 1  # pyright: ignore[reportAttributeAccessIssue]
    trainer = chosen.setup(local_rank=0, world_size=1)
    assert isinstance(trainer, DivFFTrainer)
    path = trainer.base_dir / "config.yml"
    chosen.save_config()
    trainer.setup()
    seen, usual = [], trainer.pipeline.get_train_loss_dict
    trainer.pipeline.get_train_loss_dict = lambda step: seen.append(usual(step)) or seen[-1]
    trainer.train()
    assert ["crisp" in losses for _, losses, _ in seen] == [False, True]
    assert float(seen[1][1]["crisp"]) > 0

    run = load_run(path)
    assert run.step == 1 and type(run.pipeline.model).__name__ == "CrispModel"
    assert (
        run.pipeline.model.render(run.pipeline.datamanager.train_dataset.cameras[:1]).pictures["rgb"].isfinite().all()
    )
    assert yaml.load(path.read_text(), Loader=yaml.Loader).pipeline.model == chosen.pipeline.model  # as ns-eval does


def test_a_method_that_is_not_registered_is_not_looked_for(added: str, tmp_path: Path) -> None:
    text = yaml.dump(all_methods[added])
    del all_methods[added]
    with pytest.raises(UnsafeConfigError, match="CrispModelConfig, which no configuration of ours contains"):
        yaml.load(text, Loader=yaml.Loader)
