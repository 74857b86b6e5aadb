"""Which requests a local server refuses whatever their password: foreign hosts (DNS rebinding) and pages of other origins."""

import ipaddress
from collections.abc import Collection, Mapping

LOOPBACK = "127.0.0.1"
_IPV4_LOOPBACK, _IPV6_LOOPBACK = ipaddress.ip_address(LOOPBACK), ipaddress.ip_address("::1")


def refusal_reason(headers: Mapping[str, str], method: str, host: str, *, names: Collection[str] = ()) -> str | None:
    """Return why a request is refused regardless of its password; None if it is not.

    Args:
        host: address on which the server listens.
        names: further names by which it may be called.
    """
    # Host names ignore case.
    requested = headers.get("host", "").lower()
    if not _is_own_name(_name(requested), host, names):
        return f"this server is not called {requested!r}; open it by its address"
    # Host and Origin are compared with each other, not with the server's port: through an SSH tunnel it has another one.
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != requested:
        return f"pages of {origin} may not use this server"
    # Requests without Origin (images, scripts, frames) have Sec-Fetch headers; from another site only a link is allowed.
    is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document" and method == "GET"
    if headers.get("sec-fetch-site", "none") in ("cross-site", "same-site") and not is_link:
        return "pages of other origins may not use this server"
    return None


def _name(host: str) -> str:
    return host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]


def _is_own_name(name: str, host: str, names: Collection[str]) -> bool:
    if name in {"localhost", host.lower(), *(other.lower() for other in names)}:
        return True
    address, own = _address(name), _address(host)
    if address is None:
        return False
    if address in (_IPV4_LOOPBACK, own):
        return True
    # An IP address cannot be rebound, as a name can. A server that listens on all interfaces is reached by any of their addresses.
    is_own_loopback = own is not None and own.version == address.version == 6 and address == _IPV6_LOOPBACK
    return own is not None and own.is_unspecified and (not address.is_loopback or is_own_loopback)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
