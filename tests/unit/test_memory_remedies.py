"""What is said when memory runs out: settings that would fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memory_samples import ALONE, CPU, LARGE, experiment, peak, plan_of, run_once
from torch import Tensor

from orchestrator.errors import OutOfMemory, RunError
from orchestrator.memory.budget import within_budget
from orchestrator.memory.forecast import predict
from orchestrator.memory.remedies import explaining_memory, is_out_of_memory, remedies, with_train, written
from orchestrator.models import zoo
from orchestrator.models.small import SmallResNet


def test_what_runs_out_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as on_cpu:
        torch.empty(2**60)
    assert is_out_of_memory(on_cpu.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_the_message_names_three_settings_that_the_forecast_lets_fit() -> None:
    chosen = experiment(*LARGE)
    plan, whole = plan_of(chosen), peak(chosen)
    message = r"^memory: cpu ran out of memory: CUDA out of memory\. The "
    with pytest.raises(OutOfMemory, match=message) as told, explaining_memory(chosen, plan, CPU):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
    offered = told.value.details["remedies"]
    assert [each.partition("=")[0] for each in offered] == ["train.accumulate", "memory", "precision"]
    for override in offered:
        fitted = within_budget(experiment(*LARGE, override), plan)
        assert predict(fitted, plan).peak <= 0.8 * whole
        assert override in told.value.message


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^another$"), explaining_memory(experiment(), plan_of(experiment()), CPU):
        raise RuntimeError("another")


def test_where_one_setting_is_not_enough_two_are_named_and_smaller_batches() -> None:
    chosen = experiment(*LARGE, "precision=bf16")
    plan = plan_of(chosen)
    least = predict(with_train(chosen, accumulate=64), plan).peak
    found = remedies(chosen, plan, int(0.97 * least))
    assert found
    assert all(each.peak <= 0.97 * least for each in found)
    assert {each.overrides.partition("=")[0] for each in found} <= {"train.accumulate", "train.global_batch"}


def test_on_gpus_the_state_of_the_optimizer_is_offered_to_leave() -> None:
    chosen = experiment("train.optimizer={name: adamw, lr: 0.1}", "train.accumulate=64", "precision=bf16", ALONE)
    plan = replace(plan_of(chosen), device="cuda")
    found = remedies(chosen, plan, predict(chosen, plan).peak - 1000)
    assert "memory.offload=optimizer" in [each.overrides for each in found]


@pytest.mark.parametrize(
    ("size", "text"), [(8 * 10**9, "8GB"), (1_239_999_999, "1.23GB"), (456_789, "456.78kB"), (7, "7B")]
)
def test_sizes_are_written_as_they_are_read_and_never_larger(size: int, text: str) -> None:
    assert written(size) == text
    assert experiment(f"memory.budget={text}").memory.budget <= size


def test_a_run_whose_model_runs_out_of_memory_ends_with_the_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Planted(SmallResNet):
        def forward(self, images: Tensor) -> Tensor:
            if type(images) is Tensor and images.device.type == "cpu" and self.training:
                torch.empty(2**60)  # more than there is, from the real allocator
            return super().forward(images)

    monkeypatch.setitem(zoo.OURS, "planted", Planted)
    with pytest.raises(RunError, match=r"^memory: cpu ran out of memory: .*can't allocate memory.* What would fit: "):
        run_once(tmp_path / "run", "model.name=planted")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["error"].count("(predicted ") == 3
    assert result["memory"]["measured"] is None
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "finish"], "it is not tried again"
