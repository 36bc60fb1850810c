"""Ctrl-C and SIGTERM: the run commits at the next step boundary and ends."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from orchestrator.channel import Channel

Returned = TypeVar("Returned")


@contextlib.contextmanager
def stopping(channel: Channel) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a commit at the next step boundary; the second ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        del frame
        for each, handler in before.items():
            signal.signal(each, handler if callable(handler) else signal.SIG_DFL)
        asking = threading.Thread(target=channel.call, args=("request_stop", signal.Signals(number).name))
        asking.start()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_thread(function: Callable[[], Returned]) -> Returned:
    """Call a function in another thread, so that signals reach this one and not Ray's own handler."""
    results: list[Returned] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if errors:
        raise errors[0]
    return results[0]
