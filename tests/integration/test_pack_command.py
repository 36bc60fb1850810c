"""The commands that look at data, as a user meets them: what they print, leave behind and end with."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.cli import main
from pipelines.sources import open_source
from tests.conftest import command, environment


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of six images; the first of each class are equal."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng([label * min(number, 1), number]).integers(0, 256, (40, 60, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def convoy(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["convoy", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_packing_tells_what_it_made_and_dropped_and_can_be_repeated(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "dog" / "5.png").write_bytes(b"no image")
    arguments = ("pack", f"imagefolder:{images}", tmp_path / "packed", "--short-side", "20", "--shard-size", "3KiB")
    assert convoy(monkeypatch, *arguments, "--workers", "1", "--verify") == 0
    said = capsys.readouterr().out
    assert "packed 11 samples into" in said
    assert "11 images scaled" in said
    assert "dropped dog/5.png: no known image format" in said
    assert "dropped 1 samples that cannot be decoded; all in" in said
    assert "verified 11 samples" in said
    source = said.split("source: ")[1].splitlines()[0]
    assert len(open_source(source, "train").listing) == 11
    assert convoy(monkeypatch, *arguments) == 0
    assert "of them from before" in capsys.readouterr().out


def test_verifying_a_damaged_pack_ends_with_1_and_names_the_samples(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("pack", f"imagefolder:{images}", tmp_path / "packed", "--raw", "8", "--workers", "1", "--verify")
    assert convoy(monkeypatch, *arguments) == 0
    capsys.readouterr()
    shard = tmp_path / "packed" / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    sample = bytes(open_source(f"shards:{tmp_path / 'packed'}", "train").read(1))
    content[content.index(sample)] ^= 255
    shard.write_bytes(content)
    assert convoy(monkeypatch, *arguments) == 1
    said = capsys.readouterr().out
    assert "damaged cat/1.png" in said
    assert "1 of 12 samples are damaged: delete their shards and pack again" in said
    shard.unlink()
    assert convoy(monkeypatch, *arguments) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("pack", "imagefolder:none", "packed"), "SOURCE: got 'imagefolder:none', but"),
        (("pack", "IMAGES", "images"), "DEST: got images, which holds other files"),
        (("pack", "IMAGES", "s3://bucket/x"), "DEST: got s3://bucket/x, must be a folder on this machine"),
        (("pack", "IMAGES", "packed", "--raw", "8", "--short-side", "9"), "short_side, raw: got 9 and 8, must be one"),
        (("pack", "IMAGES", "packed", "--shard-size", "5M"), "--shard-size: got '5M', must be a number and one of"),
        (("check-data", "digits:x"), "SOURCE: got 'digits:x', must be one of digits"),
        (("check-data", "digits", "--split", "test"), "--split: got test, must be train or val"),
        (("stats", "digits", "--out", "none/stats.html"), "--out: got none/stats.html, which lies in no folder"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    options: tuple[str, ...],
    message: str,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(images.parent)
    arguments = [f"imagefolder:{images}" if option == "IMAGES" else option for option in options]
    assert convoy(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"convoy: {message}")
    assert len(said.splitlines()) == 1
    assert [path.name for path in images.parent.iterdir()] == ["images"], "nothing may be left behind"


def test_a_file_that_cannot_be_read_ends_packing_with_1_and_says_how_to_go_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "dog" / "5.png").unlink()
    (images / "dog" / "5.png").symlink_to(tmp_path / "away.png")
    assert convoy(monkeypatch, "pack", f"imagefolder:{images}", tmp_path / "packed", "--workers", "1") == 1
    assert "dog/5.png" in (said := capsys.readouterr().err)
    assert "Whole shards are kept; repair it and run the command again" in said


def test_checking_lists_the_bad_samples_and_ends_with_1(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convoy(monkeypatch, "check-data", f"imagefolder:{images}") == 0
    assert capsys.readouterr().out == "0 of 12 samples are bad\n"
    (images / "cat" / "3.png").write_bytes(b"")
    assert convoy(monkeypatch, "check-data", f"imagefolder:{images}") == 1
    assert capsys.readouterr().out == "cat/3.png: the file is empty\n1 of 12 samples are bad\n"
    assert convoy(monkeypatch, "check-data", f"imagefolder:{images}", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 12
    assert found["bad"] == [{"index": 3, "sample_id": "cat/3.png", "reason": "the file is empty"}]


def test_statistics_are_printed_and_written_as_a_page(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stats.html"
    assert convoy(monkeypatch, "stats", f"imagefolder:{images}", "--out", out) == 0
    said = capsys.readouterr().out
    assert "duplicates: cat/0.png = dog/0.png" in said
    assert "experiment: normalize: {mean: [" in said
    assert f"page: {out}" in said.replace("\n", "")
    assert "cat/0.png = dog/0.png" in out.read_text()


def test_an_interrupted_packing_keeps_its_shards_and_goes_on(tmp_path: Path) -> None:
    content = Path(tmp_path / "one.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save(content)
    (tmp_path / "images" / "cat").mkdir(parents=True)
    for number in range(5000):
        (tmp_path / "images" / "cat" / f"{number}.png").hardlink_to(content)
    packed = tmp_path / "packed"
    # Encoded anew, which takes seconds in all: the packing is not over when its first shard is seen.
    encoded = ("--short-side", "200", "--quality", "90")
    arguments = command("pack", "imagefolder:images", "packed", "--workers", "2", "--shard-size", "2MiB", *encoded)
    running = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell's background jobs, which tests may be part of, ignore it, and so do their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while running.poll() is None and not list(packed.glob("shard-*.arrow")):
        time.sleep(0.01)  # polls what another process does
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "interrupted; whole shards are kept" in out + err
    assert "Traceback" not in err
    kept = {path.name: path.stat().st_mtime_ns for path in packed.glob("shard-*.arrow")}
    assert kept
    assert not (packed / "index.json").exists()
    again = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"{len(kept)} of them from before" in again.stdout
    assert {name: (packed / name).stat().st_mtime_ns for name in kept} == kept
    assert len(open_source(f"shards:{packed}", "train").listing) == 5000
