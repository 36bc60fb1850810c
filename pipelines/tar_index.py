"""Where the images of a tar lie in it, so that each can be read by itself: one pass over the headers.

What would quietly lose or spoil samples is refused: compression, links, sparse members, a damaged or cut-off tar.
"""

import posixpath
import tarfile
from pathlib import Path

from pipelines.listing import is_image

# First bytes of a compressed file -> what undoes it.
_DECOMPRESS = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}


def index_tar(spec: str, file: Path) -> dict[str, tuple[int, int]]:
    """Find the images of an uncompressed tar: normalised path -> (offset, size) in bytes.

    Of two members of one name the later counts, as in unpacking. `spec` is what the user wrote.
    Raises: ValueError if it is compressed, no tar, cut off or damaged, or an image in it is a link or sparse.
    """
    _check_uncompressed(spec, file)
    places = {}
    try:
        with tarfile.open(file, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # kept to find them by name, 1 KB each
                path = posixpath.normpath(member.name).lstrip("/")
                if is_image(path) and not member.isdir():
                    _check_plain(spec, file, member)
                    places[path] = (member.offset_data, member.size)
            end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(f"got {spec!r}, but {file} is no whole tar: {error}. Make or copy it again.") from error
    _check_end(spec, file, end)
    return places


def _check_uncompressed(spec: str, file: Path) -> None:
    with file.open("rb") as stream:
        start = stream.read(8)
    for magic, command in _DECOMPRESS.items():
        if start.startswith(magic):
            raise ValueError(
                f"got {spec!r}, but {file} is compressed, must be an uncompressed tar, because samples are read at "
                f"their offsets. Unpack it once with {command}; images are compressed already."
            )


def _check_plain(spec: str, file: Path, member: tarfile.TarInfo) -> None:
    if not member.isreg() or member.issparse():
        kind = "sparse" if member.issparse() else "a link or a device"
        raise ValueError(
            f"got {spec!r}, but in {file} {member.name} is {kind}, must be a whole file. "
            "Pack it again with tar --dereference --hard-dereference, without --sparse."
        )


def _check_end(spec: str, file: Path, end: int) -> None:
    """A tar ends with blocks of zeros; tarfile takes a damaged header or a cut between two members for the end too."""
    with file.open("rb") as stream:
        stream.seek(end)
        block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ValueError(f"got {spec!r}, but {file} is cut off at byte {end + len(block)}. Make or copy it again.")
    if block.strip(b"\0"):
        raise ValueError(f"got {spec!r}, but {file} is damaged at byte {end}. Make or copy it again.")
