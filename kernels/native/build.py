"""Compile a C source at first use and load it; the library is kept in a cache folder.

A library's name holds a hash of its source, the headers beside it, the compiler's version and the flags, so none is
ever out of date. It is built in a folder of its own and renamed into place: any number of processes may start at once,
and the last of equal libraries stays. Never -march=native, since a home folder may be shared by nodes: what only some
CPUs have is asked for by flags, which are in the name.

Calls through ctypes let other Python threads run. Who can do without a library says so, by `loaded`.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path

FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-Wall", "-Wextra")
COMPILERS = ("cc", "gcc", "clang")

_LOG = logging.getLogger(__name__)


class NotBuilt(Exception):
    """There is no library; the message says why, in words for a user."""


def load(
    source: Path,
    libraries: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    headers: Mapping[str, str] = types.MappingProxyType({}),
) -> ctypes.CDLL:
    """The library of a source, compiled with `flags` beside FLAGS and linked with `libraries` if the cache has none.

    `headers`: name -> text of what it includes and is not beside it.

    Raises: NotBuilt without a compiler, a header or a library that it needs, or a folder to write to.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NotBuilt(f"no C compiler on the PATH (looked for {', '.join(COMPILERS)})")
    arguments = [*FLAGS, *flags, "-x", "c", str(source), *(f"-l{library}" for library in libraries)]
    path = cache_folder() / f"{source.stem}-{_key(source, compiler, arguments, headers)}.so"
    try:
        if not path.exists():
            _compile([compiler, *arguments], headers, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotBuilt(f"{path} could not be written or loaded: {error}") from error


def loaded(load_it: Callable[[], ctypes.CDLL], instead: str) -> ctypes.CDLL | None:
    """The library, or None after a warning of what is done instead and why. To be asked once a process."""
    try:
        return load_it()
    except NotBuilt as reason:
        _LOG.warning("%s: %s. Install a C compiler (Debian: gcc).", instead, reason)
        return None


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/convoy or ~/.cache/convoy (freedesktop.org's base directories, version 0.8)."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if Path(named).is_absolute() else Path("~/.cache").expanduser()) / "convoy"


def _key(source: Path, compiler: str, arguments: list[str], texts: Mapping[str, str]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    flags = [argument for argument in arguments if argument != str(source)]
    headers = (path.read_text() for path in sorted(source.parent.glob("*.h")))
    parts = (source.read_text(), *headers, *texts.values(), version, *flags, platform.machine())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(command: list[str], headers: Mapping[str, str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as folder:
        for name, text in headers.items():
            (Path(folder) / name).write_text(text)
        built = Path(folder) / path.name
        done = subprocess.run([*command, f"-I{folder}", "-o", str(built)], capture_output=True, text=True)
        if done.returncode != 0:
            raise NotBuilt(f"{path.name} does not compile: {_first_error(done.stderr)}")
        built.replace(path)


def _first_error(output: str) -> str:
    lines = output.splitlines() or ["the compiler says nothing"]
    return next((line for line in lines if "error" in line or "cannot find" in line), lines[0])
