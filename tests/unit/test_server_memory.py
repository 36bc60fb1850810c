"""Memory that two real processes share: what one writes the other reads, and nothing outlives them both."""

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.parameter_server.shared_memory import CannotShare, Segment, Token, same_host

ROWS, SIZE = 2, 3001


@dataclasses.dataclass
class Other:
    """Another process, which does one thing after the other as it is told and answers what came out."""

    process: Any
    pipe: Connection

    def __call__(self, action: Callable[..., Any], *arguments: Any) -> Any:
        self.pipe.send((action, arguments))
        return self.pipe.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL


HELD: list[Segment] = []  # by an Other, in its own process


def serve(pipe: Connection) -> None:
    with contextlib.suppress(EOFError):
        while True:
            action, arguments = pipe.recv()
            pipe.send(action(*arguments))


def create() -> Token:
    HELD.append(Segment.create(ROWS, SIZE))
    HELD[-1].array[0] = np.arange(SIZE)
    return HELD[-1].token


def open_and_double(token: Token) -> None:
    HELD.append(Segment.open(token))
    double()


def double() -> None:
    np.multiply(HELD[-1].array[0], 2, out=HELD[-1].array[1])


def close() -> None:
    HELD.pop().close()


def refused_as_nobody(token: Token) -> str:
    os.setuid(65534)
    with pytest.raises(CannotShare) as caught:
        Segment.open(token)
    return str(caught.value)


def refused_when_files_are_limited() -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(CannotShare) as caught:
        Segment.create(ROWS, SIZE)
    return str(caught.value)


def child_that_stays() -> int:
    """A program started beside the memory, with all descriptors that may be inherited."""
    program = "import sys; print('here', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    return child.pid


@pytest.fixture(scope="module")
def processes() -> SpawnContext:
    return multiprocessing.get_context("spawn")


@pytest.fixture
def other(processes: SpawnContext) -> Iterator[Other]:
    ours, theirs = processes.Pipe()
    process = processes.Process(target=serve, args=(theirs,))
    process.start()
    theirs.close()
    yield Other(process, ours)
    ours.close()  # ends it
    process.join()


def holders(inode: int) -> set[int]:
    """The processes that have the memory mapped or open."""
    return {int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit() and inode in set(inodes_held(one))}


def inodes_held(process: Path) -> Iterator[int]:
    """Of shared memory, by a process that may end meanwhile."""
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_text().splitlines():
            if "/memfd:convoy" in line:
                yield int(line.split()[4])
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # of this process: what lists the folder
                if "/memfd:convoy" in str(link.readlink()):
                    yield link.stat().st_ino


def inode_of(token: Token) -> int:
    return Path(token.path).stat().st_ino


def test_what_one_process_writes_the_other_reads(other: Other) -> None:
    segment = Segment.create(ROWS, SIZE)
    assert segment.array.shape == (ROWS, SIZE)
    assert not segment.array.any()
    segment.array[0] = np.arange(SIZE)
    other(open_and_double, segment.token)
    assert np.array_equal(segment.array[1], 2 * np.arange(SIZE))
    segment.array[0] += 1
    other(double)
    assert np.array_equal(segment.array[1], 2 * np.arange(1, SIZE + 1))


def test_a_process_may_open_its_own_memory() -> None:
    segment = Segment.create(ROWS, SIZE)
    same = Segment.open(segment.token)
    same.array[1] = 7
    assert (segment.array[1] == 7).all()


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1024])
def test_rows_are_contiguous_floats_on_cache_lines_and_do_not_overlap(size: int) -> None:
    segment = Segment.create(3, size)
    for number, row in enumerate(segment.array):
        assert row.flags.c_contiguous
        assert row.flags.writeable
        assert row.ctypes.data % 64 == 0
        row[...] = number
    assert np.array_equal(segment.array, np.repeat([[0], [1], [2]], size, axis=1))


def test_of_a_killed_creator_the_memory_stays_for_who_opened_it_and_goes_with_it(other: Other) -> None:
    token = other(create)
    segment, inode = Segment.open(token), inode_of(token)
    assert holders(inode) == {os.getpid(), token.pid}
    assert not segment.abandoned
    other.kill()
    assert segment.abandoned
    assert np.array_equal(segment.array[0], np.arange(SIZE))
    segment.array[1] = 1
    assert holders(inode) == {os.getpid()}
    segment.close()
    assert holders(inode) == set()


def test_a_killed_opener_takes_nothing_with_it_and_leaves_nothing(other: Other) -> None:
    segment = Segment.create(ROWS, SIZE)
    token, inode = segment.token, inode_of(segment.token)
    other(open_and_double, token)
    assert holders(inode) == {os.getpid(), other.process.pid}
    other.kill()
    assert holders(inode) == {os.getpid()}
    assert not segment.abandoned
    segment.array[...] = 1
    segment.close()
    assert holders(inode) == set()


def test_two_killed_processes_leave_nothing(other: Other, processes: SpawnContext) -> None:
    ours, theirs = processes.Pipe()
    second = Other(processes.Process(target=serve, args=(theirs,)), ours)
    second.process.start()
    token = other(create)
    inode = inode_of(token)
    second(open_and_double, token)
    assert holders(inode) == {other.process.pid, second.process.pid}
    other.kill()
    second.kill()
    assert holders(inode) == set()


def test_a_program_started_meanwhile_does_not_inherit_the_memory(other: Other) -> None:
    token = other(create)
    inode = inode_of(token)
    child = other(child_that_stays)
    try:
        assert holders(inode) == {other.process.pid}
        assert Path("/proc", str(child)).exists()
    finally:
        os.kill(child, signal.SIGKILL)


def test_closing_takes_the_memory_from_nobody_who_has_it(other: Other) -> None:
    token = other(create)
    segment = Segment.open(token)
    other(close)
    assert segment.abandoned
    assert np.array_equal(segment.array[0], np.arange(SIZE))
    view = segment.array[0]
    segment.close()
    segment.close()
    assert segment.array.size == 0
    assert np.array_equal(view, np.arange(SIZE))


def test_segments_that_are_closed_or_forgotten_leave_no_descriptor() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for number in range(20):
        segment = Segment.create(ROWS, SIZE)
        opened = Segment.open(segment.token)
        if number % 2:
            segment.close()
            opened.close()
        del segment, opened
    gc.collect()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("change", "local", "message"),
    [
        ({"boot_id": "another"}, False, "on another host or in another container: its boot id is another"),
        ({"pid_namespace": 1}, False, "in another container: .* its PID namespace 1"),
        ({"nonce": bytes(16)}, True, "is not the one meant: it begins with other bytes"),
        ({"pid": 2**22 + 1}, True, r"/proc/4194305/fd/\d+ .* cannot be opened: .*No such file"),
        ({"fd": 0}, True, "cannot be opened: it is another file"),
        ({"fd": 100_000}, True, "cannot be opened: .*No such file"),
        ({"num_elements": 9000}, True, r"\(2 x 9000 elements\) has \d+ bytes, expected \d+"),
    ],
)
def test_what_is_not_the_memory_meant_is_refused_with_the_reason(
    change: dict[str, Any], local: bool, message: str
) -> None:
    segment = Segment.create(ROWS, SIZE)
    token = dataclasses.replace(segment.token, **change)
    assert same_host(token) is local
    with pytest.raises(CannotShare, match=message + r".*Send arrays by the object store\."):
        Segment.open(token)


def test_the_memory_of_a_process_that_ended_or_closed_it_is_refused(other: Other) -> None:
    first = other(create)
    other(close)
    second = other(create)
    assert second.nonce != first.nonce
    with pytest.raises(CannotShare, match="is not the one meant"):  # the second has the first's place
        Segment.open(first)
    other.kill()
    with pytest.raises(CannotShare, match=r"cannot be opened: .*No such file"):
        Segment.open(second)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(other: Other) -> None:
    segment = Segment.create(ROWS, SIZE)
    assert "cannot be opened: [Errno 13] Permission denied" in other(refused_as_nobody, segment.token)


def test_more_than_there_is_room_for_is_refused_before_it_is_taken() -> None:
    with pytest.raises(CannotShare, match=r"No room for \d{16} bytes: \d+ bytes are available. Send arrays by"):
        Segment.create(1, 2**50)


def test_what_the_system_refuses_to_allocate_is_refused(other: Other) -> None:
    assert "File too large. Send arrays by" in other(refused_when_files_are_limited)


@pytest.mark.parametrize("sizes", [(0, 5), (1, 0), (1, -1)])
def test_a_size_below_one_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"rows, num_elements: got {sizes[0]}, {sizes[1]}, must both be at least 1"):
        Segment.create(*sizes)


@pytest.mark.parametrize("num_bytes", [0, 10**6])
def test_nobody_can_take_the_pages_away(num_bytes: int) -> None:
    """Who reads a page beyond the end of a file that was cut is killed by SIGBUS."""
    segment = Segment.create(ROWS, SIZE)
    with pytest.raises(PermissionError, match="not permitted"):
        os.truncate(segment.token.path, num_bytes)


def test_a_token_and_a_refusal_survive_a_call() -> None:
    token = Segment.create(ROWS, SIZE).token
    assert pickle.loads(pickle.dumps(token)) == token
    refusal = pickle.loads(pickle.dumps(CannotShare("why")))
    assert isinstance(refusal, CannotShare)
    assert str(refusal) == "why"
