"""Float32 arrays that two processes of one host both have in their memory: nothing is sent.

A segment is a file without a name (memfd_create(2)) that the other process opens as /proc/PID/fd/N and maps. There is
nothing to clean up: the kernel frees it when the last process that has it is gone, also by SIGKILL. It does not lie in
/dev/shm, which a container limits to 64 MB if nobody says otherwise, and Ray's object store wants for itself.

    worker: segment = Segment.create(2, n); sends segment.token in a call
    server: segment = Segment.open(token);  gradient, weights = segment.array

Who writes a row when is agreed on by calls: a row belongs to the server from a worker's call to its answer, and to the
worker else. There are no locks and no versions here.
A token means a segment only on its host, in its PID namespace (a container has its own) and to the same user; sixteen
random bytes at the start prove that the memory is the one meant. All else is refused by `CannotShare`, which says why;
what is to be done then is to send arrays by Ray's object store.
All pages are there from the start, in page tables too: no first use is slow, and none can fail by SIGBUS (the size is
sealed). Linux only. Huge pages are not asked for: shared memory gets none where shmem_enabled is "never", the default.
"""

import fcntl
import mmap
import os
import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_NAME = "convoy"  # as others see it in /proc/PID/maps
_HEADER_BYTES, _NONCE_BYTES = 4096, 16  # the rows begin on a page
_ALIGNED = 16  # elements: a row begins on a cache line
_INSTEAD = "Send arrays by the object store."


class CannotShare(RuntimeError):
    """Two processes cannot have this memory in common; the message says why."""


@dataclass(frozen=True, slots=True)
class Token:
    """Where a segment is: plain data to be sent in a call."""

    boot_id: str
    pid_namespace: int
    pid: int
    fd: int
    nonce: bytes
    rows: int
    num_elements: int

    @property
    def path(self) -> str:
        return f"/proc/{self.pid}/fd/{self.fd}"

    @property
    def row_elements(self) -> int:
        return -(-self.num_elements // _ALIGNED) * _ALIGNED

    @property
    def num_bytes(self) -> int:
        return _HEADER_BYTES + 4 * self.rows * self.row_elements


def same_host(token: Token) -> bool:
    """Whether the token was made under this kernel, since it started, and in this PID namespace.

    A host restored from a snapshot has its original's boot id: `Segment.open` compares the memory too.
    """
    try:
        return (token.boot_id, token.pid_namespace) == _place()
    except OSError:  # no Linux
        return False


class Segment:
    """Shared memory, mapped: `array` (rows, num_elements) float32, each row contiguous, at first 0.

    The array stays usable as long as anybody refers to it, whoever closes or dies.
    """

    def __init__(self, token: Token, memory: mmap.mmap, inode: tuple[int, int], own_fd: int | None = None) -> None:
        self.token = token
        self.array = _rows(memory, token)
        self._inode = inode
        self._withdraw = weakref.finalize(self, _close, own_fd)

    @classmethod
    def create(cls, rows: int, num_elements: int) -> Self:
        """Raises: ValueError for a size below 1; CannotShare if there is no room or the system has no such memory."""
        if min(rows, num_elements) < 1:
            raise ValueError(f"rows, num_elements: got {rows}, {num_elements}, must both be at least 1.")
        try:
            place = _place()
            fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except (AttributeError, OSError) as error:
            raise CannotShare(f"This system has no memory to share by memfd_create: {error}. {_INSTEAD}") from error
        token = Token(*place, os.getpid(), fd, os.urandom(_NONCE_BYTES), rows, num_elements)
        try:
            memory = _allocated(token)
        except BaseException:
            os.close(fd)
            raise
        memory[:_NONCE_BYTES] = token.nonce
        return cls(token, memory, _inode(os.fstat(fd)), own_fd=fd)

    @classmethod
    def open(cls, token: Token) -> Self:
        """Map the segment of another process, or of this one.

        Raises: CannotShare if it is on another host or in another container, another user's, or no longer there.
        """
        if not same_host(token):
            raise CannotShare(
                f"The memory of process {token.pid} is on another host or in another container: its boot id is "
                f"{token.boot_id}, its PID namespace {token.pid_namespace}. {_INSTEAD}"
            )
        try:
            if not str(Path(token.path).readlink()).startswith(f"/memfd:{_NAME} "):  # to open a device might act on it
                raise FileNotFoundError("it is another file")
            fd = os.open(token.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise CannotShare(f"{_what(token)} cannot be opened: {error}. {_INSTEAD}") from error
        try:
            status = os.fstat(fd)
            if status.st_size != token.num_bytes:
                raise CannotShare(f"{_what(token)} has {status.st_size} bytes, expected {token.num_bytes}. {_INSTEAD}")
            memory = _mapped(fd, token.num_bytes)
        finally:
            os.close(fd)
        if memory[:_NONCE_BYTES] != token.nonce:
            raise CannotShare(f"{_what(token)} is not the one meant: it begins with other bytes. {_INSTEAD}")
        return cls(token, memory, _inode(status))

    @property
    def abandoned(self) -> bool:
        """Whether who created it has ended or closed it: then whoever opened it holds memory for nobody."""
        try:
            return _inode(Path(self.token.path).stat()) != self._inode
        except OSError:
            return True

    def close(self) -> None:
        """Let go of the memory; by its creator: nobody can open it any more. May be called again."""
        self._withdraw()
        self.array = np.empty((0, 0), np.float32)


def _allocated(token: Token) -> mmap.mmap:
    """All pages of a new segment, whose size is final."""
    available = _available_bytes()
    if token.num_bytes > available:  # the kernel would not refuse: it would kill a process
        raise CannotShare(f"No room for {token.num_bytes} bytes: {available} bytes are available. {_INSTEAD}")
    try:
        os.posix_fallocate(token.fd, 0, token.num_bytes)
        fcntl.fcntl(token.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return _mapped(token.fd, token.num_bytes)
    except OSError as error:
        raise CannotShare(f"No room for {token.num_bytes} bytes: {error}. {_INSTEAD}") from error


def _mapped(fd: int, num_bytes: int) -> mmap.mmap:
    return mmap.mmap(fd, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _rows(memory: mmap.mmap, token: Token) -> Floats:
    """The array keeps the mapping; the mapping goes with the array's last view."""
    flat = np.frombuffer(memory, np.float32, token.rows * token.row_elements, _HEADER_BYTES)
    return flat.reshape(token.rows, token.row_elements)[:, : token.num_elements]


def _what(token: Token) -> str:
    return f"The shared memory {token.path} ({token.rows} x {token.num_elements} elements)"


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@cache
def _place() -> tuple[str, int]:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), Path("/proc/self/ns/pid").stat().st_ino


def _available_bytes() -> int:
    """What the host could give without swapping; a container's own limit is not known here."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
