"""What result.json says of a run that has ended."""

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from orchestrator.config.strategy import ServedConfig
from orchestrator.errors import RunError
from orchestrator.prepare import Prepared
from orchestrator.run_folder import RunFolder
from orchestrator.run_log import View
from orchestrator.training.accounting import data_wait_share
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.measures import Figures, prefixed
from orchestrator.training.peak import HOW, OF
from orchestrator.training.tasks import TASKS
from orchestrator.worker import Outcome

VERSIONS = ("convoy-train", "ray", "torch", "torchvision", "numpy", "pyarrow")


def result_of(
    prepared: Prepared, folder: RunFolder, view: View, outcome: Outcome | None, error: RunError | None, *, wall_s: float
) -> dict[str, Any]:
    """The outcome of a run (docs/run-folder.md): of its own account, or of its newest commit if there is none."""
    experiment = prepared.experiment
    served = isinstance(experiment.strategy, ServedConfig)
    forecast = prepared.forecast
    progress = outcome.progress if outcome and not served else None  # a server's workers know their own part only
    if progress is None:
        state = CheckpointStore(folder.checkpoints, keep=1).newest_state()
        progress = state["progress"] if state else None
    task = TASKS[prepared.plan.target.kind]
    val: Figures = dict.fromkeys((measure.name for measure in task.all_measures), None)
    val |= progress["val"] if progress else {}
    seconds = progress["seconds"] if progress else {}
    return {
        "status": "failed" if error else outcome.status if outcome else "failed",
        "error": str(error) if error else None,
        "best_by": task.best,
        **prefixed("val_", val),
        "val_loss": progress and progress["val_loss"],
        f"best_val_{task.best}": progress and progress["best_val"],
        "epochs": progress["position"]["epoch"] if progress else 0,
        "steps": progress["steps"] if progress else 0,
        **_figures_of(progress),
        "data_wait_share": data_wait_share(seconds) if progress else 0.0,
        "restarts": view.restarts,
        "unreadable_samples": view.quarantined,
        "memory": {
            "predicted": {**asdict(forecast), "training": forecast.training, "peak": forecast.peak},
            "measured": view.peak_bytes or None,
            "measured_by": HOW[prepared.plan.device],
            "measured_of": OF[prepared.plan.device],
            "checkpointed": list(prepared.experiment.memory.checkpoint),
        },
        "wall_s": wall_s,
        "workers": view.workers,
        "seed": experiment.seed,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "seconds": seconds,
        "evaluation_s": progress["evaluation_s"] if progress else 0.0,
        "classes": list(prepared.train.listing.classes),
    }


def _figures_of(progress: dict[str, Any] | None) -> dict[str, Any]:
    """Samples and updates. Where no server counts them, every step is an update, of gradients that are not stale."""
    if progress is None:
        return {
            "samples_seen": 0,
            "images_per_s": 0.0,
            "samples_per_s": 0.0,
            "updates": 0,
            "updates_lost": 0,
            "gradients_dropped": 0,
        }
    total = sum(progress["seconds"].values())
    samples_per_s = progress["samples"] / total if total else 0.0
    updates = progress.get("updates")
    times = progress["staleness"] if updates is not None else {"0": progress["steps"]}
    counted = sorted((int(staleness), count) for staleness, count in times.items())
    return {
        "samples_seen": progress["samples"],
        "images_per_s": samples_per_s,
        "samples_per_s": samples_per_s,
        "updates": progress["steps"] if updates is None else updates,
        "updates_lost": progress.get("updates_lost", 0),
        "gradients_dropped": progress.get("dropped", 0),
        "staleness": {
            "mean": sum(staleness * count for staleness, count in counted) / max(sum(times.values()), 1),
            "max": max((staleness for staleness, _ in counted), default=0),
            "histogram": {str(staleness): count for staleness, count in counted},
        },
    }
