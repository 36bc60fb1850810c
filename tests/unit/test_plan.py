"""How the plan splits CPUs between training and the pipeline, and what it refuses."""

from itertools import product

import pytest

from orchestrator.config.load import load_experiment
from orchestrator.errors import InputError
from orchestrator.explain import explain_plan
from orchestrator.memory.forecast import Forecast
from orchestrator.plan import DataSize, ModelSize, Plan, Resources, make_plan
from pipelines.targets import Target
from tests.conftest import DIGITS

MODEL = ModelSize(num_parameters=1000, flops_per_sample=1000)
FORECAST = Forecast(weights=2**20, state=2**21, activations=2**22, rest=2**19, evaluation=2**20)


def plan(actors: str, resources: Resources, workers: int = 1) -> Plan:
    overrides = [f"data.actors={actors}", f"strategy.workers={workers}", f"train.global_batch={64 * max(workers, 1)}"]
    return make_plan(load_experiment(DIGITS, overrides), resources, DataSize(1437, 360, Target("class", 10)), MODEL)


def claimed(made: Plan, train_actors: int) -> float:
    """CPUs of all that a run holds at once."""
    return made.workers * made.cpus_per_worker + (train_actors + made.val_actors) * made.cpus_per_actor


@pytest.mark.parametrize("actors", ["auto", "1", "4", "[2,8]"])
@pytest.mark.parametrize(("workers", "cpus"), [(1, 1), (1, 2), (1, 3), (2, 2), (2, 8), (3, 3), (4, 8), (4, 64)])
def test_what_trains_on_cpus_never_claims_more_than_there_are(actors: str, workers: int, cpus: int) -> None:
    made = plan(actors, Resources(cpus, 0), workers)
    assert claimed(made, made.train_actors[1]) <= cpus
    assert made.cpus_per_actor > 0


@pytest.mark.parametrize("actors", ["auto", "1", "4", "[2,64]"])
@pytest.mark.parametrize("node_cpus", [(1,), (2,), (8,), (4, 4), (2, 2, 2, 2), (8, 8, 16), (3, 5)])
def test_with_gpus_the_actors_of_the_start_fit_into_what_workers_leave_of_each_node(
    actors: str, node_cpus: tuple[int, ...]
) -> None:
    """Wherever the workers are: a part of a CPU that is left over at a node's edge holds no actor."""
    workers = 2 if sum(node_cpus) > 2 else 1
    made = plan(actors, Resources(sum(node_cpus), workers, nodes=len(node_cpus)), workers)
    wanted = made.train_actors[0] + made.val_actors
    for places in product(range(len(node_cpus)), repeat=workers):
        left = [cpus - places.count(node) * made.cpus_per_worker for node, cpus in enumerate(node_cpus)]
        if min(left) >= 0:
            assert sum(int(cpus / made.cpus_per_actor + 1e-9) for cpus in left) >= wanted


def test_with_gpus_an_actor_is_one_cpu_where_cpus_suffice() -> None:
    made = plan("auto", Resources(32, 2), 2)
    assert (made.cpus_per_worker, made.cpus_per_actor) == (1.0, 1.0)
    assert (made.train_actors, made.val_actors) == ((23, 23), 7)


@pytest.mark.parametrize(("actors", "expected"), [("3", (3, 3)), ("[2,8]", (2, 8)), ("[5,5]", (5, 5))])
def test_the_number_of_actors_is_the_experiments(actors: str, expected: tuple[int, int]) -> None:
    assert plan(actors, Resources(16, 1)).train_actors == plan(actors, Resources(2, 0)).train_actors == expected


@pytest.mark.parametrize(
    ("resources", "beside"), [(Resources(2, 0), "0.5"), (Resources(3, 1), "2")], ids=["on CPUs", "with GPUs"]
)
def test_more_actors_than_any_share_of_a_cpu_are_refused(resources: Resources, beside: str) -> None:
    message = rf"data.actors: got 500, which leaves each less than 0.01 of the {beside} CPUs beside the workers\. Set "
    with pytest.raises(InputError, match=message):
        plan("500", resources)


def test_actors_that_nothing_will_use_are_warned_about() -> None:
    (warning,) = plan("2", Resources(2, 0), workers=0).warnings
    assert warning.startswith("data.actors is not used with strategy.workers=0")
    assert plan("auto", Resources(2, 0), workers=0).warnings == ()


ALONE = "in this process, without Ray"
SERVED = "2 Ray Train workers, a parameter server of 1 shard"


@pytest.mark.parametrize(
    ("strategy", "training", "batch"),
    [
        ("{workers: 1}", "1 Ray Train worker", "64 samples a worker and step"),
        ("{workers: 0}", ALONE, "64 samples a worker and step"),
        ("{workers: 2}", "2 Ray Train workers, all-reduce", "32 samples a worker and step"),
        ("{workers: [1, 2]}", "1 to 2 Ray Train workers, all-reduce", "32 samples a worker and step"),
        ("{name: local, workers: 2}", "2 Ray Train workers, weights averaged every 16 steps", "32 samples a worker"),
        (
            "{name: async, workers: 2}",
            f"{SERVED}, asynchronous, rate divided by 1 + staleness",
            "2 shares of 32 samples, handed to whoever is free",
        ),
        ("{name: async, workers: 0, scale_lr: false}", f"{ALONE}, a parameter server of 1 shard, asynchronous", "64 s"),
        ("{name: stale, workers: 2, shards: 3}", "a parameter server of 3 shards, at most 3 updates stale", "2 shares"),
        (
            "{name: backup, workers: 2}",
            f"{SERVED}, the first gradient of a step",
            "1 share of 64 samples, handed to whoever is free, 1 of 2 workers to spare",
        ),
    ],
)
def test_what_the_plan_says_of_training_is_the_strategy(strategy: str, training: str, batch: str) -> None:
    text = explained(f"strategy={strategy}")
    assert f"{training}; on CPU" in text
    assert f": {batch}" in text
    assert ("memory of server" in text) == ("a parameter server" in text)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("strategy={name: async, workers: 2}",), "8.0 MiB weights and state + 8.0 MiB copied for a snapshot + 16.0 "),
        (("strategy={name: async, workers: 2, compensate: 0.04}",), "for a snapshot + 32.0 MiB gradients and weights"),
        (("strategy={name: stale, workers: 2}",), "for a snapshot + 48.0 MiB gradients and weights under way"),
        (("strategy={name: backup, workers: 2}",), "for a snapshot + 20.0 MiB gradients and weights under way"),
        (
            ("strategy={name: async, workers: 1}", "train.optimizer={name: adamw, lr: 0.1}", "train.ema_decay=0.9"),
            "16.0 MiB weights, state and average + 16.0 MiB copied for a snapshot + 8.0 MiB",
        ),
        (
            ("strategy={name: async, workers: 1}", "train.optimizer={name: sgd, lr: 0.1, momentum: 0.0}"),
            "4.0 MiB weights and state",
        ),
    ],
)
def test_what_a_server_remembers_is_in_its_memory(overrides: tuple[str, ...], expected: str) -> None:
    """1 Mi weights of 4 bytes: of every vector of their size it is 4 MiB."""
    assert expected in explained(*overrides, model=ModelSize(2**20, 1000))


def explained(*overrides: str, model: ModelSize = MODEL) -> str:
    experiment, resources = load_experiment(DIGITS, overrides), Resources(2, 0)
    made = make_plan(experiment, resources, DataSize(1437, 360, Target("class", 10)), model)
    return explain_plan(experiment, made, model, resources, FORECAST)


@pytest.mark.parametrize(("actors", "shown"), [("[2,8]", "2 to 8 actors for training, 1 for"), ("3", "3 actors for")])
def test_the_actors_are_in_what_the_plan_says(actors: str, shown: str) -> None:
    resources = Resources(16, 1)
    experiment = load_experiment(DIGITS, [f"data.actors={actors}", "strategy.workers=1"])
    text = explain_plan(experiment, plan(actors, resources), MODEL, resources, FORECAST)
    assert f"pipeline         {shown}" in text
    assert "1.0 CPU and a thread each" in text


def test_tf32_is_of_gpus() -> None:
    experiment, size = load_experiment(DIGITS, ["precision=tf32"]), DataSize(1437, 360, Target("class", 10))
    with pytest.raises(InputError, match=r"precision: got tf32, must be fp32, bf16, .* on CPUs"):
        make_plan(experiment, Resources(2, 0), size, MODEL)
    assert make_plan(experiment, Resources(2, 2), size, MODEL).device == "cuda"
