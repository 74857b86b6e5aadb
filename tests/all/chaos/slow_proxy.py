"""A TCP proxy that can delay every packet in both directions."""

import socket
import threading
import time
from contextlib import suppress

_PACKET_BYTES = 65536


class SlowProxy:
    """Listens on a loopback port and passes everything on; `delay_seconds` may change at any moment."""

    def __init__(self, target_port: int) -> None:
        self.delay_seconds = 0.0
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                caller.close()
                continue
            server.settimeout(None)
            for source, sink in ((caller, server), (server, caller)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while packet := source.recv(_PACKET_BYTES):
                time.sleep(self.delay_seconds)
                sink.sendall(packet)
        for end in (source, sink):
            # The other direction may have been first.
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
