"""The arms of `benchmarks.pipeline` that need a package that Convoy does not: what others' documentation shows.

webdataset        WebDataset and its WebLoader, two workers, Pillow and torchvision v2 (Aizman et al. 2020,
                  arXiv:2001.01858); reads tars of the same files
webdataset_ours   the same, but its workers decode and augment whole batches with Convoy's function
spdl              SPDL, two threads (Hira et al. 2025, arXiv:2504.20067); FFmpeg decodes, crops, scales and flips
dali              NVIDIA DALI on the CPU, two threads; decode and random crop in one, resize and flip

The last three make uint8 pixels and leave colour to the device, as Convoy does. `pip install convoy-train[peers]` has
them; SPDL links FFmpeg 4 to 9, which the system has to have. FFCV (Leclerc et al. 2023, arXiv:2306.12517) has no arm:
its newest release, 1.0.2 of 2023, is source only and did not install in November 2026 ("Could not find required
package: opencv4"; it wants the headers of OpenCV and libturbojpeg).
"""

import importlib
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.pipeline_arms import WORKERS, Work, config_of, consume, one_thread, tutorial_transform
from pipelines.listing import listing_of
from pipelines.produce import Recipe

NEEDS = {"webdataset": "webdataset", "webdataset_ours": "webdataset", "spdl": "spdl.io", "dali": "nvidia.dali"}
AHEAD = 4  # batches a worker


def missing(arm: str) -> str | None:
    """Why an arm cannot run here; None if it can."""
    if arm not in NEEDS:
        return None
    try:
        module = importlib.import_module(NEEDS[arm])
        if arm == "spdl":
            module.demux_config()  # loads its library, which FFmpeg's have to be there for
    except ImportError as error:
        return f"not installed: {error}"
    except RuntimeError as error:  # of SPDL
        return f"not installed: {str(error)[:200]}"
    return None


def webdataset(work: Work) -> dict[str, float]:
    transform = tutorial_transform(work)

    def changed(samples: Any) -> Any:
        return samples.decode("pil").to_tuple("jpg", "cls").map_tuple(transform, int).batched(work.task.batch)

    return consume((pixels for pixels, _ in _webloader(work, changed)), work.num_batches)


def webdataset_ours(work: Work) -> dict[str, float]:
    produce = Encoded(work)

    def changed(samples: Any) -> Any:
        return samples.to_tuple("jpg", "cls").batched(work.task.batch, collation_fn=list, partial=False).map(produce)

    return consume(iter(_webloader(work, changed)), work.num_batches)


def _webloader(work: Work, changed: Callable[[Any], Any]) -> Any:
    import webdataset as wds

    samples = wds.WebDataset(work.tars, resampled=True, shardshuffle=False).shuffle(1000)
    return wds.WebLoader(
        changed(samples), batch_size=None, num_workers=WORKERS, prefetch_factor=AHEAD, worker_init_fn=one_thread
    )


class Encoded:
    """Makes a batch of encoded files that somebody else has read; a source, to Convoy's function."""

    storage: ClassVar[None] = None

    def __init__(self, work: Work) -> None:
        self.listing = listing_of([f"class/{number:06d}" for number in range(work.task.batch)])
        self._contents: list[bytes] = []
        self._recipe = Recipe(self, config_of(work.task), seed=0, training=True, checksums=False)
        self._batches = 0

    def read(self, index: int) -> bytes:
        return self._contents[index]

    def __call__(self, samples: list[tuple[bytes, bytes]]) -> NDArray[np.uint8]:
        self._contents = [content for content, _ in samples]
        self._batches += 1
        return self._recipe.produce(self._batches, range(len(samples))).images


def spdl(work: Work) -> dict[str, float]:
    from spdl import io
    from spdl.pipeline import PipelineBuilder

    files = sorted(Path(work.images).rglob("*.jpg"))
    drawn = random.Random(0)
    filters = _FILTERS[work.data]

    def paths() -> Iterator[str]:
        while True:
            yield from map(str, drawn.sample(files, len(files)))

    def decode(path: str) -> Any:
        packets = io.demux_image(path)
        flip = "hflip," if drawn.random() < 0.5 else ""
        description = f"{filters(packets.width, packets.height, work.task.size, drawn)},{flip}format=pix_fmts=rgb24"
        return io.decode_packets(packets, filter_desc=description)

    def batch(frames: list[Any]) -> NDArray[np.uint8]:
        return io.to_numpy(io.convert_frames(frames))

    pipeline = (
        PipelineBuilder()
        .add_source(paths())
        .pipe(decode, concurrency=WORKERS)
        .aggregate(work.task.batch)
        .pipe(batch)
        .add_sink(WORKERS * AHEAD)
        .build(num_threads=WORKERS)
    )
    with pipeline.auto_stop():
        return consume(iter(pipeline), work.num_batches)


def _resized_crop(width: int, height: int, size: int, drawn: random.Random) -> str:
    """Inception's random resized crop (Szegedy et al. 2014, arXiv:1409.4842), as FFmpeg's filters."""
    area, ratio = width * height * drawn.uniform(0.08, 1), math.exp(drawn.uniform(-1, 1) * math.log(4 / 3))
    w = min(width, max(2, round(math.sqrt(area * ratio))))
    h = min(height, max(2, round(math.sqrt(area / ratio))))
    return f"crop={w}:{h}:{drawn.randint(0, width - w)}:{drawn.randint(0, height - h)},scale={size}:{size}"


def _padded_crop(width: int, height: int, size: int, drawn: random.Random) -> str:
    pad = f"pad={width + 8}:{height + 8}:4:4"
    return f"{pad},crop={size}:{size}:{drawn.randint(0, 8)}:{drawn.randint(0, 8)}:exact=1"


_FILTERS = {"photos": _resized_crop, "cifar10": _padded_crop}


def dali(work: Work) -> dict[str, float]:
    from nvidia.dali import fn, pipeline_def, types

    size = work.task.size

    @pipeline_def(batch_size=work.task.batch, num_threads=WORKERS, device_id=None, seed=0)
    def pipeline() -> Any:
        encoded, _ = fn.readers.file(file_root=work.images, random_shuffle=True)
        if work.data == "photos":
            cropped = fn.decoders.image_random_crop(encoded, device="cpu", output_type=types.RGB)
            framed = fn.resize(cropped, size=(size, size))
        else:
            whole = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
            start = fn.random.uniform(range=(-4.0, 4.0), shape=2)
            framed = fn.slice(
                whole,
                start=fn.cast(start, dtype=types.INT32),
                shape=(size, size),
                axes=(0, 1),
                out_of_bounds_policy="pad",
            )
        return fn.flip(framed, horizontal=fn.random.coin_flip())

    built = pipeline()
    built.build()

    def batches() -> Iterator[NDArray[np.uint8]]:
        while True:
            yield built.run()[0].as_array()

    return consume(batches(), work.num_batches)


PEERS: dict[str, Callable[[Work], dict[str, float]]] = {
    "webdataset": webdataset,
    "webdataset_ours": webdataset_ours,
    "spdl": spdl,
    "dali": dali,
}
