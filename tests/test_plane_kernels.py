"""The kernels in Triton give what PyTorch gives, here in Triton's interpreter, on a GPU (`-m gpu`) as compiled."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divff_nerfstudio.fields import encodings
from divff_nerfstudio.fields.encodings import PlaneEncoding, plane_product

pytest.importorskip("triton", reason="Triton is on no Windows or macOS machine")
HERE = torch.device("cpu")


@pytest.fixture(scope="module")
def interpreted() -> ModuleType:
    """The kernels, run line by line on the CPU; a module of its own, for others may want them compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec = importlib.util.find_spec("divff_nerfstudio.fields.plane_kernels")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def both(module: ModuleType, table, positions, times, width, height, above):
    """Values and gradients of the table, by the kernels and by PyTorch."""
    found = []
    for product in (module.plane_product, plane_product):
        leaf = table.clone().requires_grad_()
        values = product(leaf, positions, times, width, height)
        values.backward(above)
        found.append((values.detach(), leaf.grad))
    return found


def agree(module: ModuleType, *inputs: object) -> None:
    (values, gradient), (expected, expected_gradient) = both(module, *inputs)
    assert torch.allclose(values, expected, rtol=1e-5, atol=1e-6)
    scale = expected_gradient.abs().max().clamp_min(1e-6)
    assert (gradient - expected_gradient).abs().max() <= 1e-4 * scale


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    count=st.integers(0, 130),
    width=st.integers(2, 9),
    height=st.integers(2, 9),
    channels=st.integers(1, 9),
    timed=st.booleans(),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_any_points_have_the_values_and_gradients_of_pytorch(
    interpreted, count, width, height, channels, timed, spread, seed
):
    """Spread 0 is one place, 3 lies outside for the most part; the first points are corners of the cube."""
    random = torch.Generator().manual_seed(seed)
    height = height if timed else width
    table = torch.randn(3 * width * height, channels, generator=random)
    positions = 0.5 + spread * (torch.rand(count, 3, generator=random) - 0.5)
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0, 1, 0.5]])[:count]
    positions[: len(corners)] = corners
    times = torch.rand(count, 1, generator=random) if timed else None
    agree(interpreted, table, positions, times, width, height, torch.randn(count, channels, generator=random))


def test_strided_inputs_are_taken(interpreted):
    points = torch.rand(9, 8)
    above = torch.rand(4, 9).T
    agree(interpreted, torch.rand(75, 4), points[:, 1:4], points[:, 6:7], 5, 5, above)


def test_what_is_no_number_reads_nothing_outside_of_the_table(interpreted):
    table = torch.rand(3 * 4 * 4, 2)
    found = interpreted.plane_product(table, torch.full((2, 3), float("nan")), None, 4, 4)
    assert found.shape == (2, 2)


def test_gradients_of_places_are_refused(interpreted):
    with pytest.raises(ValueError, match="tables alone"):
        interpreted.plane_product(torch.rand(12, 2), torch.rand(2, 3, requires_grad=True), None, 2, 2)


@pytest.fixture
def asked_anew(monkeypatch) -> Iterator[None]:
    """Kernels are imported and tried again."""
    encodings.kernels.cache_clear()
    monkeypatch.delitem(sys.modules, "divff_nerfstudio.fields.plane_kernels", raising=False)
    monkeypatch.delattr("divff_nerfstudio.fields.plane_kernels", raising=False)
    yield
    encodings.kernels.cache_clear()


def test_without_triton_pytorch_serves_and_says_so_once(monkeypatch, capsys, asked_anew):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert encodings.kernels(HERE) is None and encodings.kernels(HERE) is None
    assert capsys.readouterr().out.count("Triton is not installed") == 1


def test_kernels_that_run_are_taken(monkeypatch, interpreted, asked_anew):
    monkeypatch.setattr("divff_nerfstudio.fields.plane_kernels", interpreted, raising=False)
    with torch.inference_mode():  # as where a picture is what asks first
        assert encodings.kernels(HERE) is interpreted


@pytest.mark.parametrize("which", ["_forward", "_backward"])
def test_where_they_cannot_be_compiled_pytorch_serves_and_says_why_once(
    monkeypatch, capsys, interpreted, asked_anew, which
):
    usual = interpreted._launch

    def launch(kernel: Any, *inputs: Any) -> None:
        if kernel is getattr(interpreted, which):
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore of it")
        usual(kernel, *inputs)

    monkeypatch.setattr(interpreted, "_launch", launch)
    monkeypatch.setattr("divff_nerfstudio.fields.plane_kernels", interpreted, raising=False)
    assert encodings.kernels(HERE) is None and encodings.kernels(HERE) is None
    said = capsys.readouterr().out
    assert said.count("kernels do not run (Failed to find C compiler.") == 1 and "more of it" not in said


@pytest.mark.parametrize("capability", [75, 90])
def test_the_kernels_compile_for_a_card_that_is_not_here(capability, monkeypatch, tmp_path):
    """Down to the card's own code, by the assembler that comes with Triton: no driver is needed for that."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler = pytest.importorskip("triton.compiler", reason="Triton has no compiler here")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    kernels = importlib.import_module("divff_nerfstudio.fields.plane_kernels")
    tables = {"forward": ("out",), "backward": ("gradient", "found")}
    for name, rest in tables.items():
        types = dict.fromkeys(("positions", "times", "table", *rest), "*fp32")
        types |= dict.fromkeys(("count", "width", "height", "channels"), "i32")
        fixed = {"timed": True, "block": 64, "padded": 16}
        source = compiler.ASTSource(getattr(kernels, f"_{name}"), types | dict.fromkeys(fixed, "constexpr"), fixed)
        assert compiler.compile(source, target=target).asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("time_resolution", [0, 12])
def test_a_gpu_gives_what_a_cpu_gives(time_resolution):
    torch.manual_seed(0)
    here = PlaneEncoding((16, 64), 16, time_resolution)
    there = PlaneEncoding((16, 64), 16, time_resolution).to("cuda")
    there.load_state_dict(here.state_dict())
    assert encodings.kernels(there.space[0].device) is not None
    places = 1.2 * torch.rand(5000, 3) - 0.1
    times = torch.rand(5000, 1) if time_resolution else None
    expected = here(places, times)
    found = there(places.cuda(), None if times is None else times.cuda())
    assert torch.allclose(found.cpu(), expected, rtol=1e-5, atol=1e-6)
    expected.square().sum().backward()
    found.square().sum().backward()
    for mine, theirs in zip(here.parameters(), there.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert (mine.grad - theirs.grad.cpu()).abs().max() <= 1e-4 * mine.grad.abs().max()
