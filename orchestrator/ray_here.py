"""The Ray that a command uses: the cluster that it belongs to or that runs here, or one started for it."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import ray

POLL_INTERVAL_S = "1"  # of Ray Train's controller, for failures and the end; 2 s by default
# For a Ray that is started here, for one run on one machine. It watches itself less: 16 % of a core by default while
# nothing happens, 8 % so (2 cores, Ray 2.60, November 2026); and its workers are no nicer than what else runs.
OWN_RAY = {
    "LOG_NAME_UPDATE_INTERVAL_S": "30",  # of what would print the workers' logs
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_worker_niceness": "0",
    "RAY_worker_maximum_startup_concurrency": "8",
}


@contextlib.contextmanager
def connected_to_ray() -> Iterator[None]:
    """Use the cluster that this process belongs to or that runs here, or start one for this run."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_INTERVAL_S)
    quiet_ray()
    if ray.is_initialized():
        yield
        return
    for name, value in OWN_RAY.items():
        os.environ.setdefault(name, value)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        ray.init(
            address="local" if _is_gone(ray._private.utils.read_ray_address()) else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False,
            ignore_reinit_error=True,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


def _is_gone(address: str | None) -> bool:
    """Whether Ray remembers a cluster of this machine that does not answer, such as one that was killed.

    Ray (2.60) would try to reach it for minutes. RAY_ADDRESS, where it is set, is what the user wants.
    """
    if not address or os.environ.get("RAY_ADDRESS"):
        return False
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return False
    except (OSError, ValueError):
        return True


def quiet_ray() -> None:
    """What a run says about itself is ours; Ray says only what is wrong."""
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
