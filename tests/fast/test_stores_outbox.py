"""Messages are delivered in order after an outage, and a refusal is not an outage."""

import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from mlflow import MlflowClient

from clusterlora.stores.mlflow_run import send
from clusterlora.stores.outbox import Outbox, Payload, send_left_over


class Server:
    """A server that can be away, and refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.away = threading.Event()
        self.asked_while_away = threading.Event()

    def is_away(self) -> bool:
        if self.away.is_set():
            self.asked_while_away.set()
        return self.away.is_set()

    def receive(self, what: str) -> str:
        if what == "the last straw":
            self.away.set()
        if self.away.is_set():
            raise ConnectionError("nobody there")
        if what == "nonsense":
            raise ValueError("not understood")
        self.received.append(what)
        return what.upper()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def outbox(server: Server) -> Outbox:
    return outbox_to(server)


def outbox_to(server: Server, file: Path | None = None) -> Outbox:
    return Outbox("the server", server.is_away, lambda payload: server.receive(payload["text"]), file)


def put(outbox: Outbox, *whats: str) -> "Future[str]":
    return [outbox.put(what, {"text": what}) for what in whats][-1]


def test_messages_arrive_in_order_before_close_returns(outbox: Outbox, server: Server) -> None:
    put(outbox, "a", "b", "c")
    assert outbox.close(patience_seconds=600) == ()
    assert server.received == ["a", "b", "c"]


def test_messages_of_an_outage_arrive_afterwards_in_order(outbox: Outbox, server: Server) -> None:
    server.away.set()
    put(outbox, "a", "b")
    assert server.asked_while_away.wait(600)
    assert server.received == []
    server.away.clear()
    assert outbox.close(patience_seconds=600) == ()
    assert server.received == ["a", "b"]


def test_a_message_is_sent_again_after_a_server_error(outbox: Outbox, server: Server) -> None:
    sent = put(outbox, "the last straw")
    put(outbox, "a")
    assert not outbox.wait(sent, patience_seconds=0.1)
    assert outbox.close(patience_seconds=0.1) == ("the last straw", "a")


def test_messages_that_cannot_be_sent_in_time_are_named(outbox: Outbox, server: Server) -> None:
    server.away.set()
    put(outbox, "a", "b")
    assert outbox.close(patience_seconds=0.1) == ("a", "b")
    server.away.clear()
    outbox._thread.join()
    assert server.received == []


def test_a_refused_message_is_not_tried_again_and_does_not_hold_up_the_others(outbox: Outbox, server: Server) -> None:
    refused, sent = put(outbox, "nonsense"), put(outbox, "a")
    with pytest.raises(ValueError, match="not understood"):
        refused.result(600)
    assert sent.result(600) == "A"
    assert outbox.close(patience_seconds=600) == ()


def left_over(folder: Path) -> list[str]:
    """Return what the next process sends."""
    received: list[str] = []

    def receive(what: str, payload: Payload) -> None:
        assert payload["text"] == what
        received.append(what)

    send_left_over(folder, receive)
    return received


def test_unsent_messages_are_sent_once_by_the_next_process(server: Server, tmp_path: Path) -> None:
    outbox = outbox_to(server, tmp_path / "run.json")
    put(outbox, "a").result(600)
    server.away.set()
    put(outbox, "b", "c")
    assert outbox.close(patience_seconds=0.1) == ("b", "c")
    assert left_over(tmp_path) == ["b", "c"]
    assert left_over(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_messages_sent_after_an_outage_are_not_left_over(server: Server, tmp_path: Path) -> None:
    outbox = outbox_to(server, tmp_path / "run.json")
    server.away.set()
    put(outbox, "a", "b")
    assert server.asked_while_away.wait(600)
    server.away.clear()
    assert outbox.close(patience_seconds=600) == ()
    assert list(tmp_path.iterdir()) == []


def test_unsent_messages_of_a_killed_process_are_sent_by_the_next(server: Server, tmp_path: Path) -> None:
    ready, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        server.away.set()
        outbox = outbox_to(server, tmp_path / "run.json")
        put(outbox, "a", "b")
        outbox.save()
        os.write(write_end, b"x")
        signal.pause()
    os.read(ready, 1)
    assert left_over(tmp_path) == [], "its process is still running"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert left_over(tmp_path) == ["a", "b"]


def test_messages_whose_lock_a_power_cut_deleted_are_sent(server: Server, tmp_path: Path) -> None:
    outbox = outbox_to(server, tmp_path / "run.json")
    server.away.set()
    put(outbox, "a")
    outbox.close(patience_seconds=0.1)
    (tmp_path / "run.lock").unlink()
    assert left_over(tmp_path) == ["a"]


def test_a_full_disk_does_not_block_the_outbox(server: Server, tmp_path: Path) -> None:
    outbox = outbox_to(server, tmp_path / "run.json")
    (tmp_path / "run.json").mkdir()
    server.away.set()
    sent = put(outbox, "a")
    assert server.asked_while_away.wait(600)
    server.away.clear()
    assert sent.result(600) == "A"
    assert outbox.close(patience_seconds=600) == ()


def test_an_outage_while_remaining_messages_are_sent_loses_none(server: Server, tmp_path: Path) -> None:
    outbox = outbox_to(server, tmp_path / "run.json")
    server.away.set()
    put(outbox, "a", "b")
    outbox.close(patience_seconds=0.1)

    def fail(_what: str, _payload: Payload) -> None:
        raise ConnectionError("nobody there")

    with pytest.raises(ConnectionError):
        send_left_over(tmp_path, fail)
    assert left_over(tmp_path) == ["a", "b"]


def test_what_was_removed_before_it_was_uploaded_is_refused_by_its_name(tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    payload = {"run_id": "any", "folder": str(gone), "path": "adapters/gone.safetensors"}
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors was removed or replaced before it was uploaded"):
        send(MlflowClient("http://127.0.0.1:9"), payload)
