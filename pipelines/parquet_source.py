"""Samples in the rows of parquet files: `parquet:PATH`, a file, a folder or a glob; Hugging Face's layout too.

Columns: `image`, the encoded file as binary, or Hugging Face's struct of `bytes` and `path`; `label` (other names:
`parquet:PATH?image=img&label=fine_label`). What the label is, its type decides (`targets.py`): a whole number or a text
is a class, a list of them several classes, a float or a list of floats values; `target=values` makes values of whole
numbers too. Class names come from the `ClassLabel` of the `huggingface` entry in the schema's metadata, if there is
one. A sample's id is `<class>/<file name>`, or without one class the file name, which is, in this order: what the
column `file_name` holds; the last part of the struct's `path`; else `<name of the parquet file>:<row in it>`. So a data
set that Hugging Face made from class folders has the folders' ids; without paths the ids, and with them the random
draws, are those of this file and no other.

A row group is read as a whole, the last ones kept in memory (CACHE_BYTES a process): random reads over many groups
read each group again and again. `order.windowed_order` avoids that, and so do shards (`convoy pack`).
"""

import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.files import Files, Recent, find_files
from pipelines.listing import Listing, Storage, labelled_listing, storage_of
from pipelines.targets import KINDS, TargetKind

CACHE_BYTES = 256 * 2**20
FILE_NAME = "file_name"
_ADVICE = "Give a parquet file, a folder of them or a glob."


@dataclass(frozen=True, eq=False)
class Parquet:
    """Images in the rows of parquet files; a row group at a time.

    `columns`: of each file, the one that holds the images. `groups` (g, 2): file and number in it of each row group.
    `places` (n, 2): group and row in it of each sample.
    """

    listing: Listing
    files: Files
    columns: tuple[str, ...]
    groups: NDArray[np.int64]
    places: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        group, row = self.places[index].tolist()
        content: bytes | None = self._recent.get(group)[row].as_py()
        if content is None:
            file, number = self.groups[group].tolist()
            raise OSError(f"row {row} of row group {number} of {self.files.paths[file]} holds no image, only its path")
        return content

    @property
    def storage(self) -> Storage:
        return storage_of(self.places[:, 0], self.places[:, 1])

    @cached_property
    def _recent(self) -> "Recent[int, Any]":
        return Recent(self._read_group, CACHE_BYTES, lambda column: int(column.nbytes))

    def _read_group(self, group: int) -> Any:
        file, number = self.groups[group].tolist()
        try:
            with self.files.open(file) as opened:
                table = pq.ParquetFile(opened).read_row_group(number, columns=[self.columns[file]], use_threads=False)
        except pa.ArrowInvalid as error:
            raise OSError(f"{self.files.paths[file]} cannot be read: {error}") from error
        return _leaf(table, "bytes")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


@dataclass(frozen=True)
class Columns:
    """Names of columns, and what the label is said to be; None where its type decides."""

    image: str
    label: str
    target: TargetKind | None = None


def open_parquet(spec: str, path: str, columns: Columns) -> Parquet:
    """List the rows of parquet files; `spec` is what the user wrote.

    Raises: ValueError if there is no file or row, a column is missing or of no use, or a label cannot be one.
    """
    files = find_files(spec, path, _ADVICE, ".parquet")
    _check_one_split(spec, files.paths)
    where = files.paths[0] if len(files.paths) == 1 else f"{files.paths[0]} and {len(files.paths) - 1} more"
    parts = [_read_part(spec, files, number, columns) for number in range(len(files.paths))]
    strange = next((i for i, part in enumerate(parts) if part.classes != parts[0].classes), None)
    if strange is not None:
        raise ValueError(
            f"got {spec!r}, but {files.paths[strange]} has another class list than {files.paths[0]}. "
            "Repair it, or give files of one data set."
        )
    strange = next((i for i, part in enumerate(parts) if part.kind != parts[0].kind), None)
    if strange is not None:
        raise ValueError(
            f"got {spec!r}, but in {files.paths[strange]} {columns.label} is {KINDS[parts[strange].kind]} and in "
            f"{files.paths[0]} {KINDS[parts[0].kind]}. Give files of one data set."
        )
    listing, chosen = labelled_listing(
        spec,
        where,
        [value for part in parts for value in part.values],
        [name for part in parts for name in part.names],
        parts[0].classes,
        parts[0].kind,
    )
    groups = [(number, group) for number, part in enumerate(parts) for group in range(len(part.group_rows))]
    rows = np.array([rows for part in parts for rows in part.group_rows], np.int64)
    group_of = np.repeat(np.arange(len(rows)), rows)
    row_in = np.arange(len(group_of)) - np.repeat(np.cumsum(rows) - rows, rows)
    places = np.stack([group_of, row_in], axis=1)[chosen]
    return Parquet(listing, files, tuple(part.leaf for part in parts), np.array(groups, np.int64), places)


@dataclass(frozen=True)
class _Part:
    """What a file says without its images. `leaf`: the column to read for them; `group_rows`: of each row group."""

    leaf: str
    kind: TargetKind
    classes: list[str] | None
    values: list[Any]
    names: list[str]
    group_rows: list[int]


def _read_part(spec: str, files: Files, number: int, columns: Columns) -> _Part:
    file, image, label = files.paths[number], columns.image, columns.label
    try:
        with files.open(number) as opened, pq.ParquetFile(opened) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            _check_names(spec, file, schema, columns)
            kind = _kind(spec, file, schema.field(label).type, columns)
            return _Part(
                leaf=_image_leaf(spec, file, schema, image),
                kind=kind,
                classes=None if kind == "values" else _class_names(spec, file, schema, label),
                values=_labels(spec, file, parquet, label),
                names=_names(spec, file, parquet, image),
                group_rows=[metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)],
            )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"got {spec!r}, but {file} cannot be read as parquet: {error}. {_ADVICE}") from error


def _leaf(table: Any, name: str) -> Any:
    """The only column of a table, or the field `name` of it if it is a struct."""
    column = table.column(0)
    return pc.struct_field(column, name) if pa.types.is_struct(column.type) else column


def _check_one_split(spec: str, paths: Sequence[str]) -> None:
    """Hugging Face lays `train-00000-of-00002.parquet` and `test-...` side by side; together they are no set."""
    splits = sorted({posixpath.basename(path).split("-")[0] for path in paths if "-of-" in posixpath.basename(path)})
    if len(splits) > 1:
        folder = posixpath.dirname(paths[0])
        raise ValueError(
            f"got {spec!r}, but {folder} holds files of {', '.join(splits)}, must be one of them. "
            f"Write parquet:{folder}/{splits[-1]}-*.parquet."
        )


def _check_names(spec: str, file: str, schema: Any, columns: Columns) -> None:
    for option, name in (("image", columns.image), ("label", columns.label)):
        if name not in schema.names:
            raise ValueError(
                f"got {spec!r}, but {file} has no column {name}; it has {', '.join(schema.names)}. "
                f"Name it: parquet:PATH?{option}=NAME."
            )


def _image_leaf(spec: str, file: str, schema: Any, image: str) -> str:
    """The column to read for the encoded bytes."""
    kind = schema.field(image).type
    if _is_binary(kind):
        return image
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type):
        return f"{image}.bytes"
    raise ValueError(
        f"got {spec!r}, but in {file} column {image} is {kind}, must be binary or a struct with binary bytes. "
        "Store the encoded image files themselves."
    )


def _is_binary(kind: Any) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(spec: str, file: str, schema: Any, label: str) -> list[str] | None:
    """The names of the ClassLabel that Hugging Face's metadata gives the label column."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"].get(label) or {}
        if isinstance(feature, list):  # how `datasets` before version 4 could write a list of labels
            feature = feature[0]
        elif feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature["feature"]
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"got {spec!r}, but the huggingface metadata of {file} cannot be read. Write it again."
        ) from None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"got {spec!r}, but the class list of {label} in {file} is no list of texts. Repair it.")
    return names


def _kind(spec: str, file: str, column: Any, columns: Columns) -> TargetKind:
    """What the type of the label column is; what it is said to be, if it can be that."""
    several = pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column)
    one = column.value_type if several else column
    one = one.value_type if pa.types.is_dictionary(one) else one
    names = pa.types.is_integer(one) or pa.types.is_string(one) or pa.types.is_large_string(one)
    possible: list[TargetKind] = ["classes" if several else "class"] if names else []
    possible += ["values"] if pa.types.is_integer(one) or pa.types.is_floating(one) else []
    kind = columns.target or next(iter(possible), None)
    if kind is None or kind not in possible:
        said = f", which target={columns.target} does not fit" if columns.target else ""
        raise ValueError(
            f"got {spec!r}, but in {file} column {columns.label} is {column}{said}; must be whole numbers or texts "
            "for class, lists of them for classes, numbers or lists of numbers for values. "
            "Name another column, parquet:PATH?label=NAME, or another target=."
        )
    return kind


def _labels(spec: str, file: str, parquet: Any, label: str) -> list[Any]:
    column = parquet.read(columns=[label]).column(0)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise ValueError(
            f"got {spec!r}, but in {file} column {label} is empty in {column.null_count} rows, the first is {row}. "
            "Take them out."
        )
    values: list[Any] = column.to_pylist()
    row = next((row for row, value in enumerate(values) if isinstance(value, list) and None in value), None)
    if row is not None:
        raise ValueError(
            f"got {spec!r}, but in {file} column {label} has an empty entry in the list of row {row}. Take it out."
        )
    return values


def _names(spec: str, file: str, parquet: Any, image: str) -> list[str]:
    """The file names of the rows, by the first of the three rules that applies."""
    schema = parquet.schema_arrow
    leaves = [FILE_NAME] if FILE_NAME in schema.names else []
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        leaves.append(f"{image}.path")
    for leaf in leaves:
        texts = _leaf(parquet.read(columns=[leaf]), "path")
        if texts.null_count == len(texts):
            continue
        if texts.null_count:
            raise ValueError(
                f"got {spec!r}, but in {file} {leaf} is empty in {texts.null_count} of {len(texts)} rows. "
                "Fill all of them or none."
            )
        return [posixpath.basename(text) for text in texts.to_pylist()]
    stem = posixpath.basename(file)
    return [f"{stem}:{row}" for row in range(parquet.metadata.num_rows)]
