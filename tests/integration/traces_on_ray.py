"""Train the same images from four kinds of source, in groups of several sizes and from several commits, in one Ray.

Run by test_traces.py; leaves a run folder for each way.
"""

import contextlib
import io
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.config.load import load_experiment
from orchestrator.launch import run
from orchestrator.ray_here import connected_to_ray
from pipelines.pack import PackOptions, pack
from pipelines.sources import open_source
from tests.conftest import DIGITS, SMALL

NUM_IMAGES, NUM_CLASSES = 600, 5
PARTS = "val_fraction=0.2"
# name -> source, workers
WHOLE = {
    "folder, alone": ("imagefolder", 0),
    "tar, alone": ("tar", 0),
    "parquet, alone": ("parquet", 0),
    "shards, alone": ("shards", 0),
    "folder, 1 worker": ("imagefolder", 1),
    "shards, 2 workers": ("shards", 2),
}
# name -> source, workers, the step of the commit to go on from: in the middle of the first and of the second epoch
RESUMED = {
    "tar, alone, from 3": ("tar", 0, 3),
    "shards, alone, from 12": ("shards", 0, 12),
    "folder, alone, from 24": ("imagefolder", 0, 24),
    "tar, 2 workers, from 9": ("tar", 2, 9),
    "parquet, 1 worker, from 21": ("parquet", 1, 21),
}


def images() -> dict[str, bytes]:
    """Grey noise of several sizes, by sample id."""
    made = {}
    for number in range(NUM_IMAGES):
        draws = np.random.default_rng(number)
        height, width = draws.integers(8, 24, 2)
        stream = io.BytesIO()
        Image.fromarray(draws.integers(0, 256, (height, width), np.uint8)).save(stream, "PNG")
        made[f"{number % NUM_CLASSES}/{number:03d}.png"] = stream.getvalue()
    return made


def write_sources(folder: Path) -> dict[str, str]:
    """The same images in four forms; in tar and parquet in another order."""
    made = images()
    for sample_id, content in made.items():
        path = folder / "images" / sample_id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    backwards = sorted(made, reverse=True)
    with tarfile.open(folder / "images.tar", "w") as archive:
        for sample_id in backwards:
            member = tarfile.TarInfo(f"train/{sample_id}")
            member.size = len(made[sample_id])
            archive.addfile(member, io.BytesIO(made[sample_id]))
    labels, names = zip(*(sample_id.split("/") for sample_id in backwards), strict=True)
    table = pa.table({"image": [made[sample_id] for sample_id in backwards], "label": labels, "file_name": names})
    pq.write_table(table, folder / "images.parquet", row_group_size=64)
    source = open_source(f"imagefolder:{folder / 'images'}", "train")
    pack(source, folder / "shards", PackOptions(shard_bytes=20_000), workers=1)
    paths = {"imagefolder": "images", "tar": "images.tar", "parquet": "images.parquet", "shards": "shards"}
    return {kind: f"{kind}:{folder / path}?{PARTS}" for kind, path in paths.items()}


def train(source: str, workers: int, folder: Path, *, resume: bool = False) -> None:
    overrides = [
        *SMALL, f"data.train={source}", f"data.val={source}", "model.options={width: 4, norm: group}",
        "train.global_batch=32", "checkpoint={every_steps: 3, keep: 100}", f"strategy.workers={workers}",
        f"run.folder={folder}",
    ]  # fmt: skip
    run(load_experiment(DIGITS, overrides), resume=resume, overwrite=False, watch=lambda *_: contextlib.nullcontext())


def cut(run_folder: Path, step: int, into: Path) -> None:
    """What a run would have left if it had ended at the commit of `step`."""
    shutil.copytree(run_folder, into)
    for commit in (into / "checkpoints").glob("step-*"):
        if int(commit.name.split("-")[1]) > step:
            shutil.rmtree(commit)
    for name in ("trace.parquet", "result.json"):
        (into / name).unlink()


def main(folder: Path) -> None:
    sources = write_sources(folder)
    with connected_to_ray():
        for name, (kind, workers) in WHOLE.items():
            train(sources[kind], workers, folder / name)
        for name, (kind, workers, step) in RESUMED.items():
            cut(folder / "folder, alone", step, folder / name)
            train(sources[kind], workers, folder / name, resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
