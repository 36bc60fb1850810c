"""Samples that cannot be read: each is replaced by another one of its epoch, and named.

So counts, order and everything that is addressed by position stay exact. Who replaces whom is a function of (seed,
epoch, position): the same on every machine, at every try.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipelines.randomness import mix

MAX_SUBSTITUTES = 20  # in a row, for one position


@dataclass(frozen=True)
class Replaced:
    """A sample that could not be read, and which one stands at its position instead. `split`: train or val."""

    split: str
    epoch: int
    position: int
    sample_id: str
    reason: str
    by: str


def substitute(seed: int, epoch: int, position: int, attempt: int, num_samples: int) -> int:
    """Which sample, as an index, stands in at a position whose own cannot be read; `attempt` counts from 0."""
    return mix("substitute", seed, epoch, position, attempt) % num_samples


def share_of(value: Any) -> Any:
    """Read `0.1%` as 0.001; other values are left for pydantic to judge."""
    if isinstance(value, str) and value.endswith("%"):
        try:
            return float(value[:-1]) / 100
        except ValueError:
            return value
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Share = Annotated[
    float,
    BeforeValidator(share_of, json_schema_input_type=float | str),
    Field(ge=0.0, le=1.0),
]
