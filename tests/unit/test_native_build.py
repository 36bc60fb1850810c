import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from image_files import encoded
from jpeg_files import scene

from kernels.native import build
from kernels.native.build import COMPILERS, NotBuilt, cache_folder, load
from pipelines.decode import decode_box
from pipelines.decode_jpeg import native_status

ROOT = Path(__file__).parents[2]
SUM = "int sum(int a, int b) { return a + b; }\n"
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="needs a C compiler")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources, and an empty cache."""
    folder = tmp_path / "sources"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@needs_compiler
def test_a_source_is_compiled_once_and_again_when_it_changes(sources: Path) -> None:
    (sources / "sum.c").write_text(SUM)
    assert load(sources / "sum.c").sum(2, 3) == 5
    (kept,) = cache_folder().iterdir()
    changed = kept.stat().st_mtime_ns
    load(sources / "sum.c")
    assert kept.stat().st_mtime_ns == changed
    (sources / "sum.c").write_text(SUM.replace("+", "*"))
    assert load(sources / "sum.c").sum(2, 3) == 6
    assert len(list(cache_folder().iterdir())) == 2


@needs_compiler
def test_other_flags_make_another_library(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sources / "sum.c").write_text(SUM)
    load(sources / "sum.c")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    load(sources / "sum.c")
    assert len(list(cache_folder().iterdir())) == 2


@needs_compiler
def test_why_a_source_does_not_compile_is_said(sources: Path) -> None:
    (sources / "sum.c").write_text("#include <no_such_header.h>\n")
    with pytest.raises(NotBuilt, match=r"sum-\w+\.so does not compile: .*no_such_header\.h"):
        load(sources / "sum.c")
    (sources / "sum.c").write_text(SUM)
    with pytest.raises(NotBuilt, match=r"does not compile: .*no_such_library"):
        load(sources / "sum.c", ("no_such_library",))
    assert list(cache_folder().iterdir()) == [], "nothing is left of a build that failed"


def test_that_there_is_no_compiler_is_said(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sources / "sum.c").write_text(SUM)
    monkeypatch.setenv("PATH", str(sources))
    with pytest.raises(NotBuilt, match="no C compiler on the PATH"):
        load(sources / "sum.c")


@needs_compiler
def test_a_cache_folder_that_cannot_be_written_is_said(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sources / "sum.c").write_text(SUM)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(NotBuilt, match=r"could not be written or loaded: .*Not a directory"):
        load(sources / "sum.c")


@needs_compiler
def test_a_library_that_is_no_library_is_said(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sources / "sum.c").write_text(SUM)
    load(sources / "sum.c")
    (kept,) = cache_folder().iterdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))  # a process does not load a path twice
    cache_folder().mkdir(parents=True)
    (cache_folder() / kept.name).write_bytes(b"not an ELF file")
    with pytest.raises(NotBuilt, match="could not be written or loaded"):
        load(sources / "sum.c")


def test_the_cache_is_where_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ray")
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == Path("/home/ray/.cache/convoy")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/convoy")


LOAD = """
import sys
from pathlib import Path
from kernels.native import build
sys.stdin.read(1)
assert build.load(Path(sys.argv[1]) / "sum.c").sum(2, 3) == 5
"""


@needs_compiler
def test_processes_that_start_at_once_do_not_harm_each_other(sources: Path) -> None:
    (sources / "sum.c").write_text(SUM)
    command = [sys.executable, "-c", LOAD, str(sources)]
    started = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    for process in started:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert [process.communicate()[1].decode() for process in started] == [""] * 4
    assert [path.suffix for path in cache_folder().iterdir()] == [".so"]


STATUS = """
import hashlib, logging, sys
from pathlib import Path
from pipelines.decode import decode_box
from pipelines.decode_jpeg import native_status
logging.basicConfig(format="%(levelname)s %(message)s")
content = Path(sys.argv[1]).read_bytes()
for size in (500, 224, 40):
    print(hashlib.sha256(decode_box(content, (37, 21, 400, 300), size, 3).tobytes()).hexdigest())
print(native_status())
"""


@needs_compiler
def test_a_node_without_a_compiler_says_so_once_and_makes_the_same_pixels(tmp_path: Path) -> None:
    if not native_status().startswith("only the part"):
        pytest.skip(f"needs the native region decode: {native_status()}")
    content = encoded(scene(375, 500), "JPEG")
    (tmp_path / "image.jpg").write_bytes(content)
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", STATUS, str(tmp_path / "image.jpg")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *digests, status = done.stdout.splitlines()
    boxes = [decode_box(content, (37, 21, 400, 300), size, 3) for size in (500, 224, 40)]
    assert digests == [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in boxes]
    reason = "whole JPEGs are decoded by simplejpeg: no C compiler on the PATH (looked for cc, gcc, clang)"
    assert status == reason
    scaling = "images are scaled by torch, to the same pixels in three times the time: no C compiler on the PATH"
    assert done.stderr.count(reason) == done.stderr.count(scaling) == 1
    assert done.stderr.count("WARNING") == 2
