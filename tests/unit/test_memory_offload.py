"""The state of an optimizer on the host: the same bits, and no more of it at once on the device than a chunk's."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.experiment import AdaGradConfig, AdamWConfig, OptimizerConfig, SgdConfig
from orchestrator.config.load import load_experiment
from orchestrator.config.precision import WeightsConfig
from orchestrator.training import offload as offloading
from orchestrator.training.learner import Learner
from orchestrator.training.offload import offload
from orchestrator.training.optim import build_optimizer
from pipelines.targets import Target
from tests.conftest import DIGITS

OPTIMIZERS: dict[str, tuple[OptimizerConfig, WeightsConfig]] = {
    "sgd": (SgdConfig(lr=0.1, nesterov=True, weight_decay=0.01), WeightsConfig()),
    "without momentum": (SgdConfig(lr=0.1, momentum=0.0), WeightsConfig()),
    "adamw": (AdamWConfig(lr=0.01), WeightsConfig()),
    "adagrad": (AdaGradConfig(lr=0.01), WeightsConfig()),
    "sgd in bf16": (SgdConfig(lr=0.1, weight_decay=0.01), WeightsConfig(weights="bf16")),
    "adamw in bf16": (AdamWConfig(lr=0.01), WeightsConfig(weights="bf16", state="bf16")),
}
CHUNK = 4 * 300


def network(weights: WeightsConfig) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 8), nn.Linear(8, 2))
    for parameter in model.parameters():
        if weights.weights == "bf16" and parameter.ndim > 1:
            parameter.data = parameter.data.bfloat16()
    return model


def update(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    parameters = list(model.parameters())
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameters[step % 3].grad = None
        optimizer.step()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = optimizer.state_dict()["state"]
    flat = [value for number in sorted(state) for _, value in sorted(state[number].items()) if value is not None]
    return [*model.state_dict().values(), *flat]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_the_same_bits_and_go_on_from_a_commit(name: str) -> None:
    config, weights = OPTIMIZERS[name]
    kept, moved, resumed = (network(weights) for _ in range(3))
    of_kept, of_moved, of_resumed = (build_optimizer(each, config, weights, 7) for each in (kept, moved, resumed))
    offload(of_moved, CHUNK)
    offload(of_resumed, CHUNK)
    update(kept, of_kept, range(3))
    update(moved, of_moved, range(3))
    resumed.load_state_dict(moved.state_dict())
    of_resumed.load_state_dict(copy.deepcopy(of_moved.state_dict()))
    for model, optimizer in ((kept, of_kept), (moved, of_moved), (resumed, of_resumed)):
        update(model, optimizer, range(3, 6))
    expected = everything(kept, of_kept)
    assert all(map(torch.equal, expected, everything(moved, of_moved)))
    assert all(map(torch.equal, expected, everything(resumed, of_resumed)))
    assert [tensor.dtype for tensor in expected] == [tensor.dtype for tensor in everything(resumed, of_resumed)]


def test_the_device_holds_the_state_of_one_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies where between updates, and what an update is given, by the tensors that come and go."""
    model = network(WeightsConfig())
    optimizer = build_optimizer(model, AdamWConfig(lr=0.01), WeightsConfig())
    offload(optimizer, CHUNK)
    update(model, optimizer, range(1))
    on_host = {value.data_ptr() for state in optimizer.state.values() for value in state.values() if value.ndim}
    held: list[int] = []

    def watched(self: Any) -> None:
        weights = [weight for group in self.param_groups for weight in group["params"]]
        large = [value for weight in weights for value in self.state[weight].values() if value.ndim]
        assert not on_host & {value.data_ptr() for value in large}, "the update works on copies"
        elsewhere = [value for weight, state in self.state.items() for value in state.values() if value.ndim]
        assert len([value for value in elsewhere if value.data_ptr() not in on_host]) == len(large)
        held.append(sum(weight.nbytes for weight in weights))

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert sum(held) == sum(parameter.nbytes for parameter in model.parameters())
    assert max(held) <= CHUNK
    assert len(held) == 3
    there = {value.data_ptr() for state in optimizer.state.values() for value in state.values() if value.ndim}
    assert there == on_host


def test_on_cpus_it_is_accepted_and_changes_nothing() -> None:
    experiment = load_experiment(DIGITS, ["memory.offload=optimizer", "strategy.workers=0"])
    learner = Learner(experiment, network(WeightsConfig()), torch.device("cpu"), Target("class", 2))
    assert not isinstance(learner.optimizer, offloading._Offloaded)
