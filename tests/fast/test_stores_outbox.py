"""Messages survive an outage in their order, and a refusal is not an outage."""

import threading

import pytest

from clusterlora.stores.outbox import Outbox


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
    return Outbox("the server", server.is_away)


def send(outbox: Outbox, server: Server, *whats: str) -> None:
    for what in whats:
        outbox.put(what, lambda what=what: server.receive(what))


def test_messages_arrive_in_order_before_close_returns(outbox: Outbox, server: Server) -> None:
    send(outbox, server, "a", "b", "c")
    assert outbox.close(patience_seconds=600) == ()
    assert server.received == ["a", "b", "c"]


def test_messages_of_an_outage_arrive_afterwards_in_order(outbox: Outbox, server: Server) -> None:
    server.away.set()
    send(outbox, server, "a", "b")
    assert server.asked_while_away.wait(600)
    assert server.received == []
    server.away.clear()
    assert outbox.close(patience_seconds=600) == ()
    assert server.received == ["a", "b"]


def test_a_message_on_which_the_server_fell_is_tried_again(outbox: Outbox, server: Server) -> None:
    sent = outbox.put("the last straw", lambda: server.receive("the last straw"))
    send(outbox, server, "a")
    assert not outbox.wait(sent, patience_seconds=0.1)
    assert outbox.close(patience_seconds=0.1) == ("the last straw", "a")


def test_what_cannot_be_sent_in_time_is_named(outbox: Outbox, server: Server) -> None:
    server.away.set()
    send(outbox, server, "a", "b")
    assert outbox.close(patience_seconds=0.1) == ("a", "b")
    server.away.clear()
    outbox._thread.join()
    assert server.received == []


def test_a_refused_message_is_not_tried_again_and_does_not_hold_up_the_others(outbox: Outbox, server: Server) -> None:
    refused = outbox.put("nonsense", lambda: server.receive("nonsense"))
    sent = outbox.put("a", lambda: server.receive("a"))
    with pytest.raises(ValueError, match="not understood"):
        refused.result(600)
    assert sent.result(600) == "A"
    assert outbox.close(patience_seconds=600) == ()
