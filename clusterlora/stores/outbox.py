"""Messages to a server that may be away: sent in order from a thread, kept while it is, so that training never waits for it."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Message:
    what: str
    send: Callable[[], Any]
    sent: Future[Any] = field(default_factory=Future[Any])


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each further try: 0.5, 1, 2, 4, 5, 5, ..."""
    seconds = 0.5
    while True:
        yield seconds
        seconds = min(2 * seconds, _LONGEST_PAUSE_SECONDS)


class Outbox:
    """Sends messages one after another. One that fails while the server is away is tried again until `close` gives up.

    Retries live here rather than in the orchestrator: repeating hours of training because a loss could not be logged is no remedy.
    """

    def __init__(self, server: str, is_away: Callable[[], bool]) -> None:
        """Begin with nothing to send.

        Args:
            server: what to call it in warnings.
            is_away: asked before each message, and after a failure: it tells an outage from a message that is refused.
        """
        self._server = server
        self._is_away = is_away
        self._messages: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        self._unsent: list[str] = []
        self._away_since: float | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"outbox to {server}", daemon=True)
        self._thread.start()

    def put(self, what: str, send: Callable[[], Any]) -> "Future[Any]":
        """Queue a message. The future holds what `send` returns, or its error when the server refused it."""
        message = _Message(what, send)
        self._unsent.append(what)
        self._messages.put(message)
        return message.sent

    def wait(self, sent: "Future[Any]", *, patience_seconds: float) -> bool:
        """Wait for a message to be sent or refused; return false once the server has been away for so long meanwhile."""
        began = time.monotonic()
        while not sent.done():
            wait_for([sent], timeout=0.2)
            if self._away_since is not None and time.monotonic() - max(began, self._away_since) > patience_seconds:
                return False
        return True

    def close(self, *, patience_seconds: float) -> tuple[str, ...]:
        """Wait until everything is sent; return what is not when patience with an outage ends. Nothing is sent after that."""
        unsent: tuple[str, ...] = ()
        if not self.wait(self.put("the end", lambda: None), patience_seconds=patience_seconds):
            unsent = tuple(self._unsent[:-1])
        self._given_up.set()
        self._messages.put(None)
        return unsent

    def _work(self) -> None:
        while (message := self._messages.get()) is not None and not self._given_up.is_set():
            self._deliver(message)

    def _deliver(self, message: _Message) -> None:
        for pause in pauses():
            # Asked first as well, because a client may take minutes to find out for itself.
            if not self._is_away():
                try:
                    result = message.send()
                except Exception as error:  # noqa: BLE001  (what a server or its client raises is not known; it is logged or handed on)
                    if not self._is_away():
                        log.warning("%s refused %s: %s", self._server, message.what, str(error).partition("\n")[0])
                        self._settle(message)
                        message.sent.set_exception(error)
                        return
                else:
                    self._settle(message)
                    message.sent.set_result(result)
                    return
            self._away_since = self._away_since or time.monotonic()
            away = time.monotonic() - self._away_since
            log.warning("%s has been away for %.0f s; %s is kept and tried again in %.1f s", self._server, away, message.what, pause)
            if self._given_up.wait(pause):
                return

    def _settle(self, message: _Message) -> None:
        self._away_since = None
        self._unsent.remove(message.what)
