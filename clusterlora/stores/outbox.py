"""A queue of messages to a server that may be down: a thread sends them in order, so that training never waits for the server.

During an outage they are on disk as well: what a process could not send before it ended or lost power, a later one sends.
"""

import fcntl
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from clusterlora.durable import make_folder, write_durably

log = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 5.0


Payload = Mapping[str, Any]
"""The content of a message, as JSON values."""


@dataclass(frozen=True, slots=True)
class _Message:
    what: str
    payload: Payload | None
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

    def __init__(self, server: str, is_away: Callable[[], bool], send: Callable[[Payload], Any], file: Path | None = None) -> None:
        """Start the sending thread.

        Args:
            server: its name in warnings.
            is_away: called before each message and after a failure, to tell an outage from a refused message.
            send: sends a payload.
            file: where payloads are kept during an outage, see `send_left_over`; None keeps them in memory only.
        """
        self._server = server
        self._is_away = is_away
        self._send = send
        self._file = file
        self._lock = _lock_of(file) if file else None
        self._unsent_lock = threading.Lock()
        self._messages: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        self._unsent: list[_Message] = []
        self._away_since: float | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"outbox to {server}", daemon=True)
        self._thread.start()

    def put(self, what: str, payload: Payload | None = None) -> "Future[Any]":
        """Queue a message. The future holds what `send` returned, or its error when the server refused it."""
        message = _Message(what, payload)
        with self._unsent_lock:
            self._unsent.append(message)
        self._messages.put(message)
        return message.sent

    def wait(self, sent: "Future[Any]", *, patience_seconds: float) -> bool:
        """Wait for a message to be sent or refused; return false once the server has been away for `patience_seconds`."""
        began = time.monotonic()
        while not sent.done():
            wait_for([sent], timeout=0.2)
            if self._away_since is not None and time.monotonic() - max(began, self._away_since) > patience_seconds:
                return False
        return True

    def close(self, *, patience_seconds: float) -> tuple[str, ...]:
        """Wait until everything is sent, or the server has been away for `patience_seconds`; return what is unsent. Stops the thread."""
        unsent: tuple[str, ...] = ()
        if not self.wait(self.put("the end"), patience_seconds=patience_seconds):
            unsent = tuple(message.what for message in self._unsent[:-1])
        self._given_up.set()
        self._messages.put(None)
        self._thread.join(_LONGEST_PAUSE_SECONDS)
        self.save()
        if self._lock is not None and self._file is not None:
            if not self._file.exists():
                _path_of_lock(self._file).unlink(missing_ok=True)
            self._lock.close()
        return unsent

    def save(self) -> None:
        """Write the unsent messages to the file, if there is one."""
        if self._file is None:
            return
        with self._unsent_lock:
            unsent = [(message.what, message.payload) for message in self._unsent if message.payload is not None]
            try:
                if unsent:
                    write_durably(self._file, json.dumps(unsent).encode())
                else:
                    self._file.unlink(missing_ok=True)
            except OSError as error:
                # The messages are still in memory.
                log.warning("%d messages for %s cannot be written to %s: %s", len(unsent), self._server, self._file, error)

    def _work(self) -> None:
        while (message := self._messages.get()) is not None and not self._given_up.is_set():
            self._deliver(message)

    def _deliver(self, message: _Message) -> None:
        for pause in pauses():
            # Checked before sending: a client may take minutes to notice an outage.
            if not self._is_away():
                try:
                    result = self._send(message.payload) if message.payload is not None else None
                except Exception as error:  # noqa: BLE001  (a client may raise anything; it is logged or handed on)
                    if not self._is_away():
                        log.warning("%s refused %s: %s", self._server, message.what, str(error).partition("\n")[0])
                        self._remove(message)
                        message.sent.set_exception(error)
                        return
                else:
                    self._remove(message)
                    message.sent.set_result(result)
                    return
            self._away_since = self._away_since or time.monotonic()
            self.save()
            away = time.monotonic() - self._away_since
            log.warning("%s has not answered for %.0f s; %s is kept and sent again in %.1f s", self._server, away, message.what, pause)
            if self._given_up.wait(pause):
                return

    def _remove(self, message: _Message) -> None:
        with self._unsent_lock:
            self._unsent.remove(message)
        if self._away_since is not None or not self._unsent:
            self.save()
        self._away_since = None


def send_left_over(folder: Path, send: Callable[[str, Payload], Any]) -> None:
    """Send the messages left in a folder by processes that have ended, in order; an outbox's files are deleted once all is sent."""
    # A power cut may have lost the lock file but not the messages.
    for file in sorted({path.with_suffix(".json") for pattern in ("*.json", "*.lock") for path in folder.glob(pattern)}):
        try:
            lock = _lock_of(file)
        except BlockingIOError:
            continue  # its process is still running
        with lock:
            if file.exists():
                for what, payload in json.loads(file.read_bytes()):
                    send(what, payload)
                file.unlink()
            _path_of_lock(file).unlink(missing_ok=True)


def _lock_of(file: Path) -> TextIO:
    """Return an outbox's lock, held until the file or its process ends. Raises BlockingIOError when another process holds it."""
    make_folder(file.parent)
    lock = _path_of_lock(file).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise
    return lock


def _path_of_lock(file: Path) -> Path:
    return file.with_suffix(".lock")
