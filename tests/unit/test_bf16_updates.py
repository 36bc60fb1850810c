"""Updates of weights in bf16: those of torch's optimizers in the mean, from the same bits in C and in torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import bf16_updates
from kernels.bf16_updates import AdamW, Sgd, adamw_, sgd_
from kernels.rounding import stream

TIMES = 4000  # copies of each weight, each with chances of its own
SGD = {
    "plain": Sgd(0.01),
    "decay": Sgd(0.01, weight_decay=0.1),
    "momentum": Sgd(0.01, 0.9, 0.1),
    "nesterov": Sgd(0.01, 0.9, 0.1, nesterov=True),
}


@pytest.fixture(params=["C", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(bf16_updates, "_library", lambda: None)
    elif bf16_updates._library() is None:
        pytest.skip("needs a C compiler")
    return str(request.param)


def start() -> Tensor:
    return torch.linspace(-2, 2, 24).bfloat16()


def grads_of(step: int) -> Tensor:
    return torch.randn(24, generator=torch.Generator().manual_seed(step)).bfloat16()


def by_torch(optimizer: Callable[[list[Tensor]], torch.optim.Optimizer], steps: int) -> Tensor:
    """The weights in fp32 after steps."""
    weights = start().float().requires_grad_()
    of_torch = optimizer([weights])
    for step in range(1, steps + 1):
        weights.grad = grads_of(step).float()
        of_torch.step()
    return weights.detach()


def assert_mean(weights: Tensor, exact: Tensor, steps: int) -> None:
    """Each step rounds weights below 4, by a variance of at most 2^-7 squared over 4, and of the buffers as much."""
    error = (weights.float().mean(0) - exact).abs().max().item()
    assert error < 5 * (2 * steps) ** 0.5 * 2.0**-7 / 2 / TIMES**0.5
    assert weights.dtype == torch.bfloat16


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", SGD)
def test_sgd_is_torchs_in_the_mean(name: str, state: torch.dtype) -> None:
    by, steps = SGD[name], 6
    weights = start().repeat(TIMES, 1)
    moment = torch.zeros(TIMES, 24, dtype=state) if by.momentum else None
    for step in range(1, steps + 1):
        sgd_(weights, grads_of(step).repeat(TIMES, 1), moment, by, seed=stream(3, step))
    options: dict[str, Any] = by._asdict()
    assert_mean(weights, by_torch(lambda p: torch.optim.SGD(p, **options), steps), steps)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_adamw_is_torchs_in_the_mean(state: torch.dtype) -> None:
    """With buffers in bf16 the step is not linear in what is rounded: its mean is off by the variance of v, 2^-16."""
    steps, weights = 6, start().repeat(TIMES, 1)
    first, second = torch.zeros(TIMES, 24, dtype=state), torch.zeros(TIMES, 24, dtype=state)
    for step in range(1, steps + 1):
        by = AdamW(0.01, step, weight_decay=0.1)
        adamw_(weights, grads_of(step).repeat(TIMES, 1), first, second, by, seed=stream(4, step))
    assert_mean(weights, by_torch(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), steps), steps)


def test_c_and_torch_round_by_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that fp32 rounds otherwise change a weight where they cross its random number: one in some thousand."""
    if bf16_updates._library() is None:
        pytest.skip("needs a C compiler")
    results = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr(bf16_updates, "_library", lambda: None)
        weights, moment = (
            torch.randn(200, 100, generator=torch.Generator().manual_seed(1)).bfloat16(),
            torch.zeros(200, 100),
        )
        grads = torch.randn(200, 100, generator=torch.Generator().manual_seed(2)).bfloat16()
        sgd_(weights, grads, moment, SGD["nesterov"], seed=7)
        adamw_(weights, grads, torch.zeros(200, 100), torch.zeros(200, 100), AdamW(0.01, 1), seed=8)
        results.append(weights)
    assert (results[0] != results[1]).float().mean() < 0.002
    assert (results[0].float() - results[1].float()).abs().max() < 2.0**-5


@pytest.mark.usefixtures("way")
def test_layouts_and_threads_change_nothing() -> None:
    weights = torch.randn(64, 32, 3, 3).bfloat16()
    grads = torch.randn(64, 32, 3, 3).bfloat16()
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            updated = weights.clone()
            sgd_(updated, grads, None, SGD["plain"], seed=5)
            results.append(updated)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
    nhwc = [each.clone(memory_format=torch.channels_last) for each in (weights, grads)]
    sgd_(*nhwc, None, SGD["plain"], seed=5)
    in_order = [each.permute(0, 2, 3, 1).contiguous() for each in (weights, grads)]
    sgd_(*in_order, None, SGD["plain"], seed=5)
    assert torch.equal(nhwc[0].permute(0, 2, 3, 1), in_order[0])
    mixed = weights.clone()
    sgd_(mixed, nhwc[1], None, SGD["plain"], seed=5)
    assert (mixed.float() - results[0].float()).abs().max() <= 2.0**-6


def test_to_nearest_small_steps_are_lost() -> None:
    weights, grads = torch.ones(100, dtype=torch.bfloat16), torch.full((100,), 0.1, dtype=torch.bfloat16)
    sgd_(weights, grads, None, Sgd(0.01), seed=None)
    assert (weights == 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: sgd_(w.float(), w, None, Sgd(0.1), seed=1), "weight: got torch.float32, must be torch.bfloat16"),
        (lambda w: sgd_(w, w.float(), None, Sgd(0.1), seed=1), "grad: got torch.float32, must be torch.bfloat16"),
        (lambda w: sgd_(w, w, None, Sgd(0.1, 0.9), seed=1), "moment: got None, must be a tensor"),
        (lambda w: sgd_(w, w, w.double(), Sgd(0.1, 0.9), seed=1), "the state: got torch.float64, must be"),
        (lambda w: adamw_(w, w, w.clone(), w.float(), AdamW(0.1, 1), seed=1), "must be .* all the same"),
        (lambda w: sgd_(w, w[:2], None, Sgd(0.1), seed=1), r"got \(2,\), must be \(3,\) as the weight"),
    ],
)
def test_what_cannot_be_is_said(call: Callable[[Tensor], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, dtype=torch.bfloat16))
