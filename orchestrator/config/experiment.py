"""What an experiment is: the whole file as frozen, strict models.

Each package owns its own config type; this file composes them. Fields that an experiment may leave out have
their default here and nowhere else. A field's `title`, where it has one, is what a mistake says is allowed.
"""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, Strict, model_validator

from orchestrator.config.memory import MemoryConfig
from orchestrator.config.precision import Precision, PrecisionConfig
from orchestrator.config.section import Section
from orchestrator.config.strategy import (
    AsyncConfig,
    BackupConfig,
    FaultsConfig,
    StaleConfig,
    StrategyConfig,
    SyncConfig,
)
from pipelines.config import PipelineConfig


class RunConfig(Section):
    """Which run this is.

    `name`: of the run; letters, digits, dot, dash, underscore.
    `folder`: where it keeps everything: a local path or a pyarrow.fs URI (s3://, gs://, file://);
        `auto` is runs/NAME. With several nodes it must be a place that all of them see.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        title="text of at most 100 letters, digits, dots, dashes and underscores, a letter or digit first",
    )
    folder: str = "auto"

    @property
    def path(self) -> str:
        return str(PurePosixPath("runs") / self.name) if self.folder == "auto" else self.folder


RewriteName = Literal["none", "stack3x3", "factorize", "bottleneck", "depthwise_separable"]


class RewriteConfig(Section):
    """Other stacks of convolutions with the same receptive field, for less (kernels/rewrite.py).

    `where`: which convolutions, as a glob over the names that `convoy arch` shows; those that the rewrite does not
        take stay as they are.
    """

    name: RewriteName = "none"
    where: str = "*"


class ModelConfig(Section):
    """Which network: `name` from torchvision (resnet18, ...) or one of ours (small_resnet, resnet20, ...).

    `options`: keyword arguments of its builder. The number of classes and the channels come from the data.
    `rewrite`: what is done to its convolutions.
    """

    name: str
    options: dict[str, JsonValue] = {}  # noqa: RUF012  # pydantic copies it
    rewrite: RewriteConfig = RewriteConfig()


Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class SgdConfig(Section):
    """Stochastic gradient descent. `weight_decay` is not applied to norms and biases."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0.0)

    @model_validator(mode="after")
    def _check(self) -> "SgdConfig":
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov: got true with momentum: 0. Nesterov needs a momentum > 0, such as 0.9.")
        return self


class AdamWConfig(Section):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101). No decay on norms and biases."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0.0)
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0.0)
    weight_decay: float = Field(default=0.01, ge=0.0)


class AdaGradConfig(Section):
    """AdaGrad (Duchi et al. 2011), as DistBelief's server has it. `weight_decay` is not applied to norms and biases."""

    name: Literal["adagrad"] = "adagrad"
    lr: float = Field(gt=0.0)
    eps: float = Field(default=1e-10, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)


class _ByLargest(Section):
    """`weight_decay` is added to gradients, and not applied to norms and biases."""

    lr: float = Field(gt=0.0)
    eps: float = Field(default=1e-8, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)


class AdamaxConfig(_ByLargest):
    """AdaMax: Adam by the largest gradient of late (Kingma & Ba 2014, arXiv:1412.6980, Algorithm 2)."""

    name: Literal["adamax"] = "adamax"
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = (0.9, 0.999)


class ShiftAdamaxConfig(_ByLargest):
    """AdaMax whose factors are powers of two (Courbariaux et al. 2016, arXiv:1602.02830, Algorithm 4).

    `betas`: 1 - 2^-3 and 1 - 2^-10, the paper's, so that both averages are shifts too.
    """

    name: Literal["shift_adamax"] = "shift_adamax"
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = (1 - 2**-3, 1 - 2**-10)


OptimizerConfig = Annotated[
    SgdConfig | AdamWConfig | AdaGradConfig | AdamaxConfig | ShiftAdamaxConfig, Field(discriminator="name")
]


class CosineConfig(Section):
    """Linear warm-up over `warmup_epochs`, then half a cosine from the optimizer's rate to `final` of it."""

    name: Literal["cosine"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    final: float = Field(default=0.0, ge=0.0, le=1.0)


class StepsConfig(Section):
    """Linear warm-up over `warmup_epochs`, then the rate times `factor` at the start of each of `epochs`."""

    name: Literal["steps"] = "steps"
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    epochs: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Strict(False)]
    factor: float = Field(default=0.1, gt=0.0, lt=1.0)


class ConstantConfig(Section):
    """Linear warm-up over `warmup_epochs`, then the optimizer's rate."""

    name: Literal["constant"] = "constant"
    warmup_epochs: float = Field(default=0.0, ge=0.0)


ScheduleConfig = Annotated[CosineConfig | StepsConfig | ConstantConfig, Field(discriminator="name")]


LossName = Literal["auto", "cross_entropy", "binary_cross_entropy", "mean_squared_error", "smooth_l1"]


class TrainConfig(Section):
    """How to train.

    `epochs`: passes over the training samples.
    `global_batch`: samples all workers together consume in a step; it stays the same whatever their number.
    `accumulate`: parts that a worker's share of a step is computed in, to save memory; the numbers stay the
        same but for models with batch statistics.
    `loss`: `auto` is what the labels call for: cross_entropy for one class a sample, binary_cross_entropy for several,
        mean_squared_error for values, for which there is smooth_l1 too.
    `label_smoothing`: Szegedy et al. 2016 (arXiv:1512.00567), section 7; only for one class a sample.
    `clip_grad_norm`: the largest 2-norm of all gradients together; 0 is off.
    `ema_decay`: an average of the weights, w_avg <- decay * w_avg + (1 - decay) * w after each step, is
        evaluated and kept beside the weights; 0 is off.
    `channels_last`: keep images and filters in NHWC memory order.
    `compile`: torch.compile the model.
    """

    epochs: int = Field(ge=1)
    global_batch: int = Field(ge=1)
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = CosineConfig()
    accumulate: int = Field(default=1, ge=1)
    loss: LossName = "auto"
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    clip_grad_norm: float = Field(default=0.0, ge=0.0)
    ema_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    channels_last: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.schedule.warmup_epochs > self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs: got {self.schedule.warmup_epochs:g}, must be <= "
                f"train.epochs={self.epochs}. Warm up for fewer epochs or train for more."
            )
        return self


def _kernels_shorthand(value: Any) -> Any:
    return {"default": value} if isinstance(value, str) else value


Kernels = Annotated[dict[str, str], BeforeValidator(_kernels_shorthand, json_schema_input_type=str | dict[str, str])]


class CheckpointConfig(Section):
    """When to commit the state of a run, and what to keep.

    `every_steps`: optimizer steps between commits inside an epoch; 0 commits only at the end of each epoch,
        where a run always commits.
    `keep`: the newest commits to keep, beside the best in validation (docs/data.md says by which figure).
    """

    every_steps: int = Field(default=0, ge=0)
    keep: int = Field(default=2, ge=1)


class FailureConfig(Section):
    """How often a run may start again, a budget for each cause.

    `workers`: a worker died or raised. `servers`: a part of the parameter server died. `setup`: the process group or
    the worker group could not be set up. Preempted nodes cost nothing.
    """

    workers: int = Field(default=3, ge=0)
    servers: int = Field(default=3, ge=0)
    setup: int = Field(default=3, ge=0)


class TraceConfig(Section):
    """What to write down for checking.

    `samples`: one row a sample in trace.parquet: epoch, step, rank, position, sample_id, pixels_crc32.
    """

    samples: bool = False


class Experiment(Section):
    """One experiment file.

    `kernels`: the algorithm of the convolutions (docs/kernels.md): a name, `auto` for what `convoy tune` measured as
        fastest (else a default, else the vendor's), or names by glob of layers, such as {default: vendor, "layer3.*":
        winograd}. A default holds where the algorithm takes the layer; a layer that a glob names must be one.
    """

    run: RunConfig
    seed: int = Field(default=0, ge=0, lt=2**63)
    data: PipelineConfig
    model: ModelConfig
    train: TrainConfig
    precision: Precision = PrecisionConfig()
    memory: MemoryConfig = MemoryConfig()
    kernels: Kernels = {"default": "vendor"}  # noqa: RUF012  # pydantic copies it
    strategy: StrategyConfig = SyncConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    failure: FailureConfig = FailureConfig()
    trace: TraceConfig = TraceConfig()
    faults: FaultsConfig = FaultsConfig()

    @model_validator(mode="after")
    def _check(self) -> "Experiment":
        strategy, optimizer = self.strategy, self.train.optimizer
        if isinstance(strategy, AsyncConfig) and strategy.compensate and optimizer.name != "sgd":
            raise ValueError(
                f"strategy.compensate: got {strategy.compensate:g} with train.optimizer.name={optimizer.name}, must be "
                "0 with all but sgd, whose step the term belongs to. Set it to 0, or train with sgd."
            )
        served = isinstance(strategy, BackupConfig | StaleConfig | AsyncConfig)
        if strategy.name != "sync" and not self.precision.suits_any_strategy:
            raise ValueError(
                f"precision: got weights in few bits, dynamic_fixed or a guard with strategy.name={strategy.name}, "
                "must be fp32, or bf16 with weights in fp32, in which that strategy adds them up. Take sync."
            )
        if served and isinstance(optimizer, AdamaxConfig | ShiftAdamaxConfig):
            raise ValueError(
                f"train.optimizer.name: got {optimizer.name} with strategy.name={strategy.name}, must be sgd, adagrad "
                "or adamw, which a parameter server has. Take one of them, or sync."
            )
        if optimizer.name not in ("sgd", "adamw") and self.precision.optimizer.weights == "bf16":
            raise ValueError(
                f"precision.optimizer.weights: got bf16 with {optimizer.name}, must be fp32. Take sgd or adamw."
            )
        if self.train.compile and not self.precision.is_traced:
            raise ValueError(
                "train.compile: got true with a precision of fixed, dynamic_fixed, binary or shift, or a guard, must "
                "be false: they are not traced."
            )
        if self.train.compile and self.memory.checkpoint:
            raise ValueError(
                "train.compile: got true with memory.checkpoint, must be false: what is computed again is not traced."
            )
        if strategy.name != "sync" and self.memory.offload != "none":
            raise ValueError(
                f"memory.offload: got {self.memory.offload} with strategy.name={strategy.name}, must be none, because "
                "that strategy sends the state of the optimizer itself. Leave it out, or take sync."
            )
        for number, kill in enumerate(self.faults.kill):
            if kill.shard is not None and not served:
                raise ValueError(
                    f"faults.kill.{number}.shard: got {kill.shard} with strategy.name={strategy.name}, which has no "
                    "parameter server. Kill a rank, or choose backup, stale or async."
                )
        for kind in ("slow", "kill"):
            for number, fault in enumerate(getattr(self.faults, kind)):
                if fault.rank is not None and fault.rank >= max(strategy.max_workers, 1):
                    raise ValueError(
                        f"faults.{kind}.{number}.rank: got {fault.rank}, must be less than "
                        f"strategy.workers={strategy.max_workers}. Ranks count from 0."
                    )
        return self
