"""The connection to an MLflow server: whether it answers, waiting until it does, and the error when it does not."""

import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from clusterlora.errors import BadSettings, ServiceDown
from clusterlora.stores.outbox import pauses

T = TypeVar("T")

_HEALTH_SECONDS = 5.0
_CREDENTIALS = re.compile(r"//[^/@]*@")


def pages(search: Callable[..., PagedList[T]], *args: Any, **options: Any) -> Iterator[T]:
    """Yield all that one of the client's searches finds; a search returns a page."""
    page = search(*args, **options)
    yield from page
    while page.token:
        page = search(*args, **options, page_token=page.token)
        yield from page


def _is_address(uri: str) -> bool:
    """Return whether a text is the address of a server over HTTP."""
    try:
        parts = urllib.parse.urlsplit(uri)
        # A port that is no number is found out when it is read.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class MlflowServer:
    """An MLflow server by its address, with a client that no global setting of MLflow touches."""

    def __init__(self, uri: str, *, patience_seconds: float) -> None:
        """Remember the address; nothing is sent yet.

        Args:
            patience_seconds: how long an outage may last before a call gives up.

        Raises:
            BadSettings: not an http address. Processes that share a database without a server break each other's migrations.
        """
        if not _is_address(uri):
            raise BadSettings(f"MLflow tracking URI {uri!r} is not a server's address; start `mlflow server` and write http://host:port")
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.uri = uri
        self.patience_seconds = patience_seconds
        self.address = _CREDENTIALS.sub("//", uri).rstrip("/")
        self.display_name = f"MLflow at {_CREDENTIALS.sub('//***@', uri)}"
        self._health = f"{self.address}/health"

    def is_away(self) -> bool:
        """Return whether the server does not answer, or only a proxy in front of it does (status 5xx)."""
        try:
            urllib.request.urlopen(self._health, timeout=_HEALTH_SECONDS).close()
        except urllib.error.HTTPError as answer:
            answer.close()
            return answer.code >= 500
        except OSError as error:
            # With a certificate that only MLflow's own settings trust (MLFLOW_TRACKING_SERVER_CERT_PATH) it is there all the same.
            return not isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
        return False

    def call(self, what: str, send: Callable[[], T]) -> T:
        """Return what `send` returns, waiting for the server for up to `patience_seconds`.

        Raises:
            ServiceDown: the server is away, or refuses.
            BadSettings: it refuses the credentials.
        """
        began = time.monotonic()
        for pause in pauses():
            # Checked first: MLflow's own client takes minutes to notice an outage.
            if not self.is_away():
                try:
                    return send()
                except MlflowException as error:
                    if error.get_http_status_code() in (401, 403) or "You are not authenticated" in str(error):
                        raise BadSettings(
                            f"{self.display_name} does not let you in for {what}; set MLFLOW_TRACKING_USERNAME and "
                            "MLFLOW_TRACKING_PASSWORD to an account of it"
                        ) from error
                    if not self.is_away():
                        raise ServiceDown(f"{self.display_name} refused {what}: {str(error).partition(chr(10))[0]}") from error
            if time.monotonic() - began + pause > self.patience_seconds:
                break
            time.sleep(pause)
        raise ServiceDown(f"{self.display_name} does not answer to {what}; start it (`clusterlora up`) or correct MLFLOW_TRACKING_URI")
