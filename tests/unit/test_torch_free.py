"""What makes the data needs no torch: importing it takes 2.5 s of CPU in every actor."""

import subprocess
import sys

import pytest

PROGRAM = """\
from pipelines.config import PipelineConfig
import numpy as np, pipelines.produce
from pipelines.augment.program import compile_program

augment = ["random_resized_crop", "horizontal_flip", "rotate", {"colour_jitter": {"where": "cpu"}}, "trivialaugment",
           "pca_colour", {"normalize": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, {"random_mixing": {"of": ["cutmix"]}}]
config = PipelineConfig.model_validate({"train": "x", "val": "x", "image_size": 8, "augment": augment})
images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
program = compile_program(config.augment)
changed = program.apply_cpu(images, 0, 0, np.arange(2, dtype=np.uint64))
assert not np.array_equal(changed, images)
program.apply_device_colour(images, 0, 0, np.arange(2, dtype=np.uint64))
"""
ASK = "import sys; print('torch' in sys.modules)"


@pytest.mark.parametrize(
    "program",
    [PROGRAM, "import pipelines.stages, pipelines.loader, pipelines.preview"],
    ids=["augmenting", "stages"],
)
def test_what_makes_the_data_imports_no_torch(program: str) -> None:
    assert asked(f"{program}\n{ASK}") == "False"


def test_what_prepares_batches_on_the_device_imports_torch() -> None:
    """So that the question above can be answered by yes."""
    assert asked(f"import pipelines.device\n{ASK}") == "True"


def asked(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
