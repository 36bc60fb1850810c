"""Formats of numbers by layer: which layer has which, what is rounded, and that chance is the run's own."""

import sys
from typing import Any

import pytest
import torch
from precision_samples import CPU, Trained, config, equal, images, network
from torch import Tensor, nn

from kernels.rounding import Grid
from kernels.shift_norm import ShiftBatchNorm2d
from orchestrator.config.experiment import AdamWConfig, SgdConfig
from orchestrator.errors import InputError
from orchestrator.training.formats import formats_of
from orchestrator.training.optim import AdamWInBf16, SgdInBf16
from orchestrator.training.precision import Precision

FIXED = {"fixed": {"integer_bits": 4, "fraction_bits": 8}}
NEAREST = {"fixed": {"integer_bits": 4, "fraction_bits": 8, "rounding": "nearest"}}


def is_on_grid(values: Tensor, fraction_bits: int = 8) -> bool:
    scaled = values.detach().double() * 2.0**fraction_bits
    grid = Grid(4, fraction_bits)
    return bool((scaled == scaled.round()).all()) and grid.lowest <= scaled.min() and scaled.max() <= grid.highest


def test_the_first_rule_that_matches_counts_and_only_layers_have_formats() -> None:
    rules = config({"default": "bf16", "0.1": "fp32", "0.*": FIXED})
    formats = formats_of(network(), rules)
    assert {name: str(chosen) for name, chosen in formats.items()} == {
        "0.0": "fixed <4, 8> stochastic",
        "0.1": "fp32",
        "1": "bf16",
    }


def test_a_rule_that_matches_nothing_is_said() -> None:
    with pytest.raises(
        ValueError, match=r"got '0.7', must match the name of a layer with weights. Did you mean '0\.\d'"
    ):
        formats_of(network(), config({"default": "bf16", "0.7": "fp32"}))
    with pytest.raises(ValueError, match=r"got 'defaul', must match .* Did you mean 'default'"):
        formats_of(network(), config({"defaul": "bf16"}))


@pytest.mark.parametrize(
    ("said", "dtypes"),
    [
        ("bf16", {"0.0": torch.bfloat16, "1": torch.bfloat16}),
        ({"default": "bf16", "1": "fp32"}, {"0.0": torch.bfloat16, "1": torch.float32}),
        ({"0.0": "bf16"}, {"0.0": torch.bfloat16, "1": torch.float32}),
        ({"default": "bf16", "0.*": FIXED}, {"0.0": torch.float32, "1": torch.bfloat16}),
        ({"default": "fp16", "0.*": "fp32"}, {"0.0": torch.float32, "1": torch.float16}),
    ],
)
def test_each_layer_computes_in_its_format(said: Any, dtypes: dict[str, torch.dtype]) -> None:
    trained, found = Trained(said), {}
    for name in dtypes:
        trained.model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.update({name: output.dtype})
        )
    trained.step(0)
    assert found == dtypes
    assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("said", [FIXED, NEAREST], ids=["stochastic", "nearest"])
def test_weights_outputs_and_gradients_are_on_the_grid(said: Any) -> None:
    trained = Trained(said)
    assert all(map(is_on_grid, trained.weights())), "from the start"
    seen: dict[str, Tensor] = {}

    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        seen["output"] = output.detach()

    trained.model[1].register_forward_hook(hook)
    for number in range(5):
        trained.step(number)
        assert is_on_grid(seen["output"])
        assert all(is_on_grid(parameter.grad) for parameter in trained.model.parameters() if parameter.grad is not None)
        assert all(map(is_on_grid, trained.weights()))
    assert not equal(trained.weights(), Trained(said).weights())


def test_gradients_are_rounded_on_their_way_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].weight.data = torch.eye(4)
    Precision(config(FIXED), CPU, model, 0)
    x = torch.randn(100, 4, requires_grad=True)
    model(x).backward(torch.randn(100, 4))
    assert x.grad is not None
    assert is_on_grid(x.grad)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_gradients_times_a_scale_are_on_the_grid_those_of_weights_without(rounding: str) -> None:
    """Each is 1e-5, 0.0026 of the grid's eps, and 0.66 of the eps of the grid over 256."""
    said = {"fixed": {**FIXED["fixed"], "rounding": rounding, "gradient_scale": 256}}
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].weight.data = torch.eye(4)
    precision = Precision(config(said), CPU, model, 0)
    x = torch.ones(1000, 4, requires_grad=True)
    model(x).backward(torch.full((1000, 4), 1e-5))
    assert x.grad is not None
    eps = 2.0**-16
    if rounding == "nearest":
        assert torch.equal(x.grad, torch.full((1000, 4), eps))
    else:
        assert set(x.grad.unique().tolist()) == {0.0, eps}
        assert x.grad.mean().item() == pytest.approx(1e-5, rel=0.1), "three standard errors of 4,000 are 0.035"
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.mean().item() == pytest.approx(1e-2, rel=0.6 if rounding == "nearest" else 0.1)
    precision.step(torch.optim.SGD(model.parameters(), lr=0.0), 0.0)
    assert is_on_grid(model[0].weight.grad)


def test_gradients_times_a_scale_saturate_where_the_grid_ends() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.eye(2)
    Precision(config({"fixed": {**FIXED["fixed"], "gradient_scale": 256}}), CPU, model, 0)
    x = torch.ones(1, 2, requires_grad=True)
    model(x).backward(torch.tensor([[1.0, -1.0]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[(8 - 2**-8) / 256, -8 / 256]]


def test_only_what_a_rule_names_is_rounded() -> None:
    said = {"0.0": {"fixed": {"integer_bits": 4, "fraction_bits": 8, "of": ["weights"]}}}
    trained = Trained(said).steps(range(2))
    convolution, norm, *_ = trained.model[0]
    assert is_on_grid(convolution.weight)
    assert not is_on_grid(convolution.weight.grad)
    assert not is_on_grid(norm.weight)
    assert not is_on_grid(convolution(images()))


def test_steps_too_small_for_the_grid_are_lost_to_nearest_and_made_by_chance() -> None:
    """Of a half of the grid's eps, 2^-9, each is below a tenth: 100 steps of a rate of 1e-3."""
    start = Trained(NEAREST).weights()
    nearest = Trained(NEAREST, lr=1e-3).steps(range(100)).weights()
    by_chance = Trained(FIXED, lr=1e-3).steps(range(100)).weights()
    assert equal(nearest, start)
    assert not equal(by_chance, start)


def test_chance_is_that_of_the_seed() -> None:
    runs = [Trained(FIXED, seed=seed).steps(range(4)).weights() for seed in (1, 1, 2)]
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


ADAMW = AdamWConfig(lr=0.01, weight_decay=0.1)
MOMENTUM = SgdConfig(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
IN_BF16 = {"default": "bf16", "optimizer": {"weights": "bf16"}}


@pytest.mark.parametrize(
    ("said", "optimizer"),
    [
        (FIXED, MOMENTUM),
        (IN_BF16, MOMENTUM),
        (IN_BF16, ADAMW),
        ({"default": "bf16", "optimizer": {"weights": "bf16", "state": "bf16"}}, ADAMW),
    ],
    ids=["fixed", "SGD in bf16", "AdamW in bf16", "AdamW and its state in bf16"],
)
def test_a_run_goes_on_bit_for_bit(said: Any, optimizer: Any) -> None:
    whole = Trained(said, optimizer=optimizer).steps(range(7))
    first = Trained(said, optimizer=optimizer).steps(range(3))
    second = Trained(said, optimizer=optimizer)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.precision.load(first.precision.state())
    second.steps(range(3, 7))
    assert equal(second.weights(), whole.weights())
    for ours, theirs in zip(second.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        for name in theirs:
            assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name]))
            assert ours[name].dtype == theirs[name].dtype


@pytest.mark.parametrize("optimizer", [SgdConfig(lr=0.05), MOMENTUM], ids=["SGD", "momentum"])
@pytest.mark.parametrize("state", ["fp32", "bf16"])
def test_weights_in_bf16_move_as_those_in_fp32_in_the_mean(optimizer: Any, state: str) -> None:
    """The mean over 30 seeds. A seed's roundings of 2^-8 of a weight, and of its state, add up over 8 steps."""
    said = {"default": "bf16", "optimizer": {"weights": "bf16", "state": state}}
    reference = Trained("bf16", optimizer=optimizer).steps(range(8)).weights()
    runs = [Trained(said, seed=seed, optimizer=optimizer).steps(range(8)).weights() for seed in range(30)]
    for number, exact in enumerate(reference):
        mean = torch.stack([run[number].float() for run in runs]).mean(0)
        bound = 5 * 8**0.5 * 2.0**-8 * max(0.5, float(exact.abs().max())) / 30**0.5
        assert (mean - exact).abs().max() < bound
    matrices = {parameter.ndim > 1: parameter.dtype for parameter in network().parameters()}
    assert matrices == {True: torch.float32, False: torch.float32}
    assert {run.dtype for run in runs[0] if run.ndim > 1} == {torch.bfloat16}
    assert {run.dtype for run in runs[0] if run.ndim == 1} == {torch.float32}


def test_small_steps_of_weights_in_bf16_are_lost_to_nearest_only() -> None:
    small = SgdConfig(lr=1e-4)
    start = Trained(IN_BF16).weights()
    nearest = {"default": "bf16", "optimizer": {"weights": "bf16", "rounding": "nearest"}}
    lost = Trained(nearest, optimizer=small).steps(range(20)).weights()
    kept = Trained(IN_BF16, optimizer=small).steps(range(20)).weights()
    changed = [
        sum(int((a != b).sum()) for a, b in zip(run, start, strict=True) if a.dtype == torch.bfloat16)
        for run in (lost, kept)
    ]
    assert changed[0] < changed[1] / 3


def test_optimizers_are_those_of_the_experiment() -> None:
    assert type(Trained(IN_BF16).optimizer) is SgdInBf16
    assert type(Trained(IN_BF16, optimizer=ADAMW).optimizer) is AdamWInBf16
    assert type(Trained("bf16").optimizer) is torch.optim.SGD


def test_evaluation_is_the_same_each_time() -> None:
    trained = Trained(FIXED)
    trained.model.eval()
    with torch.no_grad():
        first, second = trained.model(images()), trained.model(images())
    assert torch.equal(first, second)
    assert is_on_grid(first)


def test_binary_layers_have_clipped_weights_and_the_first_and_last_are_real() -> None:
    torch.manual_seed(0)
    middle = (nn.Linear(8, 8), nn.BatchNorm1d(8))
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), *middle, nn.Linear(8, 2))
    formats = formats_of(model, config("binary"))
    assert {name: str(chosen) for name, chosen in formats.items()} == {
        "0": "fp32", "1": "fp32", "2": "binary", "3": "fp32", "4": "fp32",
    }  # fmt: skip
    arithmetic = Precision(config("binary"), CPU, model, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    arithmetic.backward(model(torch.randn(16, 4)).square().mean())
    arithmetic.step(optimizer, 0.0)
    assert model[2].weight.abs().max() == 1
    assert model[0].weight.abs().max() > 1


def test_binary_by_a_rule_spares_nothing_and_refuses_groups() -> None:
    assert str(formats_of(network(), config({"*": "binary"}))["1"]) == "binary"
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="got binary for '0', which has groups=2, must be another"):
        formats_of(grouped, config({"0": "binary"}))


def test_shift_is_for_batch_norms_and_others_stay_fp32_by_default() -> None:
    formats = formats_of(network(), config({"default": "binary", "0.1": "shift"}))
    assert {name: str(chosen) for name, chosen in formats.items()} == {"0.0": "fp32", "0.1": "shift", "1": "fp32"}
    assert str(formats_of(network(), config("shift"))["0.1"]) == "shift"
    assert str(formats_of(network(), config("shift"))["0.0"]) == "fp32"
    with pytest.raises(ValueError, match=r"got shift for '1', a Linear, must be another: shift is for"):
        formats_of(network(), config({"1": "shift"}))


def test_norms_by_powers_of_two_are_those_of_the_model() -> None:
    trained = Trained({"*.1": "shift"}).steps(range(2))
    assert isinstance(trained.model[0][1], ShiftBatchNorm2d)
    assert not equal(trained.weights(), Trained("fp32").steps(range(2)).weights())


def in_fp8(model: nn.Module) -> Precision:
    return Precision(config("fp8"), CPU, model, 0)


def test_linear_layers_of_suitable_sizes_are_in_fp8_and_others_in_bf16() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Flatten(), nn.Linear(32, 48), nn.Linear(48, 10))
    formats = {name: str(chosen) for name, chosen in formats_of(model, config("fp8")).items()}
    assert formats == {"0": "bf16", "2": "fp8", "3": "bf16"}


def test_fp8_rounds_as_much_as_its_bits_do_and_keeps_parameters_and_hooks() -> None:
    """E4M3 has 3 bits behind the point, so that a number is off by 2^-4 at most, and a sum of 256 by less."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 64))
    weight, x, seen = model[0].weight, torch.randn(16, 256), []
    exact = model(x)
    model[0].register_forward_hook(lambda *_: seen.append(1))
    arithmetic = in_fp8(model)
    with arithmetic.autocast():
        outputs = model(x)
    error = float((outputs.float() - exact).detach().norm() / exact.detach().norm())
    assert 2**-7 < error < 2**-4
    arithmetic.backward(outputs.float().square().mean())
    assert seen == [1]
    assert model[0].weight is weight
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_a_network_learns_in_fp8() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    x, goal = torch.randn(64, 16), torch.randn(64, 16).sign()
    arithmetic, optimizer, losses = in_fp8(model), torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(60):
        optimizer.zero_grad()
        with arithmetic.autocast():
            outputs = model(x)
        loss = nn.functional.mse_loss(outputs.float(), goal)
        arithmetic.backward(loss)
        arithmetic.step(optimizer, 0.0)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_fp8_without_torchao_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(InputError, match=r"got fp8, must be .* without torchao. Install it: pip install torchao"):
        in_fp8(nn.Sequential(nn.Linear(16, 16)))
