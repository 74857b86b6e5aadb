"""The model that a server answers with: loaded from a registry or a folder, and replaced when its alias moves; no request is dropped."""

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clusterlora.adapters.held import HeldAdapters
from clusterlora.engine.continuous_batch import continuous_batch
from clusterlora.engine.decoder_inference import DecoderInference
from clusterlora.engine.memory import free_cached_memory, is_allocation_failure
from clusterlora.errors import BadData, BadSettings
from clusterlora.models.device import usual_device
from clusterlora.serving import MOST_RESIDENT
from clusterlora.serving.exported import router_of_export
from clusterlora.serving.router import Prepared, Request, Router
from clusterlora.serving.scheduler import Busy, Closed, Scheduler
from clusterlora.stores.mlflow_models import Registry
from clusterlora.stores.routing_table import read_routing_table

log = logging.getLogger(__name__)

_RETRY_SECONDS, _MAX_RETRY_SECONDS = 10.0, 600.0
"""Until a version that could not be loaded is tried again: at first, doubled after every try, and at most."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version of a model in memory."""

    name: str
    version: str
    router: Router


class Source(Protocol):
    """Where a model comes from."""

    def version(self) -> str:
        """Return the version that is to answer."""
        ...

    def load(self, version: str, folder: Path, previous: Router | None) -> Loaded:
        """Return a version in memory, whose files may be kept in a folder of its own; `previous` may lend its base model."""
        ...


class RegistrySource:
    """A registered model by a reference, whose alias may move."""

    def __init__(self, registry: Registry, reference: str, *, n_resident: int = MOST_RESIDENT) -> None:
        self._registry, self._reference, self._n_resident = registry, reference, n_resident

    def version(self) -> str:
        """See `Source`."""
        return self._registry.version(self._reference).version

    def load(self, version: str, folder: Path, previous: Router | None) -> Loaded:
        """See `Source`."""
        name = self._registry.version(self._reference).name
        chosen = self._registry.version(f"{name}/{version}")
        artifacts = self._registry.download(chosen, folder)
        table = read_routing_table((artifacts / "routes.json").read_text(encoding="utf-8"))
        adapters = HeldAdapters.of_model(artifacts / "adapters")
        base = previous.base if previous is not None and _can_lend(previous, table.model, table.base_revision) else None
        router = Router(table, adapters, device=usual_device(), base=base, n_resident=self._n_resident)
        return Loaded(chosen.name, version, router)


def _can_lend(previous: Router, model: object, revision: str) -> bool:
    """Return whether another router may use the same base model; only the written-out decoder leaves it as it is."""
    same = previous.table.model == model and previous.table.base_revision == revision
    return same and isinstance(previous.backend, DecoderInference)


class FolderSource:
    """A folder that `registry export` has written; it has one version."""

    def __init__(self, folder: Path, *, n_resident: int = MOST_RESIDENT) -> None:
        self._folder, self._n_resident = folder, n_resident

    def version(self) -> str:
        """See `Source`."""
        return "1"

    def load(self, version: str, folder: Path, previous: Router | None) -> Loaded:  # noqa: ARG002
        """See `Source`."""
        router = router_of_export(self._folder, n_resident=self._n_resident)
        return Loaded(router.table.study, version, router)


class Served:
    """A loaded model that answers: its scheduler, and one thread that encodes prompts for it."""

    def __init__(self, loaded: Loaded, files: tempfile.TemporaryDirectory[str], *, n_slots: int, max_waiting: int) -> None:
        """Prepare a model. Raises BadData if it chooses labels, which is no conversation; BadSettings if the slots do not fit."""
        if labels := loaded.router.table.labels:
            raise BadData(
                f"model {loaded.name}, version {loaded.version}, chooses one of {len(labels)} labels by their likelihood, which a chat "
                "server does not; ask it with `mlflow models serve`, or by Router.answer"
            )
        model = loaded.router.table.model
        self.name, self.version, self.router = loaded.name, loaded.version, loaded.router
        self.n_tokens = model.max_length + loaded.router.table.max_new_tokens
        """Tokens of the longest prompt and its answer together."""
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encoding")
        self._n_encoding, self._counting = 0, threading.Lock()
        try:
            batch = continuous_batch(loaded.router.backend, n_rows=n_slots, n_tokens=self.n_tokens)
        except (RuntimeError, MemoryError) as problem:
            if not is_allocation_failure(problem):
                raise
            raise BadSettings(
                f"memory for {n_slots} slots of {self.n_tokens} tokens cannot be allocated ({str(problem).partition(chr(10))[0]:.200}); "
                "give fewer --slots"
            ) from problem
        self.scheduler = Scheduler(batch, max_waiting=max_waiting)
        self._files = files

    def prepare(self, request: Request) -> "Future[Prepared]":
        """Let the encoding thread call `Router.prepare`.

        Raises:
            Busy: as many requests are encoded, wait and run as there are slots and places in the queue.
            Closed: the model has been closed.
        """
        with self._counting:
            if self._n_encoding + self.scheduler.n_unanswered >= self.scheduler.capacity:
                raise Busy
            try:
                prepared = self._encoding.submit(self.router.prepare, request)
            except RuntimeError as problem:
                raise Closed from problem
            self._n_encoding += 1
        prepared.add_done_callback(self._encoded)
        return prepared

    def _encoded(self, _prepared: "Future[Prepared]") -> None:
        with self._counting:
            self._n_encoding -= 1

    def close(self) -> None:
        """Answer what was taken, then free the memory and remove the files."""
        self.scheduler.close()
        self._encoding.shutdown()
        self.router.backend.close()
        self._files.cleanup()


@dataclass(frozen=True, slots=True)
class _FailedLoad:
    """A version that could not be loaded, why, how often it was tried, and when it may be tried again."""

    version: str
    why: str
    n_tries: int
    retry_at: float


class LiveModel:
    """The served model, looked up anew every `watch_seconds`. `current` may change between two requests, never within one."""

    def __init__(
        self,
        source: Source,
        *,
        n_slots: int,
        max_waiting: int,
        watch_seconds: float | None = None,
        tell: Callable[[str, Served | None], None] = lambda _outcome, _served: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load the model. Raises what the source raises.

        Args:
            tell: called with `loaded` and the model after each load, with `failed` and None after one that failed.
        """
        self._source, self._n_slots, self._max_waiting = source, n_slots, max_waiting
        self._tell, self._clock = tell, clock
        self._failed: _FailedLoad | None = None
        self._stopping = threading.Event()
        self.current = self._load(source.version(), None)
        self._watch = threading.Thread(target=self._watch_alias, args=(watch_seconds,), name="watching", daemon=True)
        if watch_seconds is not None:
            self._watch.start()

    def close(self) -> None:
        """Stop watching, answer what was taken, and free the model."""
        self._stopping.set()
        if self._watch.is_alive():
            self._watch.join()
        self.current.close()

    def refresh(self) -> bool:
        """Load the version that is to answer, if another one does; return whether it was another one and could be loaded.

        While that takes, and for all requests that were taken before, the former one answers. A version that could not be loaded is tried
        again after a while.
        """
        version = "?"
        try:
            version = self._source.version()
            if version == self.current.version or self._is_too_soon(version):
                return False
            fresh = self._load(version, self.current.router)
        except Exception as problem:  # noqa: BLE001  (whatever it was, the next version must be looked for)
            self._note_failure(version, f"{type(problem).__name__}: {problem}")
            fresh = None
        if fresh is None:
            # Not in the handler, in which the exception still holds what was loaded.
            free_cached_memory()
            return False
        former, self.current = self.current, fresh
        self._failed = None
        log.info("%s: version %s answers, in place of %s", fresh.name, fresh.version, former.version)
        try:
            former.close()
        except Exception:
            log.exception("%s version %s could not be removed from memory", former.name, former.version)
        return True

    def _is_too_soon(self, version: str) -> bool:
        return self._failed is not None and self._failed.version == version and self._clock() < self._failed.retry_at

    def _note_failure(self, version: str, why: str) -> None:
        """Count a try, and log it unless the one before failed alike."""
        before = self._failed if self._failed is not None and self._failed.version == version else None
        if before is None or before.why != why:
            log.warning("%s version %s goes on answering; version %s: %s", self.current.name, self.current.version, version, why)
        n_tries = before.n_tries + 1 if before is not None else 1
        wait = min(_RETRY_SECONDS * 2.0 ** min(n_tries - 1, 16), _MAX_RETRY_SECONDS)
        self._failed = _FailedLoad(version, why, n_tries, self._clock() + wait)
        self._tell("failed", None)

    def _load(self, version: str, previous: Router | None) -> Served:
        files = tempfile.TemporaryDirectory(prefix="clusterlora-serve-")
        try:
            loaded = self._source.load(version, Path(files.name), previous)
            served = Served(loaded, files, n_slots=self._n_slots, max_waiting=self._max_waiting)
        except BaseException:
            files.cleanup()
            raise
        self._tell("loaded", served)
        return served

    def _watch_alias(self, seconds: float) -> None:
        while not self._stopping.wait(seconds):
            self.refresh()
