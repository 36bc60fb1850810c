"""`convoy tune` on a cluster: every kind of device that a worker may get, measured where it is.

One node of each kind measures, in a task with the resources of a worker. What it finds is kept on the machine that
asked, from where a run takes it.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kernels.shapes import ConvShape
from kernels.table import Device, Row
from orchestrator import tuning
from orchestrator.config.experiment import Experiment
from orchestrator.errors import InputError
from orchestrator.plan import Plan


@contextlib.contextmanager
def connected(experiment: Experiment) -> Iterator[bool]:
    """Whether there is a cluster that the experiment would run on; connected to it until the block ends."""
    if experiment.strategy.max_workers == 0:
        yield False
        return
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
        yield False
        return
    try:
        yield True
    finally:
        ray.shutdown()


def tune_nodes(
    experiment: Experiment, plan: Plan, shapes: dict[str, ConvShape], *, seconds: float
) -> Iterator[tuple[Device, Iterator[Row]]]:
    """Measure every pass of every distinct shape on each kind of device, one after the other.

    Raises: InputError if no node has the resources of a worker.
    """
    for device, node in _kinds(plan).items():
        found = _on(node, plan, tuning.measure_layers).remote(experiment, plan, shapes, seconds=seconds)
        yield device, tuning.kept(device, map(ray.get, found))


def _kinds(plan: Plan) -> dict[Device, str]:
    """One node of each kind that workers fit on, as they compute there."""
    needed = _resources(plan)
    nodes = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0) >= number for name, number in needed.items())
    ]
    if not nodes:
        raise InputError(f"tune: no node of the cluster has the resources of a worker, {needed}. Start such a node.")
    devices = ray.get([_on(node, plan, tuning.device_here).remote(plan) for node in nodes])
    return dict(zip(reversed(devices), reversed(nodes), strict=True))


def _on(node: str, plan: Plan, function: Any) -> Any:
    needed = _resources(plan)
    return ray.remote(function).options(
        num_cpus=needed["CPU"],
        num_gpus=needed.get("GPU", 0),
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )


def _resources(plan: Plan) -> dict[str, float]:
    return {"CPU": plan.cpus_per_worker} | ({"GPU": 1.0} if plan.device == "cuda" else {})
