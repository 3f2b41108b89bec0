"""Importing what nerfstudio finds changes nothing in its processes; setting up one of our methods does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

STATE = """
import json, os, signal, sys, warnings
from nerfstudio.plugins import registry_dataparser
registry_dataparser.discover_dataparsers = lambda: ({}, {})
from nerfstudio.plugins import registry
registry.discover_methods = lambda: ({}, {})
import nerfstudio.configs.method_configs, torch
from huggingface_hub import constants

def state():
    return {
        "environ": dict(os.environ),
        "path": list(sys.path),
        "hooks": [hook.__module__ for hook in (sys.excepthook, sys.unraisablehook, sys.displayhook)],
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "warnings": [str(each) for each in warnings.filters],
        "torch": [
            str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
            torch.initial_seed(), len(torch.serialization.get_safe_globals()),
        ],
        "offline": constants.HF_HUB_OFFLINE,
        "directory": os.getcwd(),
    }

before = state()
assert not any(name.startswith("divff") for name in sys.modules)
from divff_nerfstudio.data.epic_diff import epic_diff
from divff_nerfstudio.registry import divff, divff_paper, divff_splat
after = state()
print(json.dumps([before, after]))
divff.config.set_timestamp()
print(json.dumps(state()))
"""


def test_an_import_changes_nothing_and_setting_up_a_method_does() -> None:
    env = {name: value for name, value in os.environ.items() if name != "PATH"} | {"PATH": os.devnull}
    done = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    imported, prepared = done.stdout.splitlines()
    before, after = json.loads(imported)
    assert before == after
    ours = json.loads(prepared)
    assert ours["hooks"][0] == "divff_nerfstudio.faults" and ours["environ"]["PATH"] != os.devnull
    assert {**ours, "hooks": 0, "environ": 0} == {**after, "hooks": 0, "environ": 0}
