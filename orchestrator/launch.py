"""From a plan to a run: the only file that starts anything.

Prepare (open the data, size the model, plan), hold the run folder, start a Ray group or train here, retry by the
failure policy, write the result.
"""

import atexit
import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from orchestrator.channel import ActorChannel, Channel, DirectChannel
from orchestrator.config.experiment import Experiment
from orchestrator.config.load import dump_experiment
from orchestrator.config.strategy import ServedConfig
from orchestrator.errors import InputError, RunError, RunGaveUp
from orchestrator.failure import GiveUp, decide, why_it_gave_up
from orchestrator.plan import Plan
from orchestrator.prepare import Prepared, prepare, resources_here
from orchestrator.ray_here import connected_to_ray, quiet_ray
from orchestrator.replica_groups import ReplicaGroups
from orchestrator.report.build import write_report
from orchestrator.results import result_of
from orchestrator.run_folder import RunFolder
from orchestrator.run_log import RunLog
from orchestrator.served import (
    PURPOSES,
    ServedGroup,
    served_stream,
    server_setup,
    train_in_served_group,
    train_served_here,
)
from orchestrator.server_actors import FeedActor, FollowerActor, ServerActor
from orchestrator.stopping import in_thread, stopping
from orchestrator.training.checkpoint_store import CheckpointStore
from orchestrator.worker import GroupSetup, Outcome, Setup, train_here, train_in_group
from pipelines.order import Position
from pipelines.stages import OrderedSplit, Stream

PROCESS_GROUP_TIMEOUT_S = 120

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
        shutil.rmtree(folder.snapshots, ignore_errors=True)  # a command goes on from commits
        folder.write("experiment.yaml", dump_experiment(experiment))
        _ = prepared.forecast  # before anything starts, and not after all is done
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


class _Run:
    """One run from start to result."""

    def __init__(self, prepared: Prepared, folder: RunFolder, watch: Watch) -> None:
        self._prepared = prepared
        self._folder = folder
        self._watch = watch
        self._started = time.time()
        self._log_name = f"convoy-run-log-{uuid.uuid4().hex}"
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
        result = result_of(
            self._prepared,
            self._folder,
            channel.call("view"),
            outcome,
            error,
            wall_s=self._wall_s_before + time.time() - self._started,
        )
        channel.call("finish_trace")
        self._folder.write("result.json", json.dumps(result, indent=2) + "\n")
        shutil.rmtree(self._folder.snapshots, ignore_errors=True)  # a command goes on from commits
        channel.call("event", "finish", f"the run {result['status']}")
        write_report(self._folder.local)
        self._folder.upload()
        if error is not None:
            raise error
        return result

    def _start_log_actor(self) -> ActorChannel:
        here = ray.get_runtime_context().get_node_id()
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        options = {"name": self._log_name, "num_cpus": 0, "scheduling_strategy": affinity, "max_concurrency": 1}
        actor = ray.remote(RunLog).options(**options)
        return ActorChannel(actor.remote(RunFolder(self._folder.path, self._folder.local), self._budget))

    def _train_here(self, channel: Channel) -> Outcome:
        """Ray Train's local mode: the same trainer, its function called in this process, no Ray started."""
        prepared = self._prepared
        setup = prepared.setup(self._folder)
        train = train_served_here if isinstance(prepared.experiment.strategy, ServedConfig) else train_here
        quiet_ray()  # it would ask for reports of issues with its local mode
        trainer = ray.train.torch.TorchTrainer(
            lambda: train(setup, channel, prepared.recipe(True), prepared.recipe(False)),
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
        served = self._serve(group) if isinstance(prepared.experiment.strategy, ServedConfig) else None
        try:
            while True:
                try:
                    return in_thread(lambda: self._trainer(group, served, name, channel).fit().return_value)
                except ray.train.TrainingFailedError as error:
                    self._decide(channel, error)
        finally:
            for actor in (*channel.call("controllers"), *(served.actors if served else ())):
                ray.kill(actor)  # a server that has begun anew outlives its handles

    def _serve(self, group: GroupSetup) -> ServedGroup:
        """Start the parameter server, and the feeds that its workers get their samples from."""
        experiment = self._prepared.experiment
        # Threads: one for each worker that waits for an answer, and some to spare.
        options = {"num_cpus": 0, "max_restarts": experiment.failure.servers, "max_task_retries": 0}
        server = ray.remote(ServerActor).options(**options, max_concurrency=2 * experiment.strategy.max_workers + 4)
        feeds = {}
        for purpose in PURPOSES:
            stream = served_stream(group, purpose, _position(group.setup))
            feeds[purpose] = (
                ray.remote(FeedActor).options(num_cpus=0, max_concurrency=16).remote(stream),
                stream.layout(1),
            )
        # The log by its name: a handle would lie in the object store, from where a restart might not get it.
        told = server_setup(group.setup)
        first = server.remote(told, self._log_name, experiment.faults)
        follower = ray.remote(FollowerActor).options(**options, max_concurrency=experiment.strategy.max_workers + 2)
        others = [
            follower.remote(told, index, self._log_name, experiment.faults) for index in range(1, told.num_shards)
        ]
        return ServedGroup(group, (first, *others), feeds)

    def _trainer(
        self, group: GroupSetup, served: ServedGroup | None, name: str, channel: ActorChannel
    ) -> DataParallelTrainer:
        plan, experiment = self._prepared.plan, self._prepared.experiment
        workers = experiment.strategy.workers
        failed = sum(failure["cause"] == "workers" for failure in channel.call("failures"))
        storage = f"{self._folder.path}/.ray" if self._folder.is_remote else str(self._folder.local / ".ray")
        scaling_config = ray.train.ScalingConfig(
            num_workers=workers, use_gpu=plan.device == "cuda", resources_per_worker={"CPU": plan.cpus_per_worker}
        )
        run_config = ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(
                max_failures=max(0, experiment.failure.workers - failed),
                controller_failure_limit=experiment.failure.setup,
            ),
            callbacks=[_ReportFailures(channel, served.shards[0] if served else None), _ReportController(channel)],
        )
        if served is not None:
            return DataParallelTrainer(
                train_in_served_group,
                train_loop_config=served,
                backend_config=ReplicaGroups(),
                scaling_config=scaling_config,
                run_config=run_config,
            )
        return ray.train.torch.TorchTrainer(
            train_in_group,
            train_loop_config=group,
            torch_config=ray.train.torch.TorchConfig(timeout_s=PROCESS_GROUP_TIMEOUT_S),
            scaling_config=scaling_config,
            run_config=run_config,
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


@dataclass(frozen=True)
class _StreamFactory:
    """Called by Ray at each start of a worker group: the stream from the newest commit on."""

    group: GroupSetup
    purpose: str

    def __call__(self) -> Stream:
        return self.group.stream(self.purpose, _position(self.group.setup))


def _position(setup: Setup) -> Position:
    """Where the newest commit stands."""
    state = CheckpointStore(setup.checkpoints, keep=1).newest_state()
    return Position(**state["progress"]["position"]) if state else Position(0, 0)


class _ReportController(ControllerCallback):
    """Runs in Ray Train's controller: tells the run log which actor that is, and ends its process when it has ended.

    One that ends by itself runs destructors in an order that now and then (one in six) holds it for ever, with all its
    memory, or crashes it (Ray 2.60, CoreWorkerProcess::HandleAtExit); one that is killed, or leaves before them, does
    not.
    """

    def __init__(self, channel: ActorChannel) -> None:
        self._channel = channel

    def after_controller_start(self, train_run_context: Any) -> None:
        del train_run_context
        atexit.register(os._exit, 0)  # Ray has said farewell by then
        self._channel.call("note_controller", ray.get_runtime_context().current_actor)


class _ReportFailures(ray.train.UserCallback):
    """Runs in Ray Train's controller: tells the run log, and a parameter server, which workers failed and how."""

    def __init__(self, channel: ActorChannel, server: Any) -> None:
        self._channel, self._server = channel, server

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        del run_context
        errors = "\n".join(f"rank {rank}: {error}" for rank, error in sorted(worker_exceptions.items()))
        self._channel.call("failure", "workers", errors, sorted(worker_exceptions))
        for rank, error in sorted(worker_exceptions.items()) if self._server is not None else ():
            self._server.left.remote(rank, str(error))
