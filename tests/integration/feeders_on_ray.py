"""Read streams in a cluster of two nodes on this machine, and write where the actors were. Run by test_feeders.py.

The first node says that it has a GPU; one that only feeds joins while the first stream is read.
"""

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pipelines.loader import Batch
from pipelines.stages import FEEDERS
from tests.integration.streams_on_ray import PATIENCE_S, by_threads, read, recipe, stream, wait_until
from tests.processes import descends, pipeline_actors

CPUS_PER_ACTOR = 0.9  # a node of one CPU holds one, a node of two holds two
STORE_BYTES = 100 * 2**20
EPOCHS = 20
Node = ray._private.node.Node


def actors_on(node: Node) -> int:
    raylet = node.all_processes["raylet"][0].process.pid
    return sum(descends(actor, raylet) for actor in pipeline_actors())


def main(folder: Path) -> None:
    cluster = Cluster()
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE_BYTES, include_dashboard=False)]
    ray.init(address=cluster.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    found: dict[str, list[int]] = {}

    def count(name: str) -> Callable[[Batch], None]:
        def each(batch: Batch) -> None:
            if (batch.epoch, batch.step) == (0, 0):
                found[name] = [actors_on(node) for node in nodes]

        return each

    begun, joined = threading.Event(), threading.Event()

    def join(batch: Batch) -> None:
        count("before")(batch)
        if (batch.epoch, batch.step) == (0, 0):
            begun.set()
            assert joined.wait(PATIENCE_S), "the node did not join"
            wait_until(lambda: actors_on(nodes[1]) == 2)
            count("joined")(batch)

    made = recipe("data.image_size=32")
    rows = {"threads": by_threads(made, EPOCHS, threads=2)}
    with ThreadPoolExecutor(1) as pool:
        growing = stream(made, (1, 3), EPOCHS, cpus_per_actor=CPUS_PER_ACTOR)
        reading = pool.submit(read, growing, 1, join)
        assert begun.wait(PATIENCE_S), "no batch came"
        nodes.append(cluster.add_node(num_cpus=2, labels=FEEDERS, object_store_memory=STORE_BYTES))
        joined.set()
        rows["joined"] = reading.result()
    for actors in (2, 3):
        one = stream(made, actors, 1, cpus_per_actor=CPUS_PER_ACTOR)
        rows[f"{actors} actors"] = read(one, 1, count(f"{actors} actors"))
    (folder / "found.json").write_text(json.dumps({"actors": found, "rows": rows}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
