"""The section `memory`: what a worker's device holds of a step, and what is computed anew or kept elsewhere instead."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from orchestrator.config.section import Section
from pipelines.sizes import size_in_bytes


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) and value != "auto" else value


def _in_bytes(value: Any) -> Any:
    return size_in_bytes(value) if isinstance(value, str) else value


Globs = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Strict(False), Field(title="globs of modules")]
Checkpointed = Annotated[
    Literal["auto"] | Globs,
    BeforeValidator(_listed, json_schema_input_type=Literal["auto"] | str | Globs),
    Field(title="auto, a glob of modules such as layer3.*, or a list of globs"),
]
Size = Annotated[
    int,
    Field(ge=0, title="a size such as 8GB, or 0"),
    BeforeValidator(_in_bytes, json_schema_input_type=Annotated[int, Field(ge=0)] | str),
]


class MemoryConfig(Section):
    """How a worker's step fits into the memory of its device (docs/memory.md). The numbers stay the same, bit for bit.

    `checkpoint`: globs of modules of whose activations only the input is kept; the backward pass computes the others
        again (Chen et al. 2016, arXiv:1604.06174). `auto` chooses those that cost the fewest operations under the
        budget.
    `budget`: the most bytes that a worker may use on its device, as predicted; 0 is no limit.
    `offload`: `optimizer` keeps its state in the host's memory between two updates.
    """

    checkpoint: Checkpointed = ()
    budget: Size = 0
    offload: Literal["none", "optimizer"] = "none"

    @model_validator(mode="after")
    def _check(self) -> "MemoryConfig":
        if self.checkpoint == "auto" and not self.budget:
            raise ValueError(
                "budget: got 0 with checkpoint=auto, must be a size, under which auto chooses. Set memory.budget to "
                "what the device has, such as 8GB, or name the modules."
            )
        return self
