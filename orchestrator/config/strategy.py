"""How the workers of a run agree on one model: the section `strategy`, and the section `faults` that disturbs them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Strict, Tag, field_validator, model_validator

from orchestrator.config.section import Section

IMPLIED = "sync"
"""The strategy of a section that names none."""

# A number, or [min, max]. The tags keep pydantic from reporting a mistake once for each member of the union.
Workers = Annotated[
    Annotated[int, Field(ge=0), Tag("number")]
    | Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
        Strict(False),
        Field(title="[min, max]"),
        Tag("range"),
    ],
    Discriminator(lambda value: "range" if isinstance(value, list | tuple) else "number"),
]


class _LockStepConfig(Section):
    workers: Workers = 1

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"got {list(value)}, the first must be <= the second: [min, max].")
        return value

    @property
    def max_workers(self) -> int:
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def min_workers(self) -> int:
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def num_shares(self) -> int:
        """Into how many shares a global batch is cut."""
        return max(self.max_workers, 1)


class SyncConfig(_LockStepConfig):
    """Synchronous data parallelism: every step is the step of the whole global batch.

    `workers`: processes to train in, one a GPU where there are GPUs. 0 trains in the calling process, without
        Ray. [min, max] lets the run shrink and grow with the cluster between checkpoints.
    """

    name: Literal["sync"] = "sync"


class OuterConfig(Section):
    """The step that is taken with the mean of the workers' weights: Nesterov's, on what has changed since the last.

    `lr`, `momentum`: 1 and 0 take the mean as it is; DiLoCo (Douillard et al. 2023, arXiv:2311.08105) has 0.7 and 0.9.
    """

    lr: float = Field(default=1.0, gt=0.0)
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)


class LocalConfig(_LockStepConfig):
    """Local SGD: workers take steps by themselves, and their weights are averaged now and then.

    `workers`: as with sync.
    `every`: steps between two averages.
    `from_epoch`: before it, every step is averaged (post-local SGD).
    `outer`: the step that is taken with the average.
    """

    name: Literal["local"] = "local"
    every: int = Field(default=16, ge=1)
    from_epoch: int = Field(default=0, ge=0)
    outer: OuterConfig = OuterConfig()


WireName = Literal["fp32", "fp16", "bf16", "top_k"]


class _ServedConfig(Section):
    workers: int = Field(default=1, ge=0)
    shards: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"
    transport: Literal["auto", "object_store", "shared_memory"] = "auto"
    wire: WireName = "fp32"
    top_k: float = Field(default=0.01, gt=0.0, le=1.0)
    snapshot_every: int = Field(default=100, ge=1)
    hang_s: float = Field(default=120.0, gt=0.0)

    @property
    def max_workers(self) -> int:
        return self.workers

    @property
    def min_workers(self) -> int:
        return self.workers

    @property
    def num_shares(self) -> int:
        """Into how many shares a global batch is cut."""
        return max(self.workers, 1)


class BackupConfig(_ServedConfig):
    """Synchronous steps of the gradients that come first; what comes later is dropped, and its samples given out again.

    `workers`: processes to train in; 0 trains in the calling process, without Ray.
    `backup`: of them, how many a step does not wait for.
    `shards`, `transport`, `wire`, `top_k`, `snapshot_every`, `hang_s`: as with async.
    """

    name: Literal["backup"] = "backup"
    backup: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "BackupConfig":
        if self.backup >= max(self.workers, 1):
            raise ValueError(
                f"backup: got {self.backup}, must be less than strategy.workers={self.workers}: a step waits for the "
                "others. Set backup to a few of many workers, such as 2 of 10."
            )
        return self

    @property
    def num_shares(self) -> int:
        """Into how many shares a global batch is cut: as many as a step waits for."""
        return max(self.workers, 1) - self.backup


class StaleConfig(_ServedConfig):
    """Bounded staleness: nobody runs more than `staleness` steps ahead of the slowest.

    `workers`: processes to train in; 0 trains in the calling process, without Ray.
    `staleness`: 0 is sync.
    `shards`, `transport`, `wire`, `top_k`, `snapshot_every`, `hang_s`: as with async.
    """

    name: Literal["stale"] = "stale"
    staleness: int = Field(default=3, ge=0)


class AsyncConfig(_ServedConfig):
    """Asynchronous: a parameter server updates with every gradient as it comes, nobody waits for anybody.

    `workers`: processes to train in; 0 trains in the calling process, without Ray.
    `compensate`: the weight of DC-ASGD's term that makes up for stale gradients (Zheng et al. 2017); 0 is off.
    `scale_lr`: divide the rate of an update by 1 + its staleness.
    `overlap`: begin the next step while a gradient is under way, on weights that are one update older.
    `shards`: parts of the server, each an actor; auto is one for each 100 MiB of weights.
    `transport`: how gradients get there; auto is memory that both share on the server's node, else the object store.
    `wire`: as which numbers: fp32, fp16, bf16, or top_k: the largest entries of a gradient, the others are added to
        the next one.
    `top_k`: which part of all entries that is.
    `snapshot_every`: updates between two snapshots, from which the server goes on if it is killed.
    `hang_s`: a worker of which nothing is heard for so many seconds is reported, and its samples are given to others.
    """

    name: Literal["async"] = "async"
    compensate: float = Field(default=0.0, ge=0.0)
    scale_lr: bool = True
    overlap: bool = True


ServedConfig = BackupConfig | StaleConfig | AsyncConfig


def _implied(value: Any) -> Any:
    return {"name": IMPLIED} | value if isinstance(value, dict) else value


StrategyConfig = Annotated[
    Annotated[
        SyncConfig | BackupConfig | StaleConfig | AsyncConfig | LocalConfig,
        Field(discriminator="name"),
    ],
    BeforeValidator(_implied),
]


class SlowConfig(Section):
    """Make a worker wait in its steps, as a slower device would: a wait that uses no CPU.

    `rank`: which worker. `extra_ms`: how long. `chance`: in which part of its steps, at random.
    """

    rank: int = Field(ge=0)
    extra_ms: float = Field(ge=0.0)
    chance: float = Field(default=1.0, gt=0.0, le=1.0)


class KillConfig(Section):
    """End a process by SIGKILL, once in a run.

    `rank`: a worker, before it takes its first share of that step. `shard`: a part of the parameter server instead,
        when that step has been taken. `step`: counted from 1.
    """

    rank: int | None = Field(default=None, ge=0)
    shard: int | None = Field(default=None, ge=0)
    step: int = Field(ge=1)

    @model_validator(mode="after")
    def _check(self) -> "KillConfig":
        if (self.rank is None) == (self.shard is None):
            raise ValueError("got both or neither of rank and shard, must be one of them. Say what to kill.")
        return self


class FaultsConfig(Section):
    """What goes wrong on purpose, for tests and benchmarks. One entry, or a list of them.

    `slow`: workers that wait. `kill`: processes that are killed.
    """

    slow: Annotated[tuple[SlowConfig, ...], Strict(False)] = ()
    kill: Annotated[tuple[KillConfig, ...], Strict(False)] = ()

    @field_validator("slow", "kill", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value
