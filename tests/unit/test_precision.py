import json

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.precision import PrecisionConfig
from orchestrator.errors import CheckpointError
from orchestrator.training.precision import Precision

CPU = torch.device("cpu")
NAMES: list[str] = ["fp32", "bf16", "fp16"]
# The unit roundoff of what matrix products read; they add up in fp32.
ROUNDOFF = {"fp32": 2.0**-24, "bf16": 2.0**-9, "fp16": 2.0**-11}


def precision(name: str) -> Precision:
    return Precision(PrecisionConfig.model_validate({"default": name}), CPU, linear(), seed=0)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 4)


def inputs(num: int = 6) -> Tensor:
    return torch.randn(num, 8, generator=torch.Generator().manual_seed(1))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def loss_of(arithmetic: Precision, model: nn.Module, x: Tensor) -> Tensor:
    with arithmetic.autocast():
        y = model(x)
    return y.float().square().mean()


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_are_in_the_named_arithmetic_and_gradients_in_fp32(name: str, dtype: torch.dtype) -> None:
    arithmetic, model = precision(name), linear()
    with arithmetic.autocast():
        assert model(inputs()).dtype == dtype
    arithmetic.backward(loss_of(arithmetic, model, inputs()))
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_the_weights_as_fp32_does_up_to_rounding(name: str) -> None:
    expected, model = linear(), linear()
    loss_of(precision("fp32"), expected, inputs()).backward()
    sgd(expected, lr=1.0).step()
    arithmetic = precision(name)
    arithmetic.backward(loss_of(arithmetic, model, inputs()))
    assert arithmetic.step(sgd(model, lr=1.0), clip_grad_norm=0.0)
    # x, w and y are rounded on the way forward, dy, x and dw on the way back: six roundings of values near 1,
    # in sums of 8 (forward) and 6 (backward) terms below 3.
    assert (model.weight - expected.weight).abs().max() <= 6 * 8 * 3 * ROUNDOFF[name]
    assert not torch.equal(model.weight, linear().weight)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_step_add_up_to_the_whole(name: str) -> None:
    """All parts are scaled alike, so their gradients can be added before the scale is undone."""
    weights = []
    for num_parts in (1, 3):
        arithmetic, model = precision(name), linear()
        for part in inputs().chunk(num_parts):
            arithmetic.backward(loss_of(arithmetic, model, part) / num_parts)
        assert arithmetic.step(sgd(model, lr=1.0), clip_grad_norm=0.0)
        weights.append(model.weight.detach())
    # The gradient of each part is rounded for itself; its elements are below 1.
    torch.testing.assert_close(weights[0], weights[1], rtol=0.0, atol=3 * ROUNDOFF[name])


@pytest.mark.parametrize("name", NAMES)
def test_clipping_sees_unscaled_gradients_of_all_groups_together(name: str) -> None:
    arithmetic, model = precision(name), linear()
    before = [p.detach().clone() for p in model.parameters()]
    arithmetic.backward(loss_of(arithmetic, model, inputs()))
    optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}], lr=1.0)
    assert arithmetic.step(optimizer, clip_grad_norm=0.01)
    moved = torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
    # Weights below 1 are rounded after they moved.
    assert moved.norm().item() == pytest.approx(0.01, abs=36 * 2.0**-25)


def test_gradients_below_the_norm_are_not_clipped() -> None:
    moved = []
    for clip in (0.0, 1e6):
        arithmetic, model = precision("fp32"), linear()
        arithmetic.backward(loss_of(arithmetic, model, inputs()))
        arithmetic.step(sgd(model), clip_grad_norm=clip)
        moved.append(model.weight.detach())
    assert torch.equal(*moved)


def test_an_overflow_is_skipped_and_the_scale_recovers() -> None:
    arithmetic, model = precision("fp16"), linear()
    arithmetic.load({**arithmetic.state(), "growth_interval": 2})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scales, updated = [arithmetic.state()["scale"]], []
    for step in range(5):
        optimizer.zero_grad()
        before = model.weight.detach().clone()
        arithmetic.backward(loss_of(arithmetic, model, inputs()))
        if step == 1:
            assert model.bias.grad is not None
            model.bias.grad[0] = float("inf")
        updated.append(arithmetic.step(optimizer, clip_grad_norm=1.0))
        assert updated[-1] != torch.equal(model.weight, before)
        scales.append(arithmetic.state()["scale"])
        assert arithmetic.skipped_in_a_row == (step == 1)
    assert updated == [True, False, True, True, True]
    full = scales[0]
    assert scales == [full, full, full / 2, full / 2, full, full]
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_scale_keeps_small_gradients_that_half_precision_would_lose() -> None:
    x, target = torch.ones(1, 8), 1e-9  # the gradient of y in half precision is zero below 2^-25
    for name, expected in (("fp16", target), ("fp32", target)):
        arithmetic, model = precision(name), linear()
        with arithmetic.autocast():
            y = model(x)
        arithmetic.backward(y.float().sum() * target)
        arithmetic.step(sgd(model, lr=0.0), clip_grad_norm=0.0)
        assert model.weight.grad is not None
        assert model.weight.grad[0, 0].item() == pytest.approx(expected, rel=2e-3)


def test_only_fp16_skips() -> None:
    arithmetic, model = precision("bf16"), linear()
    arithmetic.backward(loss_of(arithmetic, model, inputs()) * float("inf"))
    assert arithmetic.step(sgd(model), clip_grad_norm=0.0)
    assert not model.weight.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_state_goes_through_json_and_back(name: str) -> None:
    arithmetic, model = precision(name), linear()
    for _ in range(3):
        arithmetic.backward(loss_of(arithmetic, model, inputs()))
        arithmetic.step(sgd(model), clip_grad_norm=0.0)
    state = json.loads(json.dumps(arithmetic.state()))
    other = precision(name)
    other.load(state)
    assert other.state() == arithmetic.state()
    assert bool(state) == (name == "fp16")


@pytest.mark.parametrize(
    ("written", "read", "match"),
    [
        ("fp16", "bf16", "precision.default: got bf16, but the checkpoint was written with fp16"),
        ("fp32", "fp16", "precision.default: got fp16, but the checkpoint was written without fp16"),
    ],
)
def test_a_state_of_another_precision_is_refused(written: str, read: str, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        precision(read).load(precision(written).state())
