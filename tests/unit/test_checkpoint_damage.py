import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_samples import FILES, Bomb, check_is_of_step, never, skipped_by, snapshot, steps_in
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import CheckpointError
from orchestrator.training.checkpoint_manifest import Entry, Manifest
from orchestrator.training.checkpoint_store import CheckpointStore


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def flip_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2, 1)


def flip(path: Path, index: int, mask: int) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= mask
    path.write_bytes(content)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def write(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content), None)[1]


def clear_folder(manifest: Path) -> None:
    for path in manifest.parent.iterdir():
        path.unlink()


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    *((name, Path.unlink, f"{name}: missing") for name in FILES),
    *((name, to_folder, f"{name}: missing") for name in FILES),
    *((name, flip_middle, f"{name}: SHA-256 differs") for name in FILES),
    *((name, truncate, rf"{name}: [\d,]+ bytes, must be [\d,]+") for name in FILES[:4]),
    ("model.safetensors", write(b"x" * 2000), r"model.safetensors: 2,000 bytes, must be \d+"),
    ("optimizer.safetensors", append, r"optimizer.safetensors: [\d,]+ bytes, must be [\d,]+"),
    ("manifest.json", truncate, "manifest.json: SHA-256 differs"),
    ("manifest.json", append, "manifest.json: SHA-256 differs"),
    ("manifest.json", write(b""), "manifest.json: not JSON"),
    ("manifest.json", write(b"\xff\xfe{}"), "manifest.json: not JSON"),
    ("manifest.json", write(b"[" * 100_000), "manifest.json: not JSON"),
    ("manifest.json", write(b"{}"), "manifest.json: no manifest of a checkpoint"),
    ("manifest.json", write(b"[1]"), "manifest.json: no manifest of a checkpoint"),
    ("manifest.json", write(b'{"sha256": "0"}'), "manifest.json: SHA-256 differs"),
    ("manifest.json", clear_folder, "manifest.json: missing"),
]


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    DAMAGE,
    ids=[f"{name} {getattr(damage, '__name__', '')}" for name, damage, _ in DAMAGE],
)
def test_a_damaged_commit_is_named_and_the_one_before_is_read(
    tmp_path: Path, name: str, damage: Callable[[Path], None], reason: str
) -> None:
    store = CheckpointStore(str(tmp_path), keep=2)
    for step in (1, 2):
        store.commit(snapshot(step), score=float(step))
    damage(tmp_path / "step-00000002" / name)
    expected = f"{tmp_path}/step-00000002"
    for read in (store.newest, store.best):
        found, skipped = skipped_by(read)
        check_is_of_step(found, 1)
        assert [path for path, _ in skipped] == [expected]
        assert re.fullmatch(reason, skipped[0][1])
    state, skipped_state = skipped_by(store.newest_state)
    assert (state, skipped_state) == ({"step": 1}, skipped)
    assert store.newest_path() == f"{tmp_path}/step-00000001"
    store.commit(snapshot(2), score=2.0)
    check_is_of_step(store.newest(never), 2)
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.fixture(scope="module")
def two_commits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    store = CheckpointStore(str(folder), keep=2)
    for step in (1, 2):
        store.commit(snapshot(step, size=2), score=None)
    return folder


@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
@settings(deadline=None, max_examples=200)
def test_no_changed_byte_goes_unseen(two_commits: Path, name: str, where: float, mask: int) -> None:
    path = two_commits / "step-00000002" / name
    whole = path.read_bytes()
    flip(path, int(where * len(whole)), mask)
    try:
        found, skipped = skipped_by(CheckpointStore(str(two_commits), keep=2).newest)
    finally:
        path.write_bytes(whole)
    check_is_of_step(found, 1, size=2)
    assert len(skipped) == 1
    assert skipped[0][1].startswith(name)


def test_parts_of_another_commit_do_not_fit(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=3)
    for step in (1, 2, 3):
        store.commit(snapshot(step), score=None)
    shutil.copy(tmp_path / "step-00000001/manifest.json", tmp_path / "step-00000003/manifest.json")
    shutil.copy(tmp_path / "step-00000001/state.json", tmp_path / "step-00000002/state.json")
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000004")
    found, skipped = skipped_by(store.newest)
    check_is_of_step(found, 1)
    assert skipped == [
        (f"{tmp_path}/step-00000004", "manifest.json: of step 1, must be of step 4"),
        (f"{tmp_path}/step-00000003", "manifest.json: of step 1, must be of step 3"),
        (f"{tmp_path}/step-00000002", "state.json: SHA-256 differs"),
    ]


def forge(folder: Path, name: str, content: bytes) -> None:
    """Put a file in a commit and make the manifest fit, as someone would who knows how."""
    (folder / name).write_bytes(content)
    files = {path.name: Entry.of(path.read_bytes()) for path in folder.iterdir() if path.name != "manifest.json"}
    manifest = Manifest(int(folder.name[5:]), None, files)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())


def tensor_file(convoy: Any) -> bytes:
    said = convoy if isinstance(convoy, str) else json.dumps(convoy)
    return bytes(safetensors.torch.save({"a": torch.zeros(2, 3)}, metadata={"convoy": said}))


def header(content: bytes, data: bytes = b"") -> bytes:
    return len(content).to_bytes(8, "little") + content + data


FORGED = [
    ("model.safetensors", b"", "header too small"),
    ("model.safetensors", b"\xff" * 64, "header too large"),
    ("model.safetensors", header(b"{}"), "__metadata__"),
    ("model.safetensors", header(b"[" * 10_000), "invalid JSON in header|recursion"),
    (
        "model.safetensors",
        header(b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}', b"1234"),
        "SafetensorError",
    ),
    (
        "model.safetensors",
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', b"1234"),
        "SafetensorError",
    ),
    ("model.safetensors", tensor_file("no JSON"), "JSONDecodeError"),
    ("model.safetensors", tensor_file('{"list":[' * 50_000), "RecursionError"),
    ("model.safetensors", tensor_file('{"list":[' * 600 + "]}" * 600), "RecursionError|a list instead"),
    ("model.safetensors", tensor_file(3), "a int instead of a dict"),
    ("model.safetensors", tensor_file({"call": "os.system"}), "unknown node"),
    ("model.safetensors", tensor_file({"dict": [["a", {"tensor": "b"}]]}), "KeyError"),
    ("model.safetensors", tensor_file({"dict": [["a"]]}), "ValueError"),
    ("model.safetensors", tensor_file({"dict": [[[1], 2]]}), "unhashable"),
    (
        "model.safetensors",
        tensor_file({"dict": [["a", {"tensor": "a", "stride": [10**12, 1]}]]}),
        "does not fit",
    ),
    (
        "model.safetensors",
        tensor_file({"dict": [["a", {"tensor": "a", "stride": [-5, 5]}]]}),
        "does not fit|overflowed",
    ),
    ("model.safetensors", tensor_file({"dict": [["a", {"tensor": "a", "stride": [5, 0]}]]}), "single memory"),
    ("model.safetensors", tensor_file({"dict": [["a", {"tensor": "a", "stride": "os"}]]}), "TypeError"),
    ("optimizer.safetensors", tensor_file({"dict": [["a", {"tensor": "a", "stride": [3]}]]}), "ValueError"),
    ("state.json", b"{", "JSONDecodeError"),
    ("state.json", b'{"a":' * 100_000, "RecursionError"),
    ("state.json", b'{"a":' + b"9" * 5000 + b"}", "ValueError"),
    ("state.json", b"[]", "a list instead of a dict"),
    ("evil.pkl", b"", "lists .*evil.pkl"),
]


@pytest.mark.parametrize(("name", "content", "reason"), FORGED, ids=[f"{n} {r}" for n, _, r in FORGED])
def test_content_that_convoy_does_not_write_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    store = CheckpointStore(str(tmp_path), keep=2)
    for step in (1, 2):
        store.commit(snapshot(step), score=None)
    forge(tmp_path / "step-00000002", name, content)
    with pytest.raises(CheckpointError, match=rf"step-00000002/[a-z.]+: is as its manifest says, .*({reason})"):
        store.newest(never)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_any_place_is_refused_and_not_executed(tmp_path: Path, name: str, protocol: int) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=1)
    commit = store.commit(snapshot(1), score=None)
    ran = tmp_path / "ran"
    payload = pickle.dumps(Bomb(ran), protocol=protocol)
    (Path(commit.path) / name).write_bytes(payload)
    found, skipped = skipped_by(store.newest)
    assert (found, len(skipped)) == (None, 1)
    if name != "manifest.json":
        forge(Path(commit.path), name, payload)
        with pytest.raises(CheckpointError, match=f"{name}: is as its manifest says, but is not what Convoy writes"):
            store.newest(never)
    assert not ran.exists()
    pickle.loads(payload)
    assert ran.exists(), "the payload must be one that would have run"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"step-00000002: got format 2, but this Convoy reads up to 1\. Install"),
        ({"format": "1"}, r"manifest.json: is as .*no format"),
        ({"step": "2"}, r"manifest.json: is as .*step, score or files"),
        ({"score": [1]}, r"manifest.json: is as .*step, score or files"),
        ({"files": []}, r"manifest.json: is as .*step, score or files"),
        ({"files": {}}, r"manifest.json: is as .*lists no file"),
        ({"files": {"../../etc/passwd": {}}}, r"manifest.json: is as .*lists \.\./\.\./etc/passwd"),
        ({"files": dict.fromkeys(FILES[:4], 1)}, r"manifest.json: is as .*no num_bytes and sha256 of"),
    ],
    ids=str,
)
def test_a_manifest_of_a_newer_version_or_a_stranger_is_an_error(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    store = CheckpointStore(str(tmp_path), keep=2)
    for step in (1, 2):
        store.commit(snapshot(step), score=None)
    path = tmp_path / "step-00000002" / "manifest.json"
    body = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"} | change
    digest = hashlib.sha256(json.dumps(body, indent=1, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(body | {"sha256": digest}, indent=1, sort_keys=True) + "\n")
    for read in (store.newest, store.newest_state, store.best):
        with pytest.raises(CheckpointError, match=message):
            read(never)
    store.commit(snapshot(3), score=None)
    assert steps_in(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]  # not ours to delete
