"""The thread that answers: requests join the running decode batch as slots get free, and leave it when they end or are cancelled."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from clusterlora.engine.continuous_batch import Admission, ContinuousBatch, Failed, Tokens
from clusterlora.engine.generation import Question
from clusterlora.engine.memory import free_cached_memory, is_allocation_failure

log = logging.getLogger(__name__)

Deliver = Callable[["Tokens | Exception"], None]
"""Takes the next tokens of an answer, or why there will be none; called by the scheduler's thread."""


class Busy(Exception):
    """As many requests wait as may."""


class Closed(Exception):
    """The scheduler takes no more requests."""


class Scheduler:
    """Answers questions in the order in which they come, as many at once as the batch has rows."""

    def __init__(self, batch: ContinuousBatch, *, max_waiting: int) -> None:
        self._batch = batch
        self.capacity = batch.n_free + max_waiting
        """Most requests that are taken and not yet answered: those in the batch, which is empty here, and those that wait."""
        self._waiting: deque[Admission] = deque()
        self._deliver: dict[int, Deliver] = {}
        self._cancelled: list[int] = []
        self.is_closing = False
        """Whether it takes no more questions."""
        self._next_number = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def n_unanswered(self) -> int:
        """Requests that were taken and have not ended: those that wait, join or run."""
        return len(self._deliver)

    @property
    def n_running(self) -> int:
        """Requests that are being answered."""
        return self._batch.n_running

    def submit(self, question: Question, *, limit: int, deliver: Deliver) -> int:
        """Let a question wait for a slot; return the number by which it can be cancelled.

        Raises:
            Busy: too many wait.
            Closed: the scheduler is closed.
        """
        with self._changed:
            if self.is_closing:
                raise Closed
            # Not by those that wait: one that was taken a moment ago does, though a slot is free for it.
            if self.n_unanswered >= self.capacity:
                raise Busy
            number, self._next_number = self._next_number, self._next_number + 1
            self._waiting.append(Admission(number, question, limit))
            self._deliver[number] = deliver
            self._changed.notify()
        return number

    def cancel(self, number: int) -> None:
        """Free the slot of a question; nothing more is delivered of it. Of one that has ended, do nothing."""
        with self._changed:
            if self._deliver.pop(number, None) is not None:
                self._waiting = deque(admission for admission in self._waiting if admission.number != number)
                self._cancelled.append(number)
                self._changed.notify()

    def close(self) -> None:
        """Take no more questions, and return once all that were taken are answered."""
        with self._changed:
            self.is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._deliver or self._cancelled or self.is_closing)
                cancelled, self._cancelled = self._cancelled, []
                for number in cancelled:
                    self._batch.cancel(number)
                if self.is_closing and not self._deliver:
                    return
                joining = [self._waiting.popleft() for _ in range(min(self._batch.n_free, len(self._waiting)))]
            if joining:
                self._admit(joining)
            if self._batch.n_running:
                self._step()

    def _admit(self, joining: Sequence[Admission]) -> None:
        """Let questions join. If that fails they are tried one by one, so that only those fail that cannot be answered."""
        try:
            tokens = self._batch.admit(joining)
        except Exception as error:
            for admission in joining:
                self._batch.cancel(admission.number)
            _recover(error)
            if len(joining) == 1:
                log.exception("a request could not be answered")
                self._hand_over(joining[0].number, error, ended=True)
                return
            for admission in joining:
                self._admit([admission])
        else:
            self._hand_over_all(tokens)

    def _step(self) -> None:
        try:
            tokens = self._batch.step()
        except Exception as error:
            log.exception("%d requests could not be answered", self._batch.n_running)
            self._batch.clear()
            _recover(error)
            with self._changed:
                waiting = {admission.number for admission in self._waiting}
                running = [number for number in self._deliver if number not in waiting]
            for number in running:
                self._hand_over(number, error, ended=True)
        else:
            self._hand_over_all(tokens)

    def _hand_over_all(self, answers: Sequence[Tokens | Failed]) -> None:
        for some in answers:
            if isinstance(some, Failed):
                log.error("a request could not be answered", exc_info=some.error)
                self._hand_over(some.number, some.error, ended=True)
                _recover(some.error)
            else:
                self._hand_over(some.number, some, ended=some.end is not None)

    def _hand_over(self, number: int, content: Tokens | Exception, *, ended: bool) -> None:
        with self._changed:
            deliver = self._deliver.pop(number, None) if ended else self._deliver.get(number)
        if deliver is not None:
            deliver(content)


def _recover(error: Exception) -> None:
    if is_allocation_failure(error):
        free_cached_memory()
