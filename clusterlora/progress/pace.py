"""How long the rest of a stretch of work takes, by its pace so far."""


class Pace:
    """The pace of a stretch of work since its first units were done: what is done once, before them, is no part of it."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def seconds_left(self, done: int, total: int, now: float) -> float | None:
        """Return how long the rest takes; None before there is a pace, or when nothing is left."""
        if self._first is None and done:
            self._first = (done, now)
        if self._first is None or not self._first[0] < done < total:
            return None
        n_first, began = self._first
        return (now - began) / (done - n_first) * (total - done)
