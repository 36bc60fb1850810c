import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.errors import CheckpointError
from orchestrator.training.losses import cross_entropy
from orchestrator.training.regularize import WeightAverage
from pipelines.device import Targets

DECAY = 0.9


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def train_a_little(model: nn.Module) -> None:
    """Change the weights and the statistics."""
    model.train()
    model(torch.randn(8, 2, 4, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert tensor.dtype == second[name].dtype, name


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_is_the_smoothed_cross_entropy_summed_in_fp32(smoothing: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, labels = (5 * torch.randn(7, 4)).to(dtype), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    target = torch.full((7, 4), smoothing / 4, dtype=torch.float64)
    target[torch.arange(7), labels] += 1 - smoothing
    expected = -(target * logits.double().log_softmax(dim=1)).sum()
    loss = cross_entropy(logits, Targets(labels), smoothing)
    assert loss.dtype == torch.float32
    # 28 terms below 30 each, rounded to fp32.
    assert loss.item() == pytest.approx(expected.item(), abs=28 * 30 * 2.0**-24)


def test_the_loss_of_mixed_samples_is_that_of_mixed_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator)
    own, other = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 1, 0, 4, 2, 3])
    share = torch.rand(6, generator=generator)
    target = share[:, None] * F.one_hot(own, 5) + (1 - share[:, None]) * F.one_hot(other, 5)
    expected = F.cross_entropy(logits, target, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy(logits, Targets(own, other, share), 0.1), expected)


def test_losses_of_parts_add_up_to_the_loss_of_the_batch() -> None:
    logits, labels = (
        torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2] * 2),
    )
    targets = Targets(labels, labels.flip(0), torch.rand(len(labels), generator=torch.Generator().manual_seed(0)))
    parts = [cross_entropy(x, y, 0.1) for x, y in zip(logits.chunk(4), targets.chunk(4), strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum(), cross_entropy(logits, targets, 0.1))


def test_the_average_follows_its_formula_for_weights_and_statistics_and_copies_counters() -> None:
    model = net()
    average = WeightAverage(model, DECAY)
    expected = {name: tensor.double() for name, tensor in tensors(model).items()}
    for _ in range(5):
        train_a_little(model)
        average.update(model)
        for name, tensor in model.state_dict().items():
            kept = DECAY if tensor.is_floating_point() else 0.0
            expected[name] = kept * expected[name] + (1 - kept) * tensor.double()
    state = average.state()
    assert state.keys() == expected.keys()
    assert state["1.num_batches_tracked"] == 5
    for name, tensor in state.items():
        # Three roundings in each of 5 updates, of values below 8.
        torch.testing.assert_close(tensor.double(), expected[name], rtol=0.0, atol=5 * 3 * 8 * 2.0**-24)


def test_the_average_agrees_with_torch() -> None:
    model = net()
    average = WeightAverage(model, DECAY)
    theirs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(DECAY))
    theirs.update_parameters(model)  # the first call copies
    for _ in range(3):
        train_a_little(model)
        average.update(model)
        theirs.update_parameters(model)
    for name, parameter in theirs.module.named_parameters():
        torch.testing.assert_close(average.state()[name], parameter.detach())


def test_the_average_is_in_fp32_where_the_weights_are_not() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = WeightAverage(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(2.0)
    average.update(model)
    # bfloat16 has no number between 1 and 1.0078.
    assert average.state()["weight"].item() == pytest.approx(1.001, abs=2.0**-23)


def test_the_average_does_not_change_with_the_model() -> None:
    model = net()
    before = tensors(model)
    average = WeightAverage(model, DECAY)
    train_a_little(model)
    assert_same(average.state(), before)


def test_the_averages_stand_in_for_the_weights_and_these_come_back_bit_for_bit() -> None:
    model = net()
    average = WeightAverage(model, DECAY)
    train_a_little(model)
    average.update(model)
    with torch.no_grad():
        model[0].bias[0] = -0.0
        model[0].bias[1] = float("nan")
    before = {name: tensor.numpy().tobytes() for name, tensor in tensors(model).items()}
    parameters = list(model.parameters())
    with average.applied_to(model):
        assert_same(tensors(model), average.state())
        train_a_little(model)  # what happens to the stand-in is forgotten
    assert {name: tensor.numpy().tobytes() for name, tensor in tensors(model).items()} == before
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert all(p.requires_grad and p.is_leaf for p in parameters)


def test_the_weights_come_back_after_an_error() -> None:
    model = net()
    average = WeightAverage(net(seed=1), DECAY)
    before = tensors(model)
    with pytest.raises(KeyError, match="planted"), average.applied_to(model):
        raise KeyError("planted")
    assert_same(tensors(model), before)


def test_a_shared_weight_comes_back_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    average = WeightAverage(model, DECAY)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    before = tensors(model)
    with average.applied_to(model):
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert_same(tensors(model), before)


def test_gradients_reach_the_weights_after_an_evaluation() -> None:
    model = net()
    average = WeightAverage(model, DECAY)
    with average.applied_to(model), torch.inference_mode():
        model(torch.randn(2, 2, 4, 4))
    model(torch.randn(2, 2, 4, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_loaded_average_goes_on_as_the_saved_one() -> None:
    model = net()
    first = WeightAverage(model, DECAY)
    train_a_little(model)
    first.update(model)
    second = WeightAverage(net(seed=1), DECAY)
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    train_a_little(model)
    first.update(model)
    second.update(model)
    assert_same(second.state(), first.state())


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (nn.Linear(2, 2, bias=False), "of another shape: bias. Go on with the model"),
        (nn.Linear(2, 1), "of another shape: bias, weight. Go on with the model"),
        (nn.BatchNorm1d(2), "of another shape: num_batches_tracked, running_mean, running_var, weight. Go"),
    ],
    ids=["missing", "shape", "other"],
)
def test_an_average_of_another_network_is_refused(other: nn.Module, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        WeightAverage(nn.Linear(2, 2), DECAY).load(WeightAverage(other, DECAY).state())
