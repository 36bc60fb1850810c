"""Measure convolutions in a cluster of two nodes on this machine. Run by test_tuning_on_ray.py.

The nodes say that they are of two kinds; a third has too little for a worker.
"""

import json
import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from kernels import table
from kernels.table import Device
from orchestrator import cluster_tuning, tuning
from orchestrator.config.load import load_experiment
from orchestrator.plan import Plan
from orchestrator.prepare import prepare, resources_here
from tests.conftest import DIGITS

STORE_BYTES = 100 * 2**20


def kind_of_node(plan: Plan) -> Device:
    return Device(name=ray.get_runtime_context().get_node_id(), threads=plan.threads_per_worker, version="1")


def main(folder: Path) -> None:
    cluster = Cluster()
    nodes = [
        cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES, include_dashboard=False) for cpus in (2, 2, 0)
    ]
    os.environ["RAY_ADDRESS"] = cluster.address
    experiment = load_experiment(DIGITS, ["kernels=auto", "strategy.workers=2", "model.options={width: 4}"])
    found = {"nodes": [node.node_id for node in nodes]}
    with cluster_tuning.connected(experiment) as on_cluster:
        plan = prepare(experiment, resources_here()).plan
        shapes = tuning.layer_shapes(experiment, plan)
        shapes = dict(list(shapes.items())[:2])
        one_kind = cluster_tuning.tune_nodes(experiment, plan, shapes, seconds=0.001)
        rows = {device.name: [row.which for row in rows] for device, rows in one_kind}
        tuning.device_here = kind_of_node
        two_kinds = cluster_tuning.tune_nodes(experiment, plan, dict(list(shapes.items())[:1]), seconds=0.001)
        kinds = {device.name: len(list(rows)) for device, rows in two_kinds}
        found |= {"on_cluster": on_cluster, "threads": plan.threads_per_worker, "rows": rows, "kinds": kinds}
    stored = [[each.device.name, each.device.threads, len(each.rows)] for each in table.all_stored()]
    (folder / "found.json").write_text(json.dumps(found | {"stored": stored}))
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
