"""Messages to a server that may be away: sent in order from a thread, kept while it is, so that training never waits for it.

While it is away they are on the disk as well: what a process cannot send, because it ends or the power does, the next one sends.
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


Letter = Mapping[str, Any]
"""What a message consists of, as JSON values."""


@dataclass(frozen=True, slots=True)
class _Message:
    what: str
    letter: Letter | None
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

    def __init__(self, server: str, is_away: Callable[[], bool], send: Callable[[Letter], Any], file: Path | None = None) -> None:
        """Begin with nothing to send.

        Args:
            server: what to call it in warnings.
            is_away: asked before each message, and after a failure: it tells an outage from a message that is refused.
            send: sends a letter.
            file: where letters are kept during an outage, see `send_left_over`; they are kept in memory alone without.
        """
        self._server = server
        self._is_away = is_away
        self._send = send
        self._file = file
        self._lock = _lock_of(file) if file else None
        self._books = threading.Lock()
        self._messages: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        self._unsent: list[_Message] = []
        self._away_since: float | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"outbox to {server}", daemon=True)
        self._thread.start()

    def put(self, what: str, letter: Letter | None = None) -> "Future[Any]":
        """Queue a letter. The future holds what `send` returned, or its error when the server refused it."""
        message = _Message(what, letter)
        with self._books:
            self._unsent.append(message)
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
        """Bring what is not sent to the disk, where there is a place for it."""
        if self._file is None:
            return
        with self._books:
            kept = [(message.what, message.letter) for message in self._unsent if message.letter is not None]
            try:
                if kept:
                    write_durably(self._file, json.dumps(kept).encode())
                else:
                    self._file.unlink(missing_ok=True)
            except OSError as error:
                # They are still in memory.
                log.warning("%d messages for %s cannot be kept in %s: %s", len(kept), self._server, self._file, error)

    def _work(self) -> None:
        while (message := self._messages.get()) is not None and not self._given_up.is_set():
            self._deliver(message)

    def _deliver(self, message: _Message) -> None:
        for pause in pauses():
            # Asked first as well, because a client may take minutes to find out for itself.
            if not self._is_away():
                try:
                    result = self._send(message.letter) if message.letter is not None else None
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
            self.save()
            away = time.monotonic() - self._away_since
            log.warning("%s has been away for %.0f s; %s is kept and tried again in %.1f s", self._server, away, message.what, pause)
            if self._given_up.wait(pause):
                return

    def _settle(self, message: _Message) -> None:
        with self._books:
            self._unsent.remove(message)
        if self._away_since is not None or not self._unsent:
            self.save()
        self._away_since = None


def send_left_over(folder: Path, send: Callable[[str, Letter], Any]) -> None:
    """Send the letters of outboxes in a folder whose processes have ended, in order; each outbox is forgotten once all of it is sent."""
    # A power cut may have taken the lock and left the letters.
    for file in sorted({found.with_suffix(".json") for kind in ("*.json", "*.lock") for found in folder.glob(kind)}):
        try:
            lock = _lock_of(file)
        except BlockingIOError:
            continue  # its process lives
        with lock:
            if file.exists():
                for what, letter in json.loads(file.read_bytes()):
                    send(what, letter)
                file.unlink()
            _path_of_lock(file).unlink(missing_ok=True)


def _lock_of(file: Path) -> TextIO:
    """Return the open lock of an outbox, which its process holds as long as it lives. Raises BlockingIOError when another does."""
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
