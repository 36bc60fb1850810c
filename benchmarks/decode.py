"""CPU time of a random crop from an encoded photo to 224 x 224 pixels: Convoy's decoding and five others.

    python -m benchmarks.decode FOLDER        # JPEGs of about 500 x 375; about 8 minutes

Each arm decodes every image once with the same boxes (Inception's random resized crop: area 8 to 100%, aspect 3/4 to
4/3), on one thread. CPU time by the operating system's accounting, the arms in turns. The 12-megapixel photos are the
folder's, scaled to 4000 x 3000, with a camera's noise (2 grey levels), and written with quality 92 and 95: about 2 and
3 MB. The more bytes, the less a region saves, because every byte above its end has to be read.

Targets, region decode + resize over full decode + the same resize: >= 1.15 on 500 x 375, >= 2 on 12 megapixels.
"""

import argparse
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from benchmarks import measure
from pipelines.decode import UndecodableImage, decode_box, size_of
from pipelines.decode_jpeg import decode_whole, native_status
from pipelines.jpeg_header import read_header
from pipelines.resize import resized

SIZE = 224
TARGETS = {"500 x 375": 1.15, "12 megapixels, quality 92": 2.0, "12 megapixels, quality 95": 2.0}
OURS, FULL = "Convoy: region", "full decode, the same resize"

Box = tuple[int, int, int, int]
Image8 = np.ndarray[Any, np.dtype[np.uint8]]


def region(content: bytes, box: Box) -> Image8:
    return decode_box(content, box, SIZE, 3)


def region_linear(content: bytes, box: Box) -> Image8:
    return decode_box(content, box, SIZE, 3, resize="linear")


def full(content: bytes, box: Box) -> Image8:
    return resized(_cut(decode_whole(content, read_header(content), 1, 3), box), SIZE, "antialias")


def without_native(content: bytes, box: Box) -> Image8:
    """What a node without a compiler does, but for the rounding of boxes: the same scale, the whole image."""
    header = read_header(content)
    scale = next((scale for scale in (8, 4, 2) if min(box[2:]) >= scale * 2 * SIZE), 1)
    scaled = tuple(round(edge / scale) for edge in box)
    return resized(_cut(decode_whole(content, header, scale, 3), scaled), SIZE, "antialias")


def pillow(content: bytes, box: Box) -> Image8:
    left, top, width, height = box
    image = Image.open(io.BytesIO(content)).convert("RGB")
    area = (left, top, left + width, top + height)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=area))


def pillow_draft(content: bytes, box: Box) -> Image8:
    """Pillow at its best: scaled in the JPEG's transform, by half of what the box allows."""
    left, top, width, height = box
    image: Image.Image = Image.open(io.BytesIO(content))
    before = image.width
    least = 2 * SIZE / min(width, height)
    image.draft("RGB", (int(image.width * least), int(image.height * least)))
    ratio = image.width / before
    area = (left * ratio, top * ratio, (left + width) * ratio, (top + height) * ratio)
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=area))


def opencv(content: bytes, box: Box) -> Image8:
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return cv2.resize(_cut(image, box), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def simplejpeg_opencv(content: bytes, box: Box) -> Image8:
    return cv2.resize(_cut(simplejpeg.decode_jpeg(content), box), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def torchvision(content: bytes, box: Box) -> Image8:
    left, top, width, height = box
    image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return functional.resized_crop(image, top, left, height, width, [SIZE, SIZE], antialias=True).numpy()


ARMS: dict[str, Callable[[bytes, Box], Image8]] = {
    OURS: region,
    "Convoy: region, linear resize": region_linear,
    "Convoy without native code": without_native,
    FULL: full,
    "simplejpeg + OpenCV linear": simplejpeg_opencv,
    "OpenCV, linear": opencv,
    "torchvision.io, antialiased": torchvision,
    "Pillow": pillow,
    "Pillow, draft mode": pillow_draft,
}


def _cut(pixels: Image8, box: tuple[int, ...]) -> Image8:
    left, top, width, height = box
    return pixels[top : top + height, left : left + width]


def random_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """Szegedy et al. 2015 (arXiv:1409.4842), section 6, by rejection."""
    while True:
        area, aspect = height * width * rng.uniform(0.08, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h


def photos(folder: Path, number: int) -> list[bytes]:
    """Colour JPEGs of 400 to 600 pixels, evenly spread over the folder."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")):
        content = path.read_bytes()
        try:
            height, width = size_of(content)
        except UndecodableImage:
            continue
        if 400 <= max(height, width) <= 600 and Image.open(io.BytesIO(content)).mode == "RGB":
            found.append(content)
    if not found:
        raise SystemExit(f"FOLDER: got {folder}, which has no colour JPEG of 400 to 600 pixels")
    return found[:: max(1, len(found) // number)][:number]


def enlarged(content: bytes, quality: int, rng: np.random.Generator) -> bytes:
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((4000, 3000), Image.Resampling.LANCZOS)
    noise = rng.normal(0, 2, (3000, 4000, 1)).astype(np.float32)
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def race(contents: list[bytes], rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    work = [(content, random_box(*size_of(content), rng)) for content in contents]

    def arm(function: Callable[[bytes, Box], Image8]) -> Callable[[], float]:
        def run() -> float:
            start = time.process_time()
            for content, box in work:
                function(content, box)
            return 1000 * (time.process_time() - start) / len(work)

        return run

    arms = {name: arm(function) for name, function in ARMS.items()}
    for run in arms.values():
        run()  # libraries loaded, memory paged in
    values = measure.in_turns(arms, rounds)
    return {
        "images": len(contents),
        "mean_bytes": sum(map(len, contents)) / len(contents),
        "values": measure.summary(values, "CPU ms an image"),
        "ratios": {name: measure.ratio(values, name, OURS) for name in ARMS if name != OURS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--large", type=int, default=12, help="how many 12-megapixel photos")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(native_status())
    here = measure.machine()
    small = photos(args.folder, args.photos)
    rng = np.random.default_rng(0)
    sets = {"500 x 375": small}
    for quality in (92, 95):
        large = [enlarged(content, quality, rng) for content in small[: args.large]]
        sets[f"12 megapixels, quality {quality}"] = large
    races = {name: race(contents, args.rounds) for name, contents in sets.items()}
    ratios = {name: race["ratios"][FULL] for name, race in races.items()}
    for name, one in races.items():
        print(f"\n{name}: {one['images']} images of {one['mean_bytes'] / 1000:.0f} KB")
        for arm, figure in one["values"].items():
            ratio = one["ratios"][arm]["median"] if arm != OURS else 1.0
            print(f"  {arm:32} {figure['median']:8.3f} ms   {ratio:.2f} x {OURS}")
        print(f"  target: full decode >= {TARGETS[name]} x region decode; got {ratios[name]['median']:.2f}")
    record = {
        "title": "CPU time of full decode + resize over region decode + resize, random crops to 224",
        "targets": TARGETS,
        "native": native_status().partition(", by ")[0],
        "settings": {name: getattr(args, name) for name in ("rounds", "photos", "large")},
        "machine": here,
        "ratios": ratios,
        "races": races,
    }
    measure.write(
        "decode", record, lambda axis: measure.bars(axis, ratios, target=TARGETS["500 x 375"], label="of region decode")
    )


if __name__ == "__main__":
    main()
