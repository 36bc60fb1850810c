"""Weights transformed beforehand: the same results, until the weights change or training begins."""

import copy
import shutil

import pytest
import torch
from torch import nn

from kernels import winograd_native
from kernels.conv import Conv2d
from kernels.inference import prepare
from kernels.native import build

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="needs a C compiler")


def net(algorithm: str = "winograd") -> nn.Sequential:
    torch.manual_seed(0)
    reflected = Conv2d(40, 24, 3, padding=1, padding_mode="reflect", bias=False, algorithm=algorithm)
    return nn.Sequential(Conv2d(3, 40, 3, padding="same", algorithm=algorithm), nn.ReLU(), reflected).eval()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each weight that is transformed from now on."""
    made: list[int] = []
    original = winograd_native.transformed
    monkeypatch.setattr(
        winograd_native, "transformed", lambda library, weight: (made.append(1), original(library, weight))[1]
    )
    return made


@needs_compiler
@pytest.mark.parametrize("algorithm", ["winograd", "winograd_2", "winograd_6"])
@torch.no_grad()
def test_results_are_the_same_and_weights_are_transformed_once(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = net(algorithm), counted(monkeypatch)
    images = [torch.randn(2, 3, 20, 17), torch.randn(1, 3, 9, 9)]
    expected = [model(each) for each in images]
    prepare(model)
    for _ in range(2):
        assert all(torch.equal(model(each), result) for each, result in zip(images, expected, strict=True))
    assert len(made) == 2


@needs_compiler
@torch.no_grad()
def test_weights_that_changed_are_transformed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = prepare(net()), counted(monkeypatch)
    images = torch.randn(1, 3, 12, 12)
    before = model(images)
    model[0].weight.mul_(2)
    model[0].bias.mul_(2)
    torch.testing.assert_close(model(images), 2 * before)
    model.load_state_dict(net().state_dict())
    assert torch.equal(model(images), before)
    assert len(made) == 5


def test_training_gradients_and_copies_do_without() -> None:
    model = prepare(net())
    images = torch.randn(1, 3, 12, 12)
    model(images).sum().backward()
    assert all(each.grad is not None for each in model.parameters())
    assert copy.deepcopy(model)[0].prepared is None
    model.train()
    assert model[0].prepared is None


@torch.no_grad()
def test_what_does_not_fit_is_said_as_ever() -> None:
    model = prepare(net())
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.randn(1, 4, 12, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(1, 3, 12, 12)).dtype == torch.bfloat16
    assert prepare(net("vendor"))(torch.randn(3, 12, 12)).shape == (24, 12, 12)
