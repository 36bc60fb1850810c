"""The optimizers of a parameter server: torch.optim's formulas on a flat float32 array, in place, without torch.

An update is bound by memory, so each goes through blocks of BLOCK elements, whose temporaries stay in the L2 cache.
All operations are elementwise and correctly rounded (IEEE 754: add, multiply, divide, square root; NumPy fuses none):
however a vector is cut into shards and blocks, no bit of the result changes.

Does not choose the rate, average or clip gradients. Dampening, lr_decay, amsgrad and sparse gradients are not there.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import CheckpointError

FloatArray = NDArray[np.float32]
OptimizerState = dict[str, FloatArray | int]

BLOCK = 2**15  # elements, 128 KiB; the six arrays of AdamW are then 768 KiB, of 1 to 2 MiB of L2 in today's servers


@dataclass(frozen=True)
class OptimizerRule:
    """Which optimizer. `momentum` and `nesterov` are for sgd, `betas` for adamw, `eps` for adagrad and adamw."""

    name: Literal["sgd", "adagrad", "adamw"]
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


class Optimizer(Protocol):
    """What a shard asks of its optimizer."""

    def step(self, weights: FloatArray, gradient: FloatArray, lr: float) -> None:
        """Change `weights` in place; `gradient`, of the same shape (size,), is only read."""

    def state(self) -> OptimizerState:
        """What it remembers, by torch's names: not copies, the next step changes them."""

    def load(self, state: OptimizerState) -> None:
        """Go on from a copy of what `state()` gave. Raises: CheckpointError if it is of another optimizer or size."""


def build(config: OptimizerRule, size: int, num_decayed: int) -> Optimizer:
    """Make the optimizer of `size` weights, the first `num_decayed` of which have weight decay.

    Raises: ValueError if num_decayed is not in 0..size.
    """
    if not 0 <= num_decayed <= size:
        raise ValueError(f"num_decayed: got {num_decayed}, must be 0 to {size}, the number of weights.")
    match config.name:
        case "sgd":
            return Sgd(config, size, num_decayed)
        case "adagrad":
            return AdaGrad(config, size, num_decayed)
        case "adamw":
            return AdamW(config, size, num_decayed)


def blocks(start: int, stop: int) -> list[slice]:
    """Cut [start, stop) into slices of BLOCK elements, the last of which may be shorter."""
    return [slice(at, min(at + BLOCK, stop)) for at in range(start, stop, BLOCK)]


class Sgd:
    """Stochastic gradient descent: g += decay * w; b = momentum * b + g; w -= lr * b, or lr * (g + momentum * b).

    The latter is `nesterov`. The buffer b begins with 0, so that after the first step it is the gradient.
    Source: Sutskever et al. 2013, in the form of torch.optim.SGD with dampening=0.
    """

    def __init__(self, config: OptimizerRule, size: int, num_decayed: int) -> None:
        self._config = config
        self._blocks = _with_decay(config.weight_decay, size, num_decayed)
        self._scratch = _scratch(size), _scratch(size)
        self._buffer = np.zeros(size, np.float32) if config.momentum else None

    def step(self, weights: FloatArray, gradient: FloatArray, lr: float) -> None:
        momentum = self._config.momentum
        for block, decay in self._blocks:
            w, g = weights[block], gradient[block]
            first, second = (scratch[: len(w)] for scratch in self._scratch)
            if decay:
                g = _decayed(w, g, decay, first)
            if self._buffer is not None:
                buffer = self._buffer[block]
                buffer *= momentum
                buffer += g
                g = (
                    np.add(g, np.multiply(buffer, momentum, out=second), out=second)
                    if self._config.nesterov
                    else buffer
                )
            w -= np.multiply(g, lr, out=second)

    def state(self) -> OptimizerState:
        return {} if self._buffer is None else {"momentum_buffer": self._buffer}

    def load(self, state: OptimizerState) -> None:
        _load({} if self._buffer is None else {"momentum_buffer": self._buffer}, state)


class AdaGrad:
    """AdaGrad, a rate for each weight: g += decay * w; s += g^2; w -= lr * g / (sqrt(s) + eps).

    What made DistBelief's asynchronous SGD robust (Dean et al. 2012, section 4.1).
    Source: Duchi et al. 2011, section 1.1 (diagonal), in the form of torch.optim.Adagrad with lr_decay=0.
    """

    def __init__(self, config: OptimizerRule, size: int, num_decayed: int) -> None:
        self._eps = config.eps
        self._blocks = _with_decay(config.weight_decay, size, num_decayed)
        self._scratch = _scratch(size), _scratch(size)
        self._sum = np.zeros(size, np.float32)
        self._step = 0  # torch counts too

    def step(self, weights: FloatArray, gradient: FloatArray, lr: float) -> None:
        self._step += 1
        for block, decay in self._blocks:
            w, g, total = weights[block], gradient[block], self._sum[block]
            first, second = (scratch[: len(w)] for scratch in self._scratch)
            if decay:
                g = _decayed(w, g, decay, first)
            total += np.multiply(g, g, out=second)
            np.sqrt(total, out=second)
            second += self._eps
            np.divide(g, second, out=second)
            second *= lr
            w -= second

    def state(self) -> OptimizerState:
        return {"sum": self._sum, "step": self._step}

    def load(self, state: OptimizerState) -> None:
        self._step = _load_with_step({"sum": self._sum}, state)


class AdamW:
    """AdamW: w *= 1 - lr * decay; then Adam's step of the gradient, whose moments know nothing of the decay.

    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101), Algorithm 2, in the form of torch.optim.AdamW.
    """

    def __init__(self, config: OptimizerRule, size: int, num_decayed: int) -> None:
        self._config = config
        self._blocks = _with_decay(config.weight_decay, size, num_decayed)
        self._scratch = _scratch(size), _scratch(size)
        self._mean, self._square = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self._step = 0

    def step(self, weights: FloatArray, gradient: FloatArray, lr: float) -> None:
        self._step += 1
        beta1, beta2 = self._config.betas
        rate = lr / (1.0 - beta1**self._step)
        root = math.sqrt(1.0 - beta2**self._step)
        for block, decay in self._blocks:
            w, g, mean, square = weights[block], gradient[block], self._mean[block], self._square[block]
            first, second = (scratch[: len(w)] for scratch in self._scratch)
            if decay:
                w *= 1.0 - lr * decay
            np.subtract(g, mean, out=first)
            first *= 1.0 - beta1
            mean += first
            np.multiply(g, 1.0 - beta2, out=first)
            first *= g
            square *= beta2
            square += first
            np.sqrt(square, out=first)
            first /= root
            first += self._config.eps
            np.multiply(mean, rate, out=second)
            second /= first
            w -= second

    def state(self) -> OptimizerState:
        return {"exp_avg": self._mean, "exp_avg_sq": self._square, "step": self._step}

    def load(self, state: OptimizerState) -> None:
        self._step = _load_with_step({"exp_avg": self._mean, "exp_avg_sq": self._square}, state)


def _with_decay(weight_decay: float, size: int, num_decayed: int) -> list[tuple[slice, float]]:
    """The blocks, each with its decay: none has weights of both kinds."""
    return [
        *((block, weight_decay) for block in blocks(0, num_decayed)),
        *((block, 0.0) for block in blocks(num_decayed, size)),
    ]


def _scratch(size: int) -> FloatArray:
    return np.empty(min(size, BLOCK), np.float32)


def _decayed(w: FloatArray, g: FloatArray, decay: float, out: FloatArray) -> FloatArray:
    np.multiply(w, decay, out=out)
    out += g
    return out


def _load(own: dict[str, FloatArray], state: OptimizerState) -> None:
    """Copy the arrays of `state` into our own of the same names, all or none."""
    needed = {name: array.shape for name, array in own.items()}
    saved = {name: np.shape(value) for name, value in state.items()}
    if saved != needed:
        raise CheckpointError(_foreign(needed, saved))
    for name, array in own.items():
        array[:] = state[name]


def _load_with_step(own: dict[str, FloatArray], state: OptimizerState) -> int:
    """As `_load`, and give the number of steps."""
    numbers = {name: value for name, value in state.items() if isinstance(value, int)}
    if numbers.keys() != {"step"}:
        raise CheckpointError(_foreign("step", sorted(numbers)))
    _load(own, {name: value for name, value in state.items() if name not in numbers})
    return numbers["step"]


def _foreign(needed: object, saved: object) -> str:
    return (
        f"train.optimizer: the snapshot's state is of another optimizer or partition: got {saved}, must be {needed}. "
        "Go on with the optimizer, model and number of shards that the run began with."
    )
