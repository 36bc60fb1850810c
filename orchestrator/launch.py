"""From a plan to a run: the only file that starts anything.

Prepare (open the data, size the model, plan), hold the run folder, start a Ray group or train here, retry by the
failure policy, write the result.
"""

import contextlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from orchestrator.channel import ActorChannel, Channel, DirectChannel
from orchestrator.config.experiment import Experiment
from orchestrator.config.load import dump_experiment
from orchestrator.errors import InputError, RunError, RunGaveUp
from orchestrator.failure import GiveUp, decide, why_it_gave_up
from orchestrator.plan import Plan
from orchestrator.prepare import Prepared, prepare, resources_here
from orchestrator.report.build import write_report
from orchestrator.run_folder import RunFolder
from orchestrator.run_log import RunLog
from orchestrator.stopping import in_thread, stopping
from orchestrator.training.accounting import data_wait_share
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.training.measures import Figures, prefixed
from orchestrator.training.tasks import TASKS
from orchestrator.worker import GroupSetup, Outcome, train_here, train_in_group
from pipelines.order import Position
from pipelines.stages import OrderedSplit, Stream

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
PROCESS_GROUP_TIMEOUT_S = 120
VERSIONS = ("convoy-train", "ray", "torch", "torchvision", "numpy", "pyarrow")

logger = logging.getLogger(__name__)

Watch = Callable[[Channel, Plan, Experiment], contextlib.AbstractContextManager[None]]


def run(experiment: Experiment, *, resume: bool, overwrite: bool, watch: Watch) -> dict[str, Any]:
    """Run an experiment from the start, or go on where its run folder stands; returns what is in result.json.

    `watch` shows the run while it goes on.
    Raises: InputError before anything is trained; RunError if the run failed.
    """
    folder = RunFolder(experiment.run.path)
    with folder.lock(), contextlib.ExitStack() as stack:
        _check_folder(folder, resume=resume, overwrite=overwrite)
        if experiment.strategy.max_workers > 0:
            stack.enter_context(connected_to_ray())
        prepared = prepare(experiment, resources_here())
        if overwrite:
            folder.clear()
        else:
            _check_identity(folder, prepared)
        folder.write("experiment.yaml", dump_experiment(experiment))
        return _Run(prepared, folder, watch).go()


def _check_folder(folder: RunFolder, *, resume: bool, overwrite: bool) -> None:
    if folder.has_run and not resume and not overwrite:
        raise InputError(
            f"run.folder: {folder.path} holds a run already. Go on with it by --resume, replace it by --overwrite, "
            "or give this run another name by run.name=NAME."
        )
    if resume and not folder.has_run:
        raise InputError(f"run.folder: {folder.path} holds no run to --resume. Leave --resume out to start one.")


def _check_identity(folder: RunFolder, prepared: Prepared) -> None:
    """Refuse to go on from a commit of a run with other samples, order or network."""
    state = CheckpointStore(folder.checkpoints, keep=1).newest_state()
    if state is None:
        return
    for setting, committed in state["identity"].items():
        now = prepared.identity.get(setting)
        if now != committed:
            raise InputError(
                f"{setting}: got {now}, but the run in {folder.path} was trained with {committed}. "
                "A run goes on only as it began: change it back, or start another run by run.name=NAME."
            )


@contextlib.contextmanager
def connected_to_ray() -> Iterator[None]:
    """Use the cluster that this process belongs to or that runs here, or start one for this run."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_INTERVAL_S)
    _quiet_ray()
    if ray.is_initialized():
        yield
        return
    for name, value in OWN_RAY.items():
        os.environ.setdefault(name, value)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        ray.init(
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


def _quiet_ray() -> None:
    """What a run says about itself is ours; Ray says only what is wrong."""
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _Run:
    """One run from start to result."""

    def __init__(self, prepared: Prepared, folder: RunFolder, watch: Watch) -> None:
        self._prepared = prepared
        self._folder = folder
        self._watch = watch
        self._started = time.time()
        result = folder.local / "result.json"
        self._wall_s_before = json.loads(result.read_text())["wall_s"] if result.exists() else 0.0
        failure = prepared.experiment.failure
        self._budget = {"workers": failure.workers, "setup": failure.setup}

    def go(self) -> dict[str, Any]:
        uses_ray = self._prepared.plan.uses_ray
        channel: Channel
        if uses_ray:
            channel = actor = self._start_log_actor()
            train = partial(self._train_in_group, actor)
        else:
            channel = DirectChannel(RunLog(self._folder, self._budget))
            train = partial(self._train_here, channel)
        error: RunError | None = None
        outcome: Outcome | None = None
        with stopping(channel), self._watch(channel, self._prepared.plan, self._prepared.experiment):
            try:
                outcome = train()
                if outcome.error is not None:
                    error = RunError(outcome.error, **(outcome.details or {}))
            except RunError as failure:
                error = failure
            except Exception as failure:  # whatever it was, the run folder says that the run failed
                error = RunError(f"{type(failure).__name__}: {failure}")
                error.__cause__ = failure
        result = self._result(channel, outcome, error)
        channel.call("finish_trace")
        self._folder.write("result.json", json.dumps(result, indent=2) + "\n")
        channel.call("event", "finish", f"the run {result['status']}")
        write_report(self._folder.local)
        self._folder.upload()
        if error is not None:
            raise error
        return result

    def _start_log_actor(self) -> ActorChannel:
        here = ray.get_runtime_context().get_node_id()
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        actor = ray.remote(RunLog).options(num_cpus=0, scheduling_strategy=affinity, max_concurrency=1)
        return ActorChannel(actor.remote(RunFolder(self._folder.path, self._folder.local), self._budget))

    def _train_here(self, channel: Channel) -> Outcome:
        """Ray Train's local mode: the same trainer, its function called in this process, no Ray started."""
        prepared = self._prepared
        setup = prepared.setup(self._folder)
        _quiet_ray()  # it would ask for reports of issues with its local mode
        trainer = ray.train.torch.TorchTrainer(
            lambda: train_here(setup, channel, prepared.recipe(True), prepared.recipe(False)),
            scaling_config=ray.train.ScalingConfig(num_workers=0),
        )
        return trainer.fit().return_value

    def _train_in_group(self, channel: ActorChannel) -> Outcome:
        """Fit, and fit again after failures that Ray's own budget does not cover."""
        prepared, folder = self._prepared, self._folder
        group = GroupSetup(
            setup=prepared.setup(folder),
            run_log=channel.actor,
            train_recipe=ray.put(prepared.recipe(True)),
            val_recipe=ray.put(prepared.recipe(False)),
        )
        name = f"{prepared.experiment.run.name}-{int(self._started)}"
        while True:
            try:
                return in_thread(lambda: self._trainer(group, name, channel).fit().return_value)
            except ray.train.TrainingFailedError as error:
                self._decide(channel, error)

    def _trainer(self, group: GroupSetup, name: str, channel: ActorChannel) -> ray.train.torch.TorchTrainer:
        plan, experiment = self._prepared.plan, self._prepared.experiment
        workers = experiment.strategy.workers
        failed = sum(failure["cause"] == "workers" for failure in channel.call("failures"))
        storage = f"{self._folder.path}/.ray" if self._folder.is_remote else str(self._folder.local / ".ray")
        return ray.train.torch.TorchTrainer(
            train_in_group,
            train_loop_config=group,
            torch_config=ray.train.torch.TorchConfig(timeout_s=PROCESS_GROUP_TIMEOUT_S),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=plan.device == "cuda",
                resources_per_worker={"CPU": plan.cpus_per_worker},
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=storage,
                failure_config=ray.train.FailureConfig(
                    max_failures=max(0, experiment.failure.workers - failed),
                    controller_failure_limit=experiment.failure.setup,
                ),
                callbacks=[_ReportFailures(channel)],
            ),
            datasets={purpose: _StreamFactory(group, purpose) for purpose in ("train", "val")},
            dataset_config=OrderedSplit(),
        )

    def _decide(self, channel: Channel, error: Exception) -> None:
        """Wait and return to try again, or raise what says why not."""
        cause = "workers" if isinstance(error, ray.train.WorkerGroupError) else "setup"
        if cause == "setup":
            channel.call("failure", cause, str(error), [])
        failures = [failure for failure in channel.call("failures") if failure["cause"] == cause]
        decision = decide(cause, len(failures), self._budget[cause])
        if isinstance(decision, GiveUp) or cause == "workers":
            reason = decision.reason if isinstance(decision, GiveUp) else "Ray Train gave it up"
            raise RunGaveUp(why_it_gave_up(reason, failures), cause=cause, failures=len(failures)) from error
        time.sleep(decision.delay_s)

    def _result(self, channel: Channel, outcome: Outcome | None, error: RunError | None) -> dict[str, Any]:
        experiment = self._prepared.experiment
        view = channel.call("view")
        progress = outcome.progress if outcome else None
        if progress is None:
            state = CheckpointStore(self._folder.checkpoints, keep=1).newest_state()
            progress = state["progress"] if state else None
        task = TASKS[self._prepared.plan.target.kind]
        val: Figures = dict.fromkeys((measure.name for measure in task.all_measures), None)
        val |= progress["val"] if progress else {}
        seconds = progress["seconds"] if progress else {}
        total = sum(seconds.values())
        return {
            "status": "failed" if error else outcome.status if outcome else "failed",
            "error": str(error) if error else None,
            "best_by": task.best,
            **prefixed("val_", val),
            "val_loss": progress and progress["val_loss"],
            f"best_val_{task.best}": progress and progress["best_val"],
            "epochs": progress["position"]["epoch"] if progress else 0,
            "steps": progress["steps"] if progress else 0,
            "samples_seen": progress["samples"] if progress else 0,
            "images_per_s": progress["samples"] / total if progress and total else 0.0,
            "data_wait_share": data_wait_share(seconds) if progress else 0.0,
            "restarts": view.restarts,
            "unreadable_samples": view.quarantined,
            "wall_s": self._wall_s_before + time.time() - self._started,
            "workers": view.workers,
            "seed": experiment.seed,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
            "seconds": seconds,
            "evaluation_s": progress["evaluation_s"] if progress else 0.0,
            "classes": list(self._prepared.train.listing.classes),
        }


@dataclass(frozen=True)
class _StreamFactory:
    """Called by Ray at each start of a worker group: the stream from the newest commit on."""

    group: GroupSetup
    purpose: str

    def __call__(self) -> Stream:
        state = CheckpointStore(self.group.setup.checkpoints, keep=1).newest_state()
        start = Position(**state["progress"]["position"]) if state else Position(0, 0)
        return self.group.stream(self.purpose, start)


class _ReportFailures(ray.train.UserCallback):
    """Runs in Ray Train's controller: tells the run log which workers failed and how."""

    def __init__(self, channel: ActorChannel) -> None:
        self._channel = channel

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        del run_context
        errors = "\n".join(f"rank {rank}: {error}" for rank, error in sorted(worker_exceptions.items()))
        self._channel.call("failure", "workers", errors, sorted(worker_exceptions))
