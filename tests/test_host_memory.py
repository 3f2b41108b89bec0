"""What is freed is kept, so that the system need not clear the same pages anew at each step."""

import ctypes
import subprocess
import sys

import pytest

from divff_nerfstudio import host_memory

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="another C library has its own ways",
)
BLOCK = 2**26
"""Bytes; more than glibc keeps by itself."""


def mallopts(monkeypatch: pytest.MonkeyPatch, largest: int) -> list[tuple[int, int]]:
    """What is asked of a glibc that takes no larger threshold, in a machine without wishes of its user."""
    asked = []

    def mallopt(parameter: int, value: int) -> int:
        asked.append((parameter, value))
        return int(parameter != -3 or value <= largest)

    monkeypatch.setattr(host_memory, "_in_glibc", lambda name: mallopt if name == "mallopt" else None)
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    return asked


@pytest.mark.parametrize(("largest", "taken"), [(2**31, 2**30), (2**25, 2**25), (0, None)])
def test_an_older_glibc_takes_less_or_is_left_alone(monkeypatch: pytest.MonkeyPatch, largest: int, taken: int | None):
    """One that takes nothing goes on adjusting by itself, which another parameter would end."""
    asked = mallopts(monkeypatch, largest)
    host_memory.keep_freed_memory()
    thresholds = [value for parameter, value in asked if parameter == -3]
    assert (thresholds[-1] if len(asked) > len(thresholds) else None) == taken


@pytest.mark.parametrize(("name", "value"), [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")])
def test_what_the_user_has_settled_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    asked = mallopts(monkeypatch, 2**31)
    monkeypatch.setenv(name, value)
    host_memory.keep_freed_memory()
    assert asked == []


COUNT = """
import resource
import torch

def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros({block}, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
"""


def _printed(code: str) -> list[int]:
    """The numbers that a fresh Python prints."""
    program = COUNT.format(block=BLOCK) + code
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [int(word) for word in found.stdout.split()]


@glibc
def test_blocks_are_used_again() -> None:
    """Twenty large blocks one after the other take the pages of one, where each took its own before."""
    before, after = _printed(
        "from divff_nerfstudio.host_memory import keep_freed_memory\n"
        "before = faults(); keep_freed_memory(); faults(); print(before, faults())"
    )
    assert after < before / 10


@glibc
def test_a_pipeline_keeps_what_it_frees(tiny_scene) -> None:
    """Training, evaluation and viewer have it, since all of them set a pipeline up."""
    before, after = _printed(
        "import copy\n"
        "from pathlib import Path\n"
        "from divff_nerfstudio.registry import divff\n"
        "config = copy.deepcopy(divff.config)\n"
        "config.machine.device_type = 'cpu'\n"
        f"config.pipeline.datamanager.data = Path({str(tiny_scene)!r})\n"
        "config.pipeline.datamanager.features = 'none'\n"
        "config.settle()\n"
        "before = faults()\n"
        "pipeline = config.pipeline.setup(device='cpu', test_mode='test')\n"
        "faults(); print(before, faults())"
    )
    assert after < before / 10


@glibc
def test_kept_memory_is_returned_when_asked() -> None:
    """Before another model is loaded, what the last one left is the system's again."""
    kept, returned = _printed(
        "from divff_nerfstudio.host_memory import keep_freed_memory, return_freed_memory\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "keep_freed_memory()\n"
        "blocks = [torch.zeros({block}, dtype=torch.uint8) for _ in range(4)]\n".replace("{block}", str(BLOCK))
        + "del blocks\n"
        "kept = resident(); return_freed_memory(); print(kept, resident())"
    )
    assert kept - returned > 3 * BLOCK
