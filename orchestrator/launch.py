"""From a plan to a run: the only file that starts anything.

Prepare (open the data, size the model, plan), hold the run folder, start a Ray group or train here, retry by the
failure policy, write the result.
"""

import contextlib
import json
import logging
import os
import platform
import signal
import threading
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
import torch

from orchestrator.channel import ActorChannel, Channel, DirectChannel
from orchestrator.config.experiment import Experiment
from orchestrator.config.load import dump_experiment
from orchestrator.errors import InputError, RunError, RunGaveUp
from orchestrator.failure import GiveUp, decide
from orchestrator.models.size import measure
from orchestrator.models.zoo import check_model
from orchestrator.plan import DataSize, ModelSize, Plan, Resources, make_plan
from orchestrator.report.build import write_report
from orchestrator.run_folder import RunFolder
from orchestrator.run_log import RunLog
from orchestrator.training.accounting import data_wait_share
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.worker import GroupSetup, Outcome, Setup, train_here, train_in_group
from pipelines.order import Epoch, Position
from pipelines.produce import Recipe
from pipelines.sources import Source, Split, check_same_classes, open_source
from pipelines.stages import OrderedSplit, Stream

POLL_INTERVAL_S = "0.2"  # of Ray Train's controller: a commit waits for one poll, which is 2 s by default
PROCESS_GROUP_TIMEOUT_S = 120
LOG_TAIL_LINES = 20
VERSIONS = ("convoy-train", "ray", "torch", "torchvision", "numpy", "pyarrow")

logger = logging.getLogger(__name__)

Watch = Callable[[Channel, Plan, Experiment], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Prepared:
    """An experiment whose data is open and whose plan is made; nothing is started yet."""

    experiment: Experiment
    plan: Plan
    model: ModelSize
    train: Source
    val: Source

    def recipe(self, training: bool) -> Recipe:
        source = self.train if training else self.val
        experiment = self.experiment
        checksums = training and experiment.trace.samples
        return Recipe(source, experiment.data, experiment.seed, training, checksums)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on from a commit."""
        experiment = self.experiment
        return {
            "seed": experiment.seed,
            "data.train": self.train.listing.fingerprint,
            "train.global_batch": experiment.train.global_batch,
            "model": experiment.model.model_dump(mode="json"),
            "data.augment": [a.model_dump(mode="json") for a in experiment.data.augment],
        }

    def setup(self, folder: RunFolder) -> Setup:
        batch = self.experiment.train.global_batch
        return Setup(
            experiment=self.experiment,
            plan=self.plan,
            checkpoints=folder.checkpoints,
            classes=self.train.listing.classes,
            train_epoch=Epoch(len(self.train.listing), batch),
            val_epoch=Epoch(len(self.val.listing), batch),
            identity=self.identity,
        )


def prepare(experiment: Experiment, resources: Resources) -> Prepared:
    """Open the data, size the model and make the plan.

    Raises: InputError if anything that the experiment names does not exist or cannot work.
    """
    check_model(experiment.model)
    train = _open("data.train", experiment.data.train, "train")
    val = _open("data.val", experiment.data.val, "val")
    try:
        check_same_classes(train, val)
    except ValueError as error:
        raise InputError(f"data.val: {error}") from error
    num_classes = len(train.listing.classes)
    data = experiment.data
    model = measure(experiment.model, num_classes=num_classes, channels=data.channels, image_size=data.image_size)
    size = DataSize(len(train.listing), len(val.listing), num_classes)
    return Prepared(experiment, make_plan(experiment, resources, size, model), model, train, val)


def _open(setting: str, spec: str, split: Split) -> Source:
    try:
        return open_source(spec, split)
    except ValueError as error:
        raise InputError(f"{setting}: {error}") from error


def resources_here(experiment: Experiment) -> Resources:
    """What this machine has, or the cluster that this process is connected to."""
    if ray.is_initialized():
        total = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        return Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)), nodes, int(total.get("memory", 0)))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    del experiment
    return Resources(len(os.sched_getaffinity(0)), gpus)


def run(experiment: Experiment, *, resume: bool, overwrite: bool, watch: Watch) -> dict[str, Any]:
    """Run an experiment from the start, or go on where its run folder stands; returns what is in result.json.

    `watch` shows the run while it goes on.
    Raises: InputError before anything is trained; RunError if the run failed.
    """
    folder = RunFolder(experiment.run.path)
    with folder.lock(), contextlib.ExitStack() as stack:
        _check_folder(folder, resume=resume, overwrite=overwrite)
        if experiment.strategy.max_workers > 0:
            stack.enter_context(_connected_to_ray())
        prepared = prepare(experiment, resources_here(experiment))
        _check_identity(folder, prepared)
        if overwrite:
            folder.clear()
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
def _connected_to_ray() -> Iterator[None]:
    """Use the cluster that this process belongs to or that runs here, or start one for this run."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_INTERVAL_S)
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    with contextlib.redirect_stderr(Path(os.devnull).open("w")):
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


class _Run:
    """One run from start to result."""

    def __init__(self, prepared: Prepared, folder: RunFolder, watch: Watch) -> None:
        self._prepared = prepared
        self._folder = folder
        self._watch = watch
        self._started = time.time()
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
        with _stopping(channel), self._watch(channel, self._prepared.plan, self._prepared.experiment):
            try:
                outcome = train()
                if outcome.error is not None:
                    error = RunError(outcome.error, **(outcome.details or {}))
            except RunError as failure:
                error = failure
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
                return _in_thread(lambda: self._trainer(group, name, channel).fit().return_value)
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
            raise RunGaveUp(_why(reason, failures), cause=cause, failures=len(failures)) from error
        time.sleep(decision.delay_s)

    def _result(self, channel: Channel, outcome: Outcome | None, error: RunError | None) -> dict[str, Any]:
        experiment = self._prepared.experiment
        view = channel.call("view")
        progress = outcome.progress if outcome else None
        if progress is None:
            state = CheckpointStore(self._folder.checkpoints, keep=1).newest_state()
            progress = state["progress"] if state else None
        seconds = progress["seconds"] if progress else {}
        total = sum(seconds.values())
        return {
            "status": "failed" if error else outcome.status if outcome else "failed",
            "error": str(error) if error else None,
            "val_accuracy": progress and progress["val_accuracy"],
            "val_loss": progress and progress["val_loss"],
            "best_val_accuracy": progress and progress["best_val_accuracy"],
            "epochs": progress["position"]["epoch"] if progress else 0,
            "steps": progress["steps"] if progress else 0,
            "samples_seen": progress["samples"] if progress else 0,
            "images_per_s": progress["samples"] / total if progress and total else 0.0,
            "data_wait_share": data_wait_share(seconds) if progress else 0.0,
            "restarts": view.restarts,
            "wall_s": time.time() - self._started,
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


@contextlib.contextmanager
def _stopping(channel: Channel) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a commit at the next step boundary; the second ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        del frame
        for each, handler in before.items():
            signal.signal(each, handler if callable(handler) else signal.SIG_DFL)
        asking = threading.Thread(target=channel.call, args=("request_stop", signal.Signals(number).name))
        asking.start()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_thread(function: Callable[[], Outcome]) -> Outcome:
    """Call a function in another thread, so that signals reach this one and not Ray's own handler."""
    results: list[Outcome] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if errors:
        raise errors[0]
    return results[0]


def _why(reason: str, failures: list[dict[str, Any]]) -> str:
    """One paragraph: what was given up, who failed last, where, and the end of its log."""
    last = failures[-1]
    places = last["places"]
    where = "; ".join(f"rank {place.rank} on node {place.node}, process {place.pid}" for place in places)
    error = last["error"].strip().splitlines()
    parts = [
        f"The run gave up: {reason}.",
        f"The last failure: {where + ': ' if where else ''}{error[-1] if error else ''}",
    ]
    for place in places:
        if tail := _tail(place.log):
            parts.append(f"The log of rank {place.rank} ends:\n{tail}")
    return " ".join(parts[:2]) + "".join(f"\n{part}" for part in parts[2:])


def _tail(path: str) -> str:
    """The last lines of a worker's log, if it lies on this machine."""
    file = Path(path)
    if not file.is_file():
        return ""
    lines = file.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])
