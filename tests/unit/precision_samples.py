"""A network, and its training in a precision."""

from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.config.experiment import SgdConfig
from orchestrator.config.precision import PrecisionConfig, gather_globs
from orchestrator.training.optim import build_optimizer
from orchestrator.training.precision import Precision

CPU = torch.device("cpu")


def config(said: Any) -> PrecisionConfig:
    return PrecisionConfig.model_validate(gather_globs(said))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    return nn.Sequential(body, nn.Linear(8 * 16, 5))


def images(number: int = 0) -> Tensor:
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(number))


class Trained:
    """A network after steps of SGD on noise, in a precision."""

    def __init__(self, said: Any, *, seed: int = 0, lr: float = 0.05, optimizer: Any = None) -> None:
        self.model = network()
        self.precision = Precision(config(said), CPU, self.model, seed)
        chosen = optimizer or SgdConfig(lr=lr)
        self.optimizer = build_optimizer(self.model, chosen, config(said).optimizer, seed)

    def step(self, number: int) -> None:
        self.optimizer.zero_grad()
        with self.precision.autocast():
            outputs = self.model(images(number))
        self.precision.backward(outputs.float().square().mean())
        self.precision.step(self.optimizer, 0.0)

    def steps(self, numbers: range) -> "Trained":
        for number in numbers:
            self.step(number)
        return self

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))
