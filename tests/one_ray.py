"""Commands of `convoy` one after the other in one Ray, whose start takes two cores ten seconds.

`OneRay` is a test's side; the other, this file as a program, starts Ray and then does what each line says. Signals and
kills are for that process and those below it, as they would be for a command of its own. After each command, nothing of
its run may be left, and after the last one nothing of Ray.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.conftest import ROOT, environment
from tests.processes import own_processes

# Not Ray's own b"TrainController": Ray 2.60 sometimes waits for itself for ever at the exit of a process, when all else
# of it is over (~CoreWorkerProcessImpl takes the lock of the event loop that it destroys).
OF_A_RUN = (b"RayTrainWorker", b"ServerActor", b"FollowerActor", b"FeedActor", b"MapWorker")
PATIENCE_S = 400.0
POLL_S = 0.01
SHOWN = 3000  # characters of each output, where a test fails


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


class OneRay:
    """Ray is started by the first command; what the commands say is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._is_going_on = False

    def start(self, *arguments: str) -> None:
        """Begin a command. One that is going on, of a test that failed, is ended together with its Ray."""
        if self._is_going_on:
            self.close()
        process = self._process = self._process or self._start_ray()
        self._number += 1
        self._is_going_on = True
        files = [str(self._file(name)) for name in ("stdout", "stderr", "code")]
        assert process.stdin is not None
        process.stdin.write(json.dumps([arguments, *files]).encode() + b"\n")
        process.stdin.flush()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until something is true while the command goes on."""

        def holds() -> bool:
            if condition():
                return True
            assert not self._file("code").exists(), f"the command ended early: {self._said()}"
            return False

        self._wait(holds)

    def end(self) -> Ended:
        """Wait for the end of the command, and of all processes of its run."""
        self._wait(self._file("code").exists)
        self._wait(lambda: not any(map(self.processes, OF_A_RUN)))
        self._is_going_on = False
        return Ended(int(self._file("code").read_text()), *(self._file(of).read_text() for of in ("stdout", "stderr")))

    def run(self, *arguments: str) -> Ended:
        self.start(*arguments)
        return self.end()

    def press_ctrl_c(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)

    def processes(self, name: bytes) -> list[int]:
        """Those of this Ray with `name` in their title."""
        assert self._process is not None
        return list(own_processes(name, self._process.pid))

    def close(self) -> None:
        """End Ray; the kernel ends its processes with the one that started them, if that has to be killed."""
        if self._process is None:
            return
        of_ray, processes = self.processes(b"TrainController"), self.processes(b"")
        process, self._process = self._process, None
        assert process.stdin is not None
        if self._is_going_on:
            process.kill()
        self._is_going_on = False
        process.stdin.close()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
        for pid in of_ray:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while left := [pid for pid in processes if (Path("/proc") / str(pid)).exists()]:
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(POLL_S)

    def _start_ray(self) -> subprocess.Popen[bytes]:
        with self._file("ray").open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.one_ray"],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )

    def _wait(self, condition: Callable[[], bool]) -> None:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._process.poll() is None, f"the process died: {self._said()}"
            assert time.monotonic() < deadline, f"it never came true: {self._said()}"
            time.sleep(POLL_S)

    def _said(self) -> str:
        files = sorted(self._folder.glob(f"{self._number}-*")) + sorted(self._folder.glob("*-ray"))
        return "\n".join(f"{file.name}: {file.read_text()[-SHOWN:]}" for file in files)

    def _file(self, name: str) -> Path:
        return self._folder / f"{self._number}-{name}"


def _serve() -> None:
    # Here, so that a test's process does not import Ray.
    from orchestrator.cli import main
    from orchestrator.ray_here import connected_to_ray

    with connected_to_ray():
        for line in sys.stdin:
            arguments, stdout, stderr, code = json.loads(line)
            with (
                Path(stdout).open("w") as out,
                Path(stderr).open("w") as err,
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                patch.object(sys, "argv", ["convoy", *arguments]),
            ):
                try:
                    main()
                except SystemExit as exit:
                    Path(f"{code}.writing").write_text(str(exit.code))
            Path(f"{code}.writing").rename(code)


if __name__ == "__main__":
    _serve()
