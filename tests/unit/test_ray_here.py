"""Which Ray a command uses."""

import socket

import pytest

from orchestrator.ray_here import _is_gone


@pytest.fixture(autouse=True)
def _no_address_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_cluster_that_answers_is_there_and_one_that_was_killed_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert not _is_gone(address)
    assert _is_gone(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert not _is_gone(address), "what the user wants is for Ray to try"


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:port"])
def test_an_address_that_is_none_is_gone(address: str) -> None:
    assert _is_gone(address)


def test_without_a_remembered_cluster_there_is_none_to_be_gone() -> None:
    assert not _is_gone(None)
    assert not _is_gone("")
