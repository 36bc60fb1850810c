"""Start a Ray head with a token, submit jobs to it, and print how they ended as JSON; then end the head.

Run by test_job_submit.py, in a network namespace of its own where the machine allows one: Ray's ports, but for the
dashboard's, would be open on all addresses.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
JOB_TIMEOUT_S = 400
ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent


def raise_loopback() -> None:
    """What `ip link set lo up` does; a new network namespace starts with it down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP, b""))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(folder: Path) -> dict[str, str]:
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    return os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "NO_COLOR": "1",
    }


def start_head(folder: Path, ray_folder: str, variables: dict[str, str], dashboard: int) -> subprocess.Popen[bytes]:
    with (folder / "head.txt").open("w") as output:
        return subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={dashboard}",
             f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats", "--num-cpus=2",
             f"--temp-dir={ray_folder}"],
            env=variables, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def wait_for(url: str, token: str, head: subprocess.Popen[bytes], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if head.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def submit(address: str, variables: dict[str, str], *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [BIN / "ray", "job", "submit", f"--address={address}", "--working-dir=.", "--",
         "python", "-m", "orchestrator", "train", "experiments/digits.yaml", *arguments],
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=JOB_TIMEOUT_S,
    )  # fmt: skip
    return {"exit_code": done.returncode, "log": done.stdout + done.stderr}


def main(folder: Path, jobs: dict[str, list[str]]) -> None:
    variables = environment(folder)
    dashboard = free_port()
    address = f"http://127.0.0.1:{dashboard}"
    ray_folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: Ray's sockets in it may have 107 letters
    head = start_head(folder, ray_folder, variables, dashboard)
    try:
        wait_for(f"{address}/api/version", Path(variables["RAY_AUTH_TOKEN_PATH"]).read_text(), head)
        ended = {name: submit(address, variables, *arguments) for name, arguments in jobs.items()}
        stranger = variables | {"RAY_AUTH_TOKEN": "0" * 64}
        del stranger["RAY_AUTH_TOKEN_PATH"]
        ended["stranger"] = submit(address, stranger)
        (folder / "ended.json").write_text(json.dumps(ended))
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=60)
        shutil.rmtree(ray_folder, ignore_errors=True)


if __name__ == "__main__":
    if "--own-network" in sys.argv:
        raise_loopback()
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
