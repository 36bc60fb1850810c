"""The manifest of a commit: what must be in its folder, byte for byte. It guards itself too.

It detects damage, not forgery: who can write to the folder can write a manifest that fits. So what is read
by it is still parsed as if from a stranger (checkpoint.py).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from orchestrator.errors import CheckpointError
from orchestrator.training.checkpoint import KNOWN_FILES, REQUIRED_FILES, foreign

MANIFEST = "manifest.json"
FORMAT = 1


class Damaged(Exception):
    """A commit is not what was written; the message is the reason, in words."""


@dataclass(frozen=True)
class Entry:
    """What a file must be."""

    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> "Entry":
        return cls(len(content), hashlib.sha256(content).hexdigest())

    def check(self, name: str, content: bytes) -> None:
        """Raises: Damaged if a file has other bytes."""
        if len(content) != self.num_bytes:
            raise Damaged(f"{name}: {len(content):,} bytes, must be {self.num_bytes:,}")
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise Damaged(f"{name}: SHA-256 differs")


@dataclass(frozen=True)
class Manifest:
    """`score`: of the commit, None in mid-epoch. `files`: every other file of the commit, by name."""

    step: int
    score: float | None
    files: dict[str, Entry]

    def to_bytes(self) -> bytes:
        return _render(asdict(self) | {"format": FORMAT})

    @classmethod
    def from_bytes(cls, path: str, step: int, content: bytes) -> "Manifest":
        """Read the manifest in the folder `path`, which by its name is of step `step`.

        Raises: Damaged if not every byte is as written, or if it is of another step. CheckpointError if it
        was written by a newer version, or not by Convoy.
        """
        body = _checked_body(content)
        if not isinstance(body.get("format"), int):
            _raise_foreign(path, "no format")
        if body["format"] > FORMAT:
            raise CheckpointError(
                f"checkpoint {path}: got format {body['format']}, but this Convoy reads up to {FORMAT}. "
                f"Install the convoy-train that wrote it, or delete {path} to go on from the one before it."
            )
        manifest = _manifest(path, body)
        if manifest.step != step:
            raise Damaged(f"{MANIFEST}: of step {manifest.step}, must be of step {step}")
        return manifest


def _render(body: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(_dump(body).encode()).hexdigest()
    return (_dump(body | {"sha256": digest}) + "\n").encode()


def _dump(body: dict[str, Any]) -> str:
    return json.dumps(body, indent=1, sort_keys=True)


def _checked_body(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise Damaged(f"{MANIFEST}: not JSON") from None
    if not isinstance(body, dict) or "sha256" not in body:
        raise Damaged(f"{MANIFEST}: no manifest of a checkpoint")
    del body["sha256"]
    # Written anew and compared byte for byte: a digest of what JSON says would not see a changed blank.
    if _render(body) != content:
        raise Damaged(f"{MANIFEST}: SHA-256 differs")
    return body


def _manifest(path: str, body: dict[str, Any]) -> Manifest:
    match body:
        case {"step": int(step), "score": None | float() as score, "files": dict(listed)}:
            names = set(listed)
        case _:
            _raise_foreign(path, "step, score or files is missing or of another type")
    if not REQUIRED_FILES <= names <= KNOWN_FILES:
        _raise_foreign(path, f"lists {', '.join(sorted(names)) or 'no file'}")
    files = {}
    for name, entry in listed.items():
        match entry:
            case {"num_bytes": int(num_bytes), "sha256": str(sha256)}:
                files[name] = Entry(num_bytes, sha256)
            case _:
                _raise_foreign(path, f"no num_bytes and sha256 of {name}")
    return Manifest(step, score, files)


def _raise_foreign(path: str, reason: str) -> NoReturn:
    raise foreign(path, MANIFEST, reason)
