from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.experiment import AdaGradConfig, AdamWConfig, OptimizerConfig, SgdConfig
from orchestrator.strategies.flat import FlatModel, Floats
from orchestrator.training.optim import build_optimizer

CONFIGS = {
    "sgd": SgdConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.01),
    "adagrad": AdaGradConfig(name="adagrad", lr=0.1, weight_decay=0.01),
    "adamw": AdamWConfig(name="adamw", lr=0.01, weight_decay=0.01),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
all_configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
all_formats = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())
IMAGES = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small sums are not worth waking others for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(80, 2)
    return nn.Sequential(*layers).to(memory_format=memory_format)


def optimizer_of(model: nn.Module, config: OptimizerConfig = CONFIGS["sgd"]) -> torch.optim.Optimizer:
    return build_optimizer(model, config)


def backward(model: nn.Module) -> None:
    model.zero_grad()
    model(IMAGES).square().sum().backward()


def in_memory(tensor: Tensor) -> Floats:
    """The numbers of a dense tensor as they lie there."""
    return tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset()).numpy()


def strides(tensor: Tensor) -> list[int]:
    """Those that say something."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def decayed_first(model: nn.Module) -> list[nn.Parameter]:
    """Filters and matrices decay, norms and biases do not."""
    return sorted(model.parameters(), key=lambda parameter: parameter.ndim <= 1)


@all_formats
def test_parameters_become_views_of_the_weights_as_they_lie_in_memory(memory_format: torch.memory_format) -> None:
    model, before = network(memory_format), network(memory_format)
    flat = FlatModel(model, optimizer_of(model))
    assert torch.equal(model(IMAGES), before(IMAGES))
    for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
    assert np.array_equal(flat.weights(), np.concatenate([in_memory(each) for each in decayed_first(before)]))
    assert flat.size == sum(each.numel() for each in before.parameters())
    assert flat.num_decayed == sum(each.numel() for each in before.parameters() if each.ndim > 1)


def test_what_is_set_is_what_the_model_has_and_is_not_the_caller_s_memory() -> None:
    model, other = network(), network()
    flat = FlatModel(model, optimizer_of(model))
    weights = flat.weights()
    weights *= 2
    flat.set_weights(weights)
    weights *= 0
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 2
    assert torch.equal(model(IMAGES), other(IMAGES))
    assert flat.weights().any()


@all_formats
def test_gradients_are_in_the_order_of_the_weights_whatever_theirs_in_memory(
    memory_format: torch.memory_format,
) -> None:
    model = network(memory_format)
    flat = FlatModel(model, optimizer_of(model))
    backward(model)
    expected = []
    for parameter in flat.parameters:
        assert parameter.grad is not None
        parameter.grad = parameter.grad.contiguous()
        expected.append(parameter.grad)
    gradient = flat.gradient()
    with torch.no_grad():
        flat.set_weights(flat.weights() - np.float32(0.5) * gradient)
    moved = network(memory_format)
    with torch.no_grad():
        for parameter, each in zip(decayed_first(moved), expected, strict=True):
            parameter -= 0.5 * each
    for ours, theirs in zip(model.parameters(), moved.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_parameter_without_a_gradient_has_zeros() -> None:
    model = network()
    flat = FlatModel(model, optimizer_of(model))
    backward(model)
    whole = flat.gradient().copy()
    flat.parameters[0].grad = None
    first = flat.parameters[0].numel()
    assert whole[:first].any()
    assert np.array_equal(flat.gradient(), np.concatenate([np.zeros(first, np.float32), whole[first:]]))


@all_formats
@all_configs
def test_the_state_of_an_optimizer_comes_back_as_torch_has_it(
    config: OptimizerConfig, memory_format: torch.memory_format
) -> None:
    model, other = network(memory_format), network(memory_format)
    optimizers = [optimizer_of(each, config) for each in (model, other)]
    flats = [FlatModel(each, optimizer) for each, optimizer in zip((model, other), optimizers, strict=True)]
    for _ in range(3):
        backward(model)
        optimizers[0].step()
    state = flats[0].optimizer_state()
    assert all(isinstance(value, int) or value.shape == (flats[0].size,) for value in state.values())
    assert state.get("step", 3) == 3
    flats[1].set_optimizer_state(state)
    flats[1].set_weights(flats[0].weights())
    flats[1].set_buffers(flats[0].buffers())
    ours, theirs = (optimizer.state_dict()["state"] for optimizer in reversed(optimizers))
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        assert ours[key].keys() == values.keys()
        for name, value in values.items():
            assert torch.equal(ours[key][name], value), name
            assert strides(ours[key][name]) == strides(value), name
    for each, optimizer in zip((model, other), optimizers, strict=True):
        backward(each)
        optimizer.step()
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_before_the_first_step_an_optimizer_has_no_state(name: str) -> None:
    model = network()
    assert FlatModel(model, optimizer_of(model, CONFIGS[name])).optimizer_state() == {}


def test_sgd_without_momentum_never_has_a_state() -> None:
    model = network()
    optimizer = optimizer_of(model, SgdConfig(name="sgd", lr=0.1, momentum=0.0, nesterov=False))
    flat = FlatModel(model, optimizer)
    backward(model)
    optimizer.step()
    assert flat.optimizer_state() == {}


@all_formats
def test_tensors_by_name_are_a_vector_and_back(memory_format: torch.memory_format) -> None:
    model = network(memory_format)
    flat = FlatModel(model, optimizer_of(model))
    named = {name: parameter.detach() + 1 for name, parameter in model.named_parameters()}
    vector = flat.flat_of(named | {"1.running_mean": torch.ones(4)})
    assert np.array_equal(vector, flat.weights() + 1)
    back = flat.named(vector)
    assert back.keys() == named.keys()
    assert all(torch.equal(back[name], value) for name, value in named.items())


def test_batch_statistics_are_a_vector_and_back_and_counts_are_not_in_it() -> None:
    model, other = network(), network()
    flat, second = (FlatModel(each, optimizer_of(each)) for each in (model, other))
    model(IMAGES)
    buffers = flat.buffers()
    assert buffers is not None
    assert buffers.shape == (8,), "mean and variance"
    second.set_buffers(buffers)
    buffers *= 0
    assert torch.equal(other[1].running_mean, model[1].running_mean)
    assert torch.equal(other[1].running_var, model[1].running_var)
    assert int(other[1].num_batches_tracked) == 0
    second.set_buffers(None)
    assert torch.equal(other[1].running_var, model[1].running_var)


def test_a_model_without_batch_statistics_has_no_vector_of_them() -> None:
    model = nn.Linear(2, 2)
    assert FlatModel(model, optimizer_of(model)).buffers() is None
