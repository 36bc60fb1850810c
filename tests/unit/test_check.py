from pathlib import Path

import pytest
from image_files import encoded, pixels_of, write_folder

from pipelines.check import find_bad
from pipelines.sources import open_source

NAMES = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(8)]


@pytest.mark.parametrize("threads", [1, 4])
def test_exactly_the_bad_samples_are_named_with_their_reasons(threads: int, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", NAMES)
    source = open_source(f"imagefolder:{root}", "train")
    jpeg = encoded(pixels_of("large", (64, 64, 3)), "JPEG")
    (root / "cat" / "0.png").write_bytes(b"")
    (root / "cat" / "5.png").write_bytes(b"<html>not found</html>")
    (root / "dog" / "1.png").write_bytes(jpeg[: len(jpeg) // 2])
    (root / "dog" / "7.png").unlink()
    counted: list[int] = []
    bad = find_bad(source, threads=threads, progress=counted.append)
    assert [one.sample_id for one in bad] == ["cat/0.png", "cat/5.png", "dog/1.png", "dog/7.png"]
    assert [one.index for one in bad] == [0, 5, 9, 15]
    reasons = [one.reason for one in bad]
    assert reasons[0] == "the file is empty"
    assert "no known image format" in reasons[1]
    assert "cut off" in reasons[2]
    assert "No such file" in reasons[3]
    assert sum(counted) == len(NAMES)


def test_a_source_of_good_samples_has_no_bad_ones(tmp_path: Path) -> None:
    assert find_bad(open_source(f"imagefolder:{write_folder(tmp_path)}", "train"), threads=2) == []
    assert find_bad(open_source("digits?per_class=2", "val"), threads=2) == []
