"""Batch norms by powers of two: exact powers, the formulas of the paper, gradients straight through, and statistics."""

import math

import pytest
import torch
from torch import nn

from kernels.shift_norm import ShiftBatchNorm1d, ShiftBatchNorm2d, power_of_two


def test_the_nearest_power_of_two_is_that_of_the_logarithm() -> None:
    of_all_sizes = torch.randn(10_000) * 10.0 ** torch.randint(-30, 30, (10_000,))
    x = torch.cat([of_all_sizes, torch.tensor([1.0, -2.0, 2.0**-126])])
    exact = x.double().sign() * 2.0 ** x.double().abs().log2().round()
    assert torch.equal(power_of_two(x).double(), exact)


def test_the_square_root_of_two_is_where_it_changes() -> None:
    below = torch.tensor(math.sqrt(2), dtype=torch.float32)
    assert float(below) < math.sqrt(2)
    above = torch.nextafter(below, torch.tensor(2.0))
    assert power_of_two(torch.stack([below, above, -below, -above])).tolist() == [1.0, 2.0, -1.0, -2.0]


def test_what_has_no_power_stays() -> None:
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 3e38])
    found = power_of_two(x)
    assert found[:4].tolist() == [0.0, 0.0, math.inf, -math.inf]
    assert found[4].isnan()
    assert found[5] == math.inf, "2^128"


def test_gradients_pass_as_they_are() -> None:
    x, grad = torch.randn(50, requires_grad=True), torch.randn(50)
    power_of_two(x).backward(grad)
    assert x.grad is not None
    assert torch.equal(x.grad, grad)


@pytest.mark.parametrize("size", [(64, 5), (16, 5, 7), (8, 5, 6, 7)], ids=str)
def test_it_is_algorithm_3_and_evaluates_by_the_averages(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = ShiftBatchNorm2d(5) if len(size) == 4 else ShiftBatchNorm1d(5)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(size) * 3 + 1
    over, along = [0, *range(2, len(size))], (1, -1, *[1] * (len(size) - 2))
    gamma, beta = (each.detach().double().view(along) for each in (norm.weight, norm.bias))

    def exact(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        inverse = power_of_two((1 / (variance + norm.eps).sqrt()).float()).double()
        return power_of_two(gamma.float()).double() * (x.double() - mean) * inverse + beta

    centred = x.double() - x.double().mean(over, keepdim=True)
    variance = (centred * power_of_two(centred.float()).double()).mean(over, keepdim=True)
    mean = x.double().mean(over, keepdim=True)
    torch.testing.assert_close(norm(x).double(), exact(x, mean, variance), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean.flatten().float())
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance.flatten().float(), rtol=1e-5, atol=1e-5)
    norm.eval()
    kept = [each.double().view(along) for each in (norm.running_mean, norm.running_var)]
    torch.testing.assert_close(norm(x).double(), exact(x, *kept), rtol=1e-5, atol=1e-5)


def test_variances_are_within_a_factor_of_the_root_of_two() -> None:
    x = torch.randn(4096, 7) * torch.tensor([0.01, 0.1, 0.5, 1, 3, 10, 100.0])
    norm = ShiftBatchNorm1d(7, momentum=1.0)
    norm(x)
    ratio = norm.running_var / x.var(0)
    assert ((ratio > 2**-0.5) & (ratio < 2**0.5)).all()


def test_a_mean_over_all_batches_is_kept_without_a_momentum() -> None:
    norm = ShiftBatchNorm1d(3, momentum=None)
    batches = torch.randn(4, 16, 3)
    for batch in batches:
        norm(batch)
    torch.testing.assert_close(norm.running_mean, batches.mean((0, 1)))


def test_a_network_learns_with_it() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), ShiftBatchNorm1d(32), nn.Hardtanh(), nn.Linear(32, 2))
    x = torch.randn(256, 8)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_what_has_no_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input: got 1 dimensions, must be \(N, C, \.\.\.\)"):
        ShiftBatchNorm1d(4)(torch.randn(4))
