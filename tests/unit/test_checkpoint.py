from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_samples import check_same, never, snapshot, steps_in
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import mnasnet0_5

from orchestrator.errors import CheckpointError
from orchestrator.training.checkpoint import Snapshot, from_files, to_files
from orchestrator.training.checkpoint_store import CheckpointStore

NUMBERS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


def through_files(whole: Snapshot) -> Snapshot:
    return from_files("here", whole.step, dict(to_files(whole)))


def test_tensors_come_back_bit_for_bit() -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800001, -1, -(2**31), 1, 0x007FFFFF, 0x7F800000], dtype=torch.int32)
    tensors = {
        "nan payloads, -0.0, subnormals": bits.view(torch.float32),
        "bf16": bits.view(torch.bfloat16),
        "f16": bits.view(torch.float16),
        "i64": torch.tensor([2**63 - 1, -(2**63)]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "empty channels_last": torch.zeros(0, 3, 2, 2).to(memory_format=torch.channels_last),
        "slice": torch.arange(10.0)[2:8:2],
        "expanded": torch.ones(1, 1).expand(3, 4),
        "": torch.ones(1),
    }
    check_same(through_files(Snapshot(1, tensors, {}, None, {})).model, tensors)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3, 1, 1), (1, 3, 2, 2)])
def test_the_order_in_memory_is_kept_and_the_file_has_the_order_of_the_shape(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape).to(memory_format=torch.channels_last)
    files = dict(to_files(Snapshot(1, {"weight": weight}, {}, None, {})))
    loaded = from_files("here", 1, files).model["weight"]
    assert loaded.stride() == weight.stride()
    assert loaded.equal(weight)
    assert safetensors.torch.load(files["model.safetensors"])["weight"].equal(weight)


def test_tied_weights_are_stored_once_and_stay_tied() -> None:
    weight = torch.randn(100, 100)
    files = dict(to_files(Snapshot(1, {"encoder": weight, "decoder": weight}, {}, None, {})))
    model = from_files("here", 1, files).model
    assert len(files["model.safetensors"]) < 1.5 * weight.nbytes
    assert list(model) == ["encoder", "decoder"]
    assert model["encoder"] is model["decoder"]
    assert model["encoder"].equal(weight)


def test_tensors_that_overlap_in_part_come_back_with_their_values() -> None:
    whole = torch.arange(12.0)
    tensors = {
        "part": whole[:4],
        "whole": whole,
        "end": whole[4:],
        "table": whole.view(3, 4),
        "t": whole.view(3, 4).T,
    }
    check_same(through_files(Snapshot(1, tensors, {}, None, {})).model, tensors)


def test_a_model_with_versioned_parts_goes_on_from_its_state() -> None:
    model, other = mnasnet0_5(), mnasnet0_5()
    loaded = through_files(Snapshot(1, model.state_dict(), {}, None, {}))
    other.load_state_dict(loaded.model)
    check_same(dict(other.state_dict()), dict(model.state_dict()))


@given(tree=st.dictionaries(st.text() | st.integers(), NUMBERS, max_size=4))
@settings(deadline=None, max_examples=50)
def test_any_tree_of_numbers_comes_back_as_it_was(tree: dict[Any, Any]) -> None:
    check_same(through_files(Snapshot(1, {}, tree, None, {})).optimizer, tree)


def test_names_that_look_alike_in_the_file_do_not_mix() -> None:
    tree = {"a": {"b": torch.ones(1), 0: torch.ones(2)}, "a.b": torch.zeros(3), "a.0": torch.zeros(4)}
    check_same(through_files(Snapshot(1, {}, tree, None, {})).optimizer, tree)


@pytest.mark.parametrize(
    ("model", "optimizer", "state", "message"),
    [
        ({"a": torch.eye(2).to_sparse()}, {}, {}, r"checkpoint model.safetensors: a is a tensor of layout"),
        (
            {"a": torch.zeros(2, dtype=torch.complex128)},
            {},
            {},
            r"model.safetensors: torch.complex128\. A check",
        ),
        ({}, {"state": {0: {"fn": print}}}, {}, r"optimizer.safetensors: state.0.fn is a builtin_function"),
        ({}, {(1, 2): 3}, {}, r"optimizer.safetensors:  has the key \(1, 2\)"),
        ({}, {}, {"loss": torch.ones(1)}, r"state.json: Object of type Tensor is not JSON serializable"),
    ],
)
def test_what_cannot_be_said_without_pickle_is_refused(
    model: dict[str, Tensor], optimizer: dict[Any, Any], state: dict[str, Any], message: str, tmp_path: Path
) -> None:
    store = CheckpointStore(str(tmp_path), keep=1)
    store.commit(snapshot(1), score=None)
    with pytest.raises(CheckpointError, match=message):
        store.commit(Snapshot(2, model, optimizer, None, state), score=None)
    assert steps_in(tmp_path) == ["step-00000001"]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1 + 0.2, betas=(0.8, 1 / 3)),
    "adamw with a rate that is a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), amsgrad=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_goes_on_bit_for_bit_from_a_commit(
    make: Callable[[Any], torch.optim.Optimizer], dtype: torch.dtype, tmp_path: Path
) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
        net[3].weight = net[2].weight
        net.to(dtype=dtype).to(memory_format=torch.channels_last)
        return net, make(net.parameters())

    def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            net(images.to(dtype=dtype, memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()

    straight, optimizer = fresh()
    train(straight, optimizer, range(3))
    store = CheckpointStore(str(tmp_path), keep=1)
    store.commit(Snapshot(3, straight.state_dict(), optimizer.state_dict(), None, {}), score=None)
    train(straight, optimizer, range(3, 6))

    resumed, resumed_optimizer = fresh()
    found = store.newest(never)
    assert found is not None
    resumed.load_state_dict(found.model)
    resumed_optimizer.load_state_dict(found.optimizer)
    train(resumed, resumed_optimizer, range(3, 6))
    check_same(dict(resumed.state_dict()), dict(straight.state_dict()))
    check_same(resumed_optimizer.state_dict(), optimizer.state_dict())
