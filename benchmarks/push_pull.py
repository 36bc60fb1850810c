"""A gradient to a parameter server and the weights back, against a gloo all-reduce of as many bytes.

    python -m benchmarks.push_pull          # about 3 minutes; leave the machine alone

Three processes of one Ray: two workers and a server, which does on arrival what a real one does at least:
w -= lr * g, in place, block by block. Taken in turns, with 1, 25 and 100 MB of float32:

gloo              all-reduce by the two workers, in place
object store      one call that takes the gradient and answers the weights, both NumPy's, by Ray's object store
... fp16, bf16,   the same with the gradient written so (`orchestrator/parameter_server/wire.py`; top_k: 1 %); what is
    top_k         answered stays float32
shared memory     a call that carries a few numbers; both lie in memory that both processes have (`shared_memory.py`)
... in place      the same for a worker whose gradient is made there: what copying it there costs
empty call        of the server, without arguments: nothing is faster
... with numbers  with those that the call by shared memory carries, and its answer
memcpy            of as many bytes, in one worker

A time is that of a worker, from a gradient in its own array to the moment when it can read the weights: the median of
the calls of a turn. Ratios are of the same round.
Targets: at 25 MB at most 1.2 times gloo; at 1 MB at most 2 empty calls; by shared memory, which is what a worker on the
server's host takes.

What profiling said (2 cores of a 2.6 GHz Xeon, Ray 2.60, 2026-11-26, the machine not quite quiet):
- An object in the store costs about 1.5 ms whatever its size, above 100 KB, and a push with its pull makes two: 3.6 ms
  at 0.25 MB and 4.3 at 1 MB, where a call alone is 0.6. Hence 2 calls cannot be reached at 1 MB but by shared memory.
- To inline arrays into the calls (`max_direct_call_object_size`, or pieces below 100 KB as arguments and num_returns)
  wins below 1 MB only: 0.25 MB 1.7 to 1.9 ms, 1 MB 4.5 to 6.8, 4 MB 18 to 29, 25 MB 180.
- The store's pages are slow at their first touch, by either process: 40 to 70 ms for 25 MB in the first turn, then 16.
- A first argument costs 0.2 ms, more of them 0.02 each; a dataclass as an argument or an answer 0.05 to 0.1 more than a
  tuple. An actor with threads (max_concurrency) costs 0.1.
- Writing the answer block by block, right after the update of each, saves nothing over a copy at the end (4.4 against
  2.0 + 1.8 ms at 25 MB); shared memory is copied at the speed of a process's own, though it has no huge pages.
- fp16, bf16 and top_k lose on one host: NumPy writes them slower than memory moves. They are for networks.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import ray
import torch
import torch.distributed as dist

from benchmarks import measure
from orchestrator.parameter_server.shared_memory import Segment, Token
from orchestrator.parameter_server.wire import BLOCK, Encoded, Encoder, Floats, Wire, decode
from orchestrator.ray_here import connected_to_ray

ELEMENTS_PER_MB = 2**18
MAX_OVER_GLOO, MAX_OVER_CALL = 1.2, 2.0
RATE = 1e-3
WARM_UP = 3
STORED: dict[str, Wire] = {
    "object store": "fp32",
    "object store, fp16": "fp16",
    "object store, bf16": "bf16",
    "object store, top_k": "top_k",
}
SHARED = ("shared memory", "shared memory, in place")
CALLS = ("empty call", "empty call, with numbers")
ARMS = ("gloo", *STORED, *SHARED, *CALLS, "memcpy")


class Server:
    """The weights of one size, and what is done with a gradient."""

    def begin(self, num_elements: int, token: Token) -> None:
        """Forget what was, and map a worker's memory."""
        self._weights = np.ones(num_elements, np.float32)
        self._scratch = np.empty(BLOCK, np.float32)
        self._segment = Segment.open(token)

    def nothing(self) -> None:
        pass

    def numbers(self, session: int, version: int) -> tuple[int, int]:
        return session, version + 1

    def push_pull(self, gradient: Encoded) -> Floats:
        self._update(gradient)
        return self._weights

    def push_pull_shared(self, session: int, version: int) -> tuple[int, int]:
        gradient, weights = self._segment.array
        self._update(Encoded("fp32", len(gradient), gradient))
        np.copyto(weights, self._weights)
        return self.numbers(session, version)

    def _update(self, gradient: Encoded) -> None:
        for start in range(0, len(self._weights), BLOCK):
            weights = self._weights[start : start + BLOCK]
            scratch, part = self._scratch[: len(weights)], gradient.part(start, start + len(weights))
            values = decode(part, None if part.wire == "fp32" else scratch)
            weights -= np.multiply(values, np.float32(RATE), out=scratch)


class Worker:
    """One of two processes that hold a gradient."""

    def __init__(self, rank: int, rendezvous: str, server: Any) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
        self._server = server

    def begin(self, num_elements: int) -> None:
        """Take the arrays of one size, and see to it that the server has the same."""
        self._gradient = np.random.default_rng(0).standard_normal(num_elements, dtype=np.float32)
        self._copy = np.ones(num_elements, np.float32)
        if dist.get_rank() == 0:
            self._segment = Segment.create(2, num_elements)
            self._encoders = {name: Encoder(wire, num_elements) for name, wire in STORED.items()}
            ray.get(self._server.begin.remote(num_elements, self._segment.token))

    def time(self, name: str, repeats: int) -> float:
        """The median time of a call in ms."""
        call = self._call(name)
        seconds = []
        for _ in range(WARM_UP + repeats):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return 1000 * statistics.median(seconds[WARM_UP:])

    def check(self, name: str) -> None:
        """That the weights that come back are those of before, less the rate times the gradient."""
        call = self._call(name)
        before = call().copy()
        step = before - call()
        if STORED.get(name) != "top_k":
            np.testing.assert_allclose(step, RATE * self._gradient, rtol=2**-8, atol=1e-5, err_msg=name)

    def _call(self, name: str) -> Callable[[], Any]:
        if name in STORED:
            return partial(self._by_object_store, self._encoders[name])
        calls: dict[str, Callable[[], Any]] = {
            "gloo": partial(dist.all_reduce, torch.from_numpy(self._copy)),
            "shared memory": partial(self._by_shared_memory, copies=True),
            "shared memory, in place": partial(self._by_shared_memory, copies=False),
            "empty call": lambda: ray.get(self._server.nothing.remote()),
            "empty call, with numbers": lambda: ray.get(self._server.numbers.remote(1, 2)),
            "memcpy": lambda: np.copyto(self._copy, self._gradient),
        }
        return calls[name]

    def _by_object_store(self, encoder: Encoder) -> Floats:
        return cast(Floats, ray.get(self._server.push_pull.remote(encoder.encode(self._gradient))))

    def _by_shared_memory(self, *, copies: bool) -> Floats:
        gradient, weights = self._segment.array
        if copies:
            np.copyto(gradient, self._gradient)
        ray.get(self._server.push_pull_shared.remote(1, 2))
        return weights


def repeats_of(size: int, seconds: float) -> int:
    """How many calls of `size` MB a turn makes: at about 1 ms and 1 ms a MB each."""
    return max(3, int(seconds * 1000 / (1 + size)))


def measured(sizes: list[int], rounds: int, seconds: float) -> dict[str, list[float]]:
    """ms by arm and size, of every round."""
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, connected_to_ray():
        server = ray.remote(Server).options(num_cpus=0).remote()
        actor = ray.remote(Worker).options(num_cpus=0)
        workers = [actor.remote(rank, f"{folder}/rendezvous", server) for rank in range(2)]

        def arm(name: str, repeats: int) -> Callable[[], float]:
            taking = workers if name == "gloo" else workers[:1]
            return lambda: cast(float, ray.get([each.time.remote(name, repeats) for each in taking])[0])

        for size in sizes:
            ray.get([worker.begin.remote(size * ELEMENTS_PER_MB) for worker in workers])
            for name in (*STORED, "shared memory"):
                ray.get(workers[0].check.remote(name))
            arms = {f"{size} MB: {name}": arm(name, repeats_of(size, seconds)) for name in ARMS}
            values |= measure.in_turns(arms, rounds)
    return values


def ratios_of(values: Mapping[str, list[float]], sizes: list[int]) -> dict[str, dict[str, Any]]:
    """Each way over gloo and over the empty calls."""
    return {
        f"{size} MB: {name} over {to}": measure.ratio(values, f"{size} MB: {name}", f"{size} MB: {to}")
        for size in sizes
        for to in ("gloo", *CALLS)
        for name in (*STORED, *SHARED)
    }


def draw(axis: Any, ratios: Mapping[str, dict[str, Any]]) -> None:
    """Bars with their names beside them: some are too short to hold a name."""
    measure.bars(axis, ratios, target=MAX_OVER_GLOO, label="of gloo's time")
    for text in list(axis.texts):
        text.remove()
    axis.set_yticks(range(len(ratios)), [f"{name}: {figure['median']:.2f}" for name, figure in ratios.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 25, 100], help="MB")
    parser.add_argument("--seconds", type=float, default=0.5, help="about, of each turn")
    args = parser.parse_args()
    here = measure.machine()
    values = measured(args.sizes, args.rounds, args.seconds)
    ratios = ratios_of(values, args.sizes)
    targets = {"25 MB: shared memory over gloo": MAX_OVER_GLOO, "1 MB: shared memory over empty call": MAX_OVER_CALL}
    for name, figure in ratios.items():
        verdict = f"; at most {targets[name]:g}: {figure['median'] <= targets[name]}" if name in targets else ""
        print(f"{name}: {figure['median']:.2f} ({figure['lowest']:.2f} to {figure['highest']:.2f}){verdict}")
    drawn = {
        f"{size} MB, {name}": ratios[f"{size} MB: {name} over gloo"]
        for size in args.sizes
        for name in ("object store", "shared memory")
    }
    record = {
        "title": "push and pull over a gloo all-reduce of as many bytes",
        "targets": targets,
        "settings": {"rounds": args.rounds, "sizes": args.sizes, "seconds": args.seconds},
        "machine": here,
        "ratios": ratios,
        "values": measure.summary(values, "ms"),
    }
    measure.write("push-pull", record, lambda axis: draw(axis, drawn))


if __name__ == "__main__":
    main()
