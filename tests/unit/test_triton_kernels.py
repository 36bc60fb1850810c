"""Triton's kernels: against the definition, interpreted; compiled for GPUs that are not here; and who takes what."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import triton_kernels
from kernels.shapes import ConvShape
from kernels.winograd_plans import plan_of, plan_of_gradient
from kernels.winograd_points import matrices

CASES = Path(__file__).with_name("triton_cases.py")
needs_triton = pytest.mark.skipif(
    not triton_kernels.is_installed(), reason="needs the package triton, which torch's wheels for Linux with CUDA bring"
)
SHAPE = ConvShape(n=2, c=3, h=8, w=8, k=4, r=3, s=3)
# Most that a program may have of a multiprocessor of an A100 (compute capability 8.0); an H100 has more.
SHARED_BYTES = 163 * 1024


def run_python(*arguments: str, **environment: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, cwd=CASES.parents[2], timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
def test_interpreted_kernels_are_the_definition_but_for_rounding() -> None:
    """In a process of its own: triton reads the variable when it is imported."""
    assert " passed" in run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES), TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.skipif(
    bool(triton_kernels.missing(torch.device("cuda", 0)) if torch.cuda.is_available() else 1),
    reason="needs an NVIDIA GPU of compute capability 8.0 or later",
)
def test_kernels_on_a_gpu_are_the_definition_but_for_rounding() -> None:
    assert " passed" in run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES), TRITON_INTERPRET="0")


def test_algorithms_are_imported_without_triton() -> None:
    run_python("-c", "import sys, kernels.algorithms, kernels.conv, kernels.tune; assert 'triton' not in sys.modules")


class NoGpu:
    """As much of a GPU as compiling takes."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Every kernel that is launched, compiled and not run."""
    from triton.runtime.jit import JITFunction

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    run, kernels = JITFunction.run, []

    def only_compiled(self: Any, *args: Any, grid: Any, **options: Any) -> None:
        assert all(size > 0 for size in grid)
        kernels.append(run(self, *args, grid=grid, **(options | {"warmup": True})))

    monkeypatch.setattr(JITFunction, "run", only_compiled)
    return kernels


def tensors_for(name: str, dtype: torch.dtype) -> tuple[ConvShape, list[Tensor]]:
    """Of a layer of a network, in NHWC: shape, input, weight, bias, the output's gradient."""
    c, k, options = (64, 64, {"groups": 64}) if name == "depthwise" else (64, 128, {})
    input, weight = torch.empty(8, c, 28, 28, dtype=dtype), torch.empty(k, 64 // options.get("groups", 1), 3, 3)
    shape = ConvShape.of(input, weight, padding=1, **options)
    images, grads = (
        each.contiguous(memory_format=torch.channels_last)
        for each in (input, torch.empty(shape.output_size, dtype=dtype))
    )
    return shape, [images, weight.to(dtype), torch.empty(k, dtype=dtype), grads]


# Blocks of fewer than the 64 rows that wgmma takes are multiplied by mma, on an H100 too.
PRODUCT = {
    ("im2col", 80): r"mma\.sync.*bf16",
    ("im2col", 90): r"wgmma\.mma_async.*bf16",
    **{(name, capability): r"mma\.sync.*bf16" for name in ("winograd", "winograd_2") for capability in (80, 90)},
}


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", triton_kernels.TWINS)
def test_every_kernel_compiles_for_gpus(
    name: str, capability: int, dtype: torch.dtype, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", NoGpu(capability))
    shape, (input, weight, bias, grad) = tensors_for(name, dtype)
    twin = triton_kernels.twin(name)
    with_bias = () if name == "winograd" else (bias,)  # whose kernels take seconds to compile
    passes = (
        lambda: twin.forward(input, weight, shape, *with_bias),
        lambda: twin.input_gradient(grad, weight, shape),
        lambda: twin.weight_gradient(grad, input, shape),
    )
    for compute in passes:
        before = len(compiled)
        compute()
        *_, kernel = made = compiled[before:]
        for each in made:
            assert each.asm["cubin"]
            assert f".target sm_{capability}" in each.asm["ptx"]
            assert each.metadata.shared <= SHARED_BYTES
        if dtype == torch.bfloat16 and name != "depthwise":
            assert re.search(PRODUCT[name, capability], kernel.asm["ptx"])
        else:
            assert "fma.rn.f32" in kernel.asm["ptx"]
            assert "mma." not in kernel.asm["ptx"]


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_rounding_compiles_for_gpus(capability: int, compiled: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver

    from kernels import rounding_triton
    from kernels.rounding import Grid

    monkeypatch.setattr(driver, "_active", NoGpu(capability))
    line = torch.empty(8192)
    rounding_triton.to_grid(line, line, Grid(4, 12), 2**63)
    rounding_triton.to_grid(line, line, Grid(4, 12), None)
    rounding_triton.to_bf16(line, torch.empty(8192, dtype=torch.bfloat16), 2**63)
    assert len(compiled) == 3
    for kernel in compiled:
        assert f".target sm_{capability}" in kernel.asm["ptx"]
        assert "ld.global.v4" in kernel.asm["ptx"], "four numbers at a time"


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_counts_of_bits_compile_to_one_instruction(
    capability: int, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime import driver

    from kernels import binary_triton

    monkeypatch.setattr(driver, "_active", NoGpu(capability))
    shape, (input, weight, *_) = tensors_for("binary", torch.float32)
    binary_triton.convolve(input, binary_triton.bits_of(weight), shape)
    assert len(compiled) == 3, "filters and images packed, then convolved"
    for kernel in compiled:
        assert f".target sm_{capability}" in kernel.asm["ptx"]
        assert kernel.metadata.shared <= SHARED_BYTES
    assert "popc.b32" in compiled[-1].asm["ptx"]


@pytest.mark.parametrize(
    ("shape", "dtype", "size", "expected"),
    [
        (SHAPE, torch.float32, 2, True),
        (SHAPE, torch.float16, 2, True),
        (SHAPE, torch.bfloat16, 2, True),
        (SHAPE, torch.float64, 2, False),
        (SHAPE, torch.float32, 0, False),
        (ConvShape(n=0, c=3, h=8, w=8, k=4, r=3, s=3), torch.float32, 2, False),
        (ConvShape(n=2**24, c=3, h=8, w=8, k=4, r=3, s=3), torch.float32, 2, False),
    ],
)
def test_what_triton_takes(
    shape: ConvShape, dtype: torch.dtype, size: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_kernels, "missing", lambda _: None)
    assert triton_kernels.takes(shape, torch.empty(2, dtype=dtype), torch.empty(size, dtype=dtype)) is expected


@pytest.mark.parametrize(
    ("device", "capability", "installed", "interpreted", "expected"),
    [
        ("cuda:0", (8, 0), True, "", None),
        ("cuda:0", (9, 0), True, "", None),
        ("cuda:0", (7, 5), True, "", "compute capability 7.5, must be 8.0 or more"),
        ("cuda:0", (9, 0), False, "", "the package triton is not installed"),
        ("cpu", (), True, "", "it needs an NVIDIA GPU"),
        ("cpu", (), True, "1", None),
        ("meta", (), True, "1", "it needs an NVIDIA GPU"),
    ],
)
def test_what_is_missing_is_said(
    device: str,
    capability: tuple[int, ...],
    installed: bool,
    interpreted: str,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_kernels, "is_installed", lambda: installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    triton_kernels.capability_lacks.cache_clear()
    try:
        assert triton_kernels.missing(torch.device(device)) == expected
    finally:
        triton_kernels.capability_lacks.cache_clear()


@pytest.mark.parametrize(
    ("programs", "steps", "expected"), [(1, 1000, 512), (1, 7, 7), (100, 1000, 5), (512, 1000, 1), (10_000, 9, 1)]
)
def test_sums_are_shared_until_a_gpu_is_full(programs: int, steps: int, expected: int) -> None:
    assert triton_kernels.parts(programs, steps) == expected


@needs_triton
@pytest.mark.parametrize(
    ("rows", "columns", "dtype", "expected"),
    [
        (1, 1, torch.float32, (32, 32, 16, 4)),
        (50, 64, torch.float16, (64, 64, 32, 4)),
        (8 * 56 * 56, 64, torch.float32, (128, 64, 16, 8)),
        (8 * 56 * 56, 256, torch.float16, (128, 128, 32, 8)),
        (8 * 56 * 56, 20, torch.bfloat16, (128, 32, 32, 4)),
        (512, 4608, torch.float16, (128, 128, 32, 8)),
    ],
)
def test_blocks_of_im2col_fit_the_result(
    rows: int, columns: int, dtype: torch.dtype, expected: tuple[int, int, int, int]
) -> None:
    from kernels.im2col_triton import blocks_for

    blocks = blocks_for(rows, columns, dtype)
    assert (blocks.rows, blocks.columns, blocks.depth, blocks.warps) == expected


@needs_triton
def test_blocks_of_depthwise_are_wide_in_what_lies_side_by_side() -> None:
    from kernels.depthwise_triton import blocks_for

    images = torch.empty(2, 40, 8, 8)
    assert blocks_for(images, 40) == (512, 1)
    nhwc = images.contiguous(memory_format=torch.channels_last)
    assert blocks_for(nhwc, 40) == (16, 64)
    assert blocks_for(nhwc, 3) == (64, 16)
    assert blocks_for(nhwc, 40, summed=True) == (8, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("m", [2, 4])
def test_plans_of_winograd_are_derived_and_their_sums_fit_registers(m: int, dtype: torch.dtype) -> None:
    images, weights = plan_of(m, dtype), plan_of_gradient(m, dtype)
    assert (images.m, weights.m) == (m, 3)
    for plan in (images, weights):
        exact = matrices(plan.m, plan.n - plan.m + 1)
        assert [list(map(list, rows)) for rows in (plan.of_output, plan.of_filter, plan.of_input)] == [
            [[float(value) for value in row] for row in rows] for rows in exact
        ]
        assert plan.n**2 * plan.rows * plan.columns / (32 * plan.warps) <= 160
