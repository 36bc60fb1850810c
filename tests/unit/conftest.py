"""What unit tests share: processes for runs in process groups (`local_runs.py`)."""

import multiprocessing
import multiprocessing.forkserver as forkserver
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Three processes that have imported torch once together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["local_runs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    with ProcessPoolExecutor(3, mp_context=context) as processes:
        yield processes
