"""Where the images of a tar lie in it, so that each can be read by itself: one pass over the headers.

What would quietly lose or spoil samples is refused: compression, links, sparse members, a damaged or cut-off tar.
Labels that lie beside the images (WebDataset) are read in the same pass. Over a network the pass asks for every
header in turn, so many thousands of images take minutes; shards (`convoy pack`) have an index.
"""

import io
import posixpath
import tarfile
from dataclasses import dataclass, field
from typing import Any

from pipelines.files import Files
from pipelines.listing import is_image

LABEL_ENDINGS = (".cls", ".json")
_BUFFER_BYTES = 2**16

# First bytes of a compressed file -> what undoes it.
_DECOMPRESS = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}


@dataclass(frozen=True)
class TarIndex:
    """What is in a tar, by normalised path. `images`: (offset, size) in bytes; `labels`: what label files hold."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)


def index_tar(spec: str, files: Files, number: int) -> TarIndex:
    """Find the images and label files of an uncompressed tar, file `number` of `files`.

    Of two members of one name the later counts, as in unpacking. `spec` is what the user wrote.
    Raises: ValueError if it is compressed, no tar, cut off or damaged, or an image in it is a link or sparse.
    """
    file = files.paths[number]
    index = TarIndex()
    with io.BufferedReader(files.open(number), _BUFFER_BYTES) as stream:
        _check_uncompressed(spec, file, stream)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # kept to find them by name, 1 KB each
                    _add(spec, file, archive, member, index)
                end = archive.offset
        except tarfile.TarError as error:
            raise ValueError(f"got {spec!r}, but {file} is no whole tar: {error}. Make or copy it again.") from error
        _check_end(spec, file, stream, end)
    return index


def _add(spec: str, file: str, archive: tarfile.TarFile, member: tarfile.TarInfo, index: TarIndex) -> None:
    path = posixpath.normpath(member.name).lstrip("/")
    if member.isdir():
        return
    if is_image(path):
        _check_plain(spec, file, member)
        index.images[path] = (member.offset_data, member.size)
    elif path.endswith(LABEL_ENDINGS) and member.isreg():
        content = archive.extractfile(member)
        assert content is not None
        index.labels[path] = content.read()


def _check_uncompressed(spec: str, file: str, stream: Any) -> None:
    start = stream.read(8)
    stream.seek(0)
    for magic, command in _DECOMPRESS.items():
        if start.startswith(magic):
            raise ValueError(
                f"got {spec!r}, but {file} is compressed, must be an uncompressed tar, because samples are read at "
                f"their offsets. Unpack it once with {command}; images are compressed already."
            )


def _check_plain(spec: str, file: str, member: tarfile.TarInfo) -> None:
    if not member.isreg() or member.issparse():
        kind = "sparse" if member.issparse() else "a link or a device"
        raise ValueError(
            f"got {spec!r}, but in {file} {member.name} is {kind}, must be a whole file. "
            "Pack it again with tar --dereference --hard-dereference, without --sparse."
        )


def _check_end(spec: str, file: str, stream: Any, end: int) -> None:
    """A tar ends with blocks of zeros; tarfile takes a damaged header or a cut between two members for the end too."""
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ValueError(f"got {spec!r}, but {file} is cut off at byte {end + len(block)}. Make or copy it again.")
    if block.strip(b"\0"):
        raise ValueError(f"got {spec!r}, but {file} is damaged at byte {end}. Make or copy it again.")
