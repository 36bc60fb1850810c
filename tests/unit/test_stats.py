import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, pixels_of, write_folder
from rich.console import Console
from sklearn.decomposition import PCA

from orchestrator.report.data_page import normalize_line, print_stats, write_data_page
from pipelines.decode import decode
from pipelines.sources import Source, open_source
from pipelines.stats import DataStats, collect

NAMES = [f"{name}/{i}.png" for name, number in (("cat", 5), ("dog", 9)) for i in range(number)]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Images whose channels go together, of several sizes; two equal files, one bad one."""
    root = write_folder(tmp_path / "images", NAMES)
    for number, name in enumerate(NAMES):
        noise = pixels_of(name, (10 + number, 12, 3)).astype(float)
        mixed = noise @ np.array([[0.6, 0.4, 0.1], [0.2, 0.3, 0.4], [0.1, 0.1, 0.4]])
        (root / name).write_bytes(encoded(mixed.astype(np.uint8)))
    (root / "dog" / "3.png").write_bytes((root / "cat" / "2.png").read_bytes())
    (root / "dog" / "8.png").write_bytes(b"no <image>")
    return open_source(f"imagefolder:{root}", "train")


def collected(source: Source, threads: int = 2, most: int = 1000) -> DataStats:
    return collect(source, image_size=9, max_colour_samples=most, threads=threads)


def test_colours_are_those_of_numpy_and_scikit_learn(source: Source) -> None:
    colours = collected(source).colours
    pixels = np.concatenate([decode(source.read(i), 9, 3).reshape(-1, 3) for i in range(13)]) / 255
    assert colours.num_samples == 13
    np.testing.assert_allclose(colours.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(colours.std, pixels.std(axis=0), rtol=1e-12)
    reference = PCA(3).fit(pixels)
    # scikit-learn divides by n - 1
    unbiased = len(pixels) / (len(pixels) - 1)
    np.testing.assert_allclose(colours.eigenvalues * unbiased, reference.explained_variance_, rtol=1e-9)
    products = colours.eigenvectors.T @ reference.components_.T
    np.testing.assert_allclose(np.abs(products), np.eye(3), atol=1e-9)
    assert (colours.eigenvectors[np.abs(colours.eigenvectors).argmax(axis=0), range(3)] > 0).all()


def test_counts_sizes_duplicates_and_bad_samples_are_found(source: Source, tmp_path: Path) -> None:
    stats = collected(source)
    assert stats.num_samples == 14
    assert stats.classes == (("cat", 5), ("dog", 9))
    assert stats.duplicates == (("cat/2.png", "dog/3.png"),)
    assert [(bad.sample_id, "no known image" in bad.reason) for bad in stats.bad] == [("dog/8.png", True)]
    heights = sorted([10 + i for i in range(13) if i != 8] + [12])  # dog/3 is number 8, and holds number 2
    assert (stats.heights.low, stats.heights.median, stats.heights.high) == (10, np.median(heights), 22)
    assert (stats.widths.low, stats.widths.median, stats.widths.high) == (12, 12, 12)
    assert stats.num_bytes == sum(path.stat().st_size for path in (tmp_path / "images").rglob("*.png"))


def test_any_number_of_threads_gives_the_same_numbers(source: Source) -> None:
    one, many = collected(source, threads=1), collected(source, threads=8)
    for name in ("mean", "std", "eigenvalues", "eigenvectors"):
        assert np.array_equal(getattr(one.colours, name), getattr(many.colours, name))
    assert one.duplicates == many.duplicates


def test_colours_of_fewer_samples_still_count_all_of_them(source: Source) -> None:
    stats = collected(source, most=4)
    assert stats.colours.num_samples <= 4
    assert sum(number for _, number in stats.classes) == 14


def test_the_size_is_the_median_short_side_unless_it_is_given(source: Source) -> None:
    stats = collect(source, image_size=None, max_colour_samples=100, threads=1)
    assert stats.colours.image_size == 12


def test_a_grey_source_has_one_component() -> None:
    stats = collect(open_source("digits?per_class=3", "val"), image_size=8, max_colour_samples=100, threads=1)
    assert stats.colours.eigenvalues[1] < 1e-12 < stats.colours.eigenvalues[0]
    np.testing.assert_allclose(stats.colours.eigenvectors[:, 0], np.full(3, 3**-0.5), rtol=1e-6)


def test_nothing_but_bad_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="SOURCE: none of 1 samples can be decoded"):
        collected(open_source(f"imagefolder:{tmp_path}", "train"))


def test_the_page_says_what_was_found_and_loads_nothing(source: Source, tmp_path: Path) -> None:
    stats = collected(source)
    page = write_data_page("imagefolder:<images>", stats, tmp_path / "stats.html").read_text()
    texts: list[str] = []
    parser = HTMLParser()
    parser.handle_data = texts.append  # type: ignore[method-assign]
    parser.feed(page)
    text = " ".join(texts)
    for expected in ("imagefolder:<images>", "cat/2.png = dog/3.png", "dog/8.png: no known", "64.3%"):
        assert expected in text
    assert normalize_line(stats.colours) in text
    assert f"{stats.colours.eigenvalues[0]:.6f}" in text
    assert not re.search(r"<(script|img|link|iframe)|\s(src|href|on\w+)=", page)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["stats.html"]


def test_the_terminal_says_the_same(source: Source) -> None:
    stats = collected(source)
    console = Console(width=100)
    with console.capture() as capture:
        print_stats(stats, console)
    printed = capture.get()
    for expected in (
        "dog",
        "64.3%",
        "duplicates: cat/2.png = dog/3.png",
        "bad: dog/8.png",
        normalize_line(stats.colours),
    ):
        assert expected in printed
