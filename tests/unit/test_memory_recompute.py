"""Activation checkpointing: the same gradients, buffers and names, bit for bit, from less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.load import load_experiment
from orchestrator.training.learner import Learner
from orchestrator.training.recompute import modules_of
from pipelines.targets import Target
from tests.conftest import DIGITS

CPU = torch.device("cpu")
FIXED = "precision={fixed: {integer_bits: 6, fraction_bits: 8}}"
CASES: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "accumulated": ("train.accumulate=3",),
    "bf16": ("precision=bf16",),
    "fixed": (FIXED,),
    "fixed, accumulated": (FIXED, "train.accumulate=2"),
    "dynamic fixed": ("precision={dynamic_fixed: {bits: 10, every: 2}}",),
    "binary": ("precision=binary",),
    "by layer": ("precision={default: bf16, '2.*': fp32, '1.0.*': {fixed: {integer_bits: 4, fraction_bits: 10}}}",),
    "channels last": ("train.channels_last=true",),
    "other kernels": ("kernels={default: im2col}",),
}


class Block(nn.Module):
    """A residual block with all that a second pass could do differently."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.average = nn.BatchNorm2d(channels, momentum=None)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return torch.relu(x + scale * self.average(self.dropout(torch.relu_(self.norm(self.conv(x))))))


def network() -> nn.Module:
    torch.manual_seed(0)
    stem, head = nn.Conv2d(1, 6, 3, padding=1), nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 10))
    return nn.Sequential(stem, nn.Sequential(Block(6), Block(6)), Block(6), head)


def learner(*overrides: str, model: nn.Module | None = None) -> Learner:
    return Learner(load_experiment(DIGITS, overrides), model or network(), CPU, Target("class", 10))


def train(learner: Learner, steps: int = 3) -> dict[str, Any]:
    """What steps leave: gradients, weights, buffers, and what chance hangs on."""
    found: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(1)
    learner.model.train()
    for step in range(steps):
        torch.manual_seed(step)
        images = torch.randn(12, 1, 8, 8, generator=generator)
        for part in images.chunk(3):
            with learner.precision.autocast():
                outputs = learner.model(part)
            learner.precision.backward(outputs.float().square().mean())
        found |= {f"{step}.grad.{name}": p.grad.clone() for name, p in learner.model.named_parameters()}
        learner.precision.step(learner.optimizer, 0.0)
        learner.optimizer.zero_grad()
    found |= {f"state.{name}": value for name, value in learner.model.state_dict().items()}
    points = learner.precision.state().get("points", {})
    found |= {f"points.{name}": torch.tensor(value) for name, value in points.items()}
    return found | {"random": torch.get_rng_state()}


@pytest.mark.parametrize("globs", ["1.*", "*", "['1.0', '2', '3.*']"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_weights_and_buffers_are_those_of_a_run_that_keeps_all(case: str, globs: str) -> None:
    kept = train(learner(*CASES[case]))
    recomputed = train(learner(*CASES[case], f"memory.checkpoint={globs}"))
    assert kept.keys() == recomputed.keys()
    assert [name for name in kept if not torch.equal(kept[name], recomputed[name])] == []
    assert kept["state.1.0.norm.num_batches_tracked"] == 9


def saved_bytes(learner: Learner) -> int:
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    learner.model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = learner.model(torch.randn(16, 1, 8, 8))
    total = sum(found.values())
    assert outputs.requires_grad
    return total


def test_less_is_kept_for_the_backward_pass() -> None:
    assert saved_bytes(learner("memory.checkpoint=['1.*', '2']")) < 0.45 * saved_bytes(learner())


def test_the_second_pass_takes_place_and_only_in_training() -> None:
    passes = []
    one = learner("memory.checkpoint='2'")
    one.model.get_submodule("2.conv").register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    one.model.train()
    one.model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert len(passes) == 2
    one.model.eval()
    with torch.inference_mode():
        one.model(torch.randn(2, 1, 8, 8))
    assert len(passes) == 3


def test_globs_name_the_outermost_modules_that_are_called() -> None:
    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))]), Block(2))
    assert modules_of(model, ["0"]) == ()
    assert modules_of(model, ["*"]) == ("0.0", "0.1", "1")
    assert modules_of(model, ["1.*"]) == ("1.conv", "1.norm", "1.average", "1.dropout")
    assert modules_of(model, ["1.n*", "0.1.0"]) == ("0.1.0", "1.norm")


def test_a_glob_that_matches_nothing_is_said() -> None:
    with pytest.raises(ValueError, match=r"got 'layr', must match the name of a module\. Did you mean 'layer'\?"):
        modules_of(nn.ModuleDict({"layer": nn.Linear(2, 2)}), ["layr"])


def test_names_and_state_stay_and_classes_are_still_what_they_were() -> None:
    plain, one = learner(), learner("memory.checkpoint='*'")
    assert list(one.model.state_dict()) == list(plain.model.state_dict())
    assert [name for name, _ in one.model.named_parameters()] == [name for name, _ in plain.model.named_parameters()]
    one.model.load_state_dict(plain.model.state_dict())
    assert isinstance(one.model.get_submodule("2"), Block)
    assert len(one.optimizer.param_groups) == len(plain.optimizer.param_groups) == 2
