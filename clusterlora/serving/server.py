"""The server process: an address, the checks before the API, and an end that drops no request."""

import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn

from clusterlora.errors import BadSettings
from clusterlora.serving.guard import Guard
from clusterlora.serving.keys import ApiKeys
from clusterlora.serving.live_model import LiveModel, Served, Source
from clusterlora.serving.metrics import ServerMetrics
from clusterlora.serving.openai_api import ChatApi
from clusterlora.serving.origin_check import LOOPBACK

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a server listens and what it takes. `names` are those by which it may be called besides its address."""

    host: str = LOOPBACK
    port: int = 8000
    names: tuple[str, ...] = ()
    n_slots: int = 16
    max_waiting: int = 256
    requests_per_minute: int | None = None
    max_body_bytes: int = 1 << 20
    watch_seconds: float | None = 10.0
    stop_seconds: int = 60


def listen(settings: ServerSettings, *, has_keys: bool) -> socket.socket:
    """Return a socket at the server's address, before any model is loaded.

    Raises:
        BadSettings: the address is not of this machine or in use, or others could reach it without a key.
    """
    try:
        address = ipaddress.ip_address(LOOPBACK if settings.host == "localhost" else settings.host)
    except ValueError:
        raise BadSettings(
            f"--host {settings.host!r} is not an IP address; write 127.0.0.1, 0.0.0.0, or an address of this machine"
        ) from None
    if not address.is_loopback and not has_keys:
        raise BadSettings(f"--no-key would let everybody who reaches {settings.host} ask; listen on 127.0.0.1, or leave --no-key out")
    listener = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((str(address), settings.port))
    except OSError as problem:
        listener.close()
        raise BadSettings(
            f"cannot listen on {settings.host}:{settings.port} ({problem.strerror}); give another --host or --port"
        ) from problem
    return listener


class ModelServer:
    """A server of one model. `run` returns when it is stopped by SIGTERM or SIGINT, or by `stop`."""

    def __init__(self, source: Source, listener: socket.socket, settings: ServerSettings, keys: ApiKeys | None) -> None:
        """Load the model. Raises what the source raises."""
        metrics = self.metrics = ServerMetrics(n_running=lambda: self._count("n_running"), n_waiting=lambda: self._count("n_waiting"))
        self._live_or_none: LiveModel | None = None
        self._listener = listener

        def tell(outcome: str, served: Served | None) -> None:
            metrics.loads.labels(outcome).inc()
            if served is not None:
                metrics.model.clear()
                metrics.model.labels(served.name, served.version).set(1)

        self.live = self._live_or_none = LiveModel(
            source, n_slots=settings.n_slots, max_waiting=settings.max_waiting, watch_seconds=settings.watch_seconds, tell=tell
        )
        api = ChatApi(self.live, metrics, max_body_bytes=settings.max_body_bytes)
        guard = Guard(
            api.app(),
            host=settings.host,
            names=settings.names,
            keys=keys,
            requests_per_minute=settings.requests_per_minute,
            on_refusal=lambda status: metrics.requests.labels(str(status)).inc(),
        )
        configuration = uvicorn.Config(
            guard,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=60,
            timeout_graceful_shutdown=settings.stop_seconds,
        )
        self._server = _Server(configuration, api)

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self._listener.getsockname()[1])

    def run(self, announce: Callable[[], None] = lambda: None) -> None:
        """Answer until stopped, then finish the requests that run; `announce` is called once it accepts requests."""
        self._server.announce = announce
        try:
            self._server.run(sockets=[self._listener])
        finally:
            self._listener.close()
            self.live.close()

    def stop(self) -> None:
        """Let `run` finish what runs and return."""
        self._server.handle_exit(signal.SIGTERM, None)

    def _count(self, what: str) -> int:
        return getattr(self._live_or_none.current.scheduler, what) if self._live_or_none is not None else 0


class _Server(uvicorn.Server):
    """Tells the API when it begins to accept requests, and when it is about to stop."""

    announce: Callable[[], None]

    def __init__(self, configuration: uvicorn.Config, api: ChatApi) -> None:
        super().__init__(configuration)
        self._api = api

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._api.is_stopping = True
        super().handle_exit(sig, frame)
