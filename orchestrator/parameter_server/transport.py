"""How numbers travel between a worker and its server: by the object store, or in memory that both have.

The worker's end writes gradients and reads weights, the server's end the other way round. Memory is shared where both
are on one host; else, or where that fails, the call itself carries the arrays: NumPy's, which Ray puts into its object
store without a copy on the reading side. To replace either, write another pair of ends.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from orchestrator.parameter_server.messages import Floats
from orchestrator.parameter_server.shared_memory import CannotShare, Segment, Token
from orchestrator.parameter_server.wire import Encoded, Encoder, Wire, decode

GRADIENT, WEIGHTS = 0, 1  # rows of a shared segment
IN_ROW = "row"


@dataclass(frozen=True)
class Offer:
    """What a worker offers at its joining. `token`: of memory to share, None without."""

    token: Token | None = None


class Line(Protocol):
    """The server's end."""

    shared: bool

    def read(self, gradient: Any) -> Floats:
        """A gradient that came; it holds until the call is answered, or for good if the line is not `shared`."""

    def write(self, weights: Floats) -> Any:
        """Weights for the answer."""


class CopiedLine:
    """Arrays in the calls."""

    shared = False

    def __init__(self) -> None:
        self._answer = np.empty(0, np.float32)

    def read(self, gradient: Encoded) -> Floats:
        return decode(gradient)

    def write(self, weights: Floats) -> Floats:
        """A copy: it is pickled when the next update may be under way. Its memory is used again by the next call."""
        if self._answer.size != weights.size:
            self._answer = np.empty_like(weights)
        np.copyto(self._answer, weights)
        return self._answer


class SharedLine:
    """Arrays in memory that the worker made."""

    shared = True

    def __init__(self, token: Token) -> None:
        self._segment = Segment.open(token)

    def read(self, gradient: Any) -> Floats:
        return self._segment.array[GRADIENT] if gradient == IN_ROW else decode(gradient)

    def write(self, weights: Floats) -> str:
        np.copyto(self._segment.array[WEIGHTS], weights)
        return IN_ROW


def line_of(offer: Offer) -> Line:
    """The server's end of what a worker offers: its memory, if it can be had."""
    if offer.token is None:
        return CopiedLine()
    try:
        return SharedLine(offer.token)
    except CannotShare:
        return CopiedLine()


class WorkerEnd:
    """The worker's end. `transport`: auto, shared_memory or object_store.

    Raises: CannotShare if memory must be shared and cannot be had.
    """

    def __init__(self, transport: str, wire: Wire, num_elements: int, *, top_k: float) -> None:
        self._encoder = Encoder(wire, num_elements, fraction=top_k)
        self._wire = wire
        self._segment: Segment | None = None
        if transport != "object_store":
            try:
                self._segment = Segment.create(2, num_elements)
            except CannotShare:
                if transport == "shared_memory":
                    raise
        self._shared = False

    @property
    def offer(self) -> Offer:
        return Offer(self._segment.token if self._segment else None)

    def agreed(self, *, shared: bool) -> None:
        """Take note whether the server could share the memory that was offered."""
        self._shared = shared

    def encode(self, gradient: Floats) -> Any:
        """What to send of a gradient."""
        if self._shared and self._wire == "fp32":
            assert self._segment is not None
            np.copyto(self._segment.array[GRADIENT], gradient)
            return IN_ROW
        return self._encoder.encode(gradient)

    def weights(self, answered: Any) -> Floats:
        """The weights that were answered, read-only; they hold until the next call."""
        if isinstance(answered, str):
            assert self._segment is not None
            return self._segment.array[WEIGHTS]
        weights: Floats = answered
        return weights
