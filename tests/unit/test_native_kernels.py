"""The kernels in C under the address and undefined-behaviour sanitizers, against the definition, in C too.

Each runs in a program of its own, for this CPU's vectors and for none, over borders, strides and odd sizes.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from kernels.native import build
from kernels.shapes import Pair
from kernels.winograd_code import transforms

TESTS = Path(__file__).parent
NATIVE = Path(build.__file__).parent
SANITIZED = ("-g", "-O1", "-std=c11", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
VECTORS = {"AVX512": ("-mavx512f", "-mfma"), "AVX2": ("-mavx2", "-mfma")}.get(
    torch.backends.cpu.get_cpu_capability(), ()
)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = next(filter(None, map(shutil.which, build.COMPILERS)), None)
    if found is None:
        pytest.skip("needs a C compiler")
    empty = tmp_path_factory.mktemp("probe") / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    probe = [found, *SANITIZED, str(empty), "-o", str(empty.with_suffix(""))]
    if subprocess.run(probe, capture_output=True).returncode or subprocess.run([empty.with_suffix("")]).returncode:
        pytest.skip("needs a compiler with the address and undefined-behaviour sanitizers, and OpenMP")
    return found


@pytest.mark.parametrize("flags", [VECTORS, ()], ids=["this CPU's vectors", "no vectors"])
@pytest.mark.parametrize(
    ("kernel", "tile"),
    [
        ("winograd", ((4, 4), (3, 3))),
        ("winograd", ((6, 1), (3, 1))),
        ("winograd", ((2, 2), (5, 5))),
        ("depthwise", None),
        ("pointwise", None),
    ],
    ids=str,
)
def test_the_sanitizers_find_nothing(
    kernel: str, tile: tuple[Pair, Pair] | None, flags: tuple[str, ...], compiler: str, tmp_path: Path
) -> None:
    program = tmp_path / kernel
    if tile:
        (tmp_path / "winograd_transforms.h").write_text(transforms(*tile))
    folders = (f"-I{NATIVE}", f"-I{TESTS}", f"-I{tmp_path}")
    command = [compiler, *SANITIZED, *flags, *folders, str(TESTS / f"{kernel}_driver.c"), "-o", str(program), "-lm"]
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    # what threads keep for the next call is no leak
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    results = re.match(r"(\d+) results, largest error", done.stdout)
    assert results
    assert int(results[1]) > 90
