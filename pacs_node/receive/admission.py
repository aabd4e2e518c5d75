"""Who may open an association: the checks of PS3.8 9.3.4, as one function of the request and the
configuration.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pacs_node.config.model import Caller, Receive


@dataclass(frozen=True)
class Rejection:
    """An A-ASSOCIATE-RJ: result, source and diagnostic as in PS3.8 table 9-21, and why in words for the
    log.
    """

    result: int
    source: int
    diagnostic: int
    reason: str


def congested(reason: str) -> Rejection:
    """Transient, temporary congestion: the sender keeps its objects and tries again."""
    return Rejection(2, 3, 1, reason)


def admit(
    receive: Receive, own_ae: str, called_ae: str, calling_ae: str, address: str, associations: int
) -> Rejection | None:
    """Whether a request is accepted (None) or how it is rejected.

    ``address`` is the caller's IP address, ``associations`` how many there are with this one. Outer spaces of
    AE titles are not significant (PS3.5 6.2); case is.
    """
    if associations > receive.max_associations:
        return Rejection(2, 3, 2, f"more than receive.max_associations ({receive.max_associations}) at once")
    if receive.check_called_ae and called_ae.strip() != own_ae.strip():
        return Rejection(1, 1, 7, f"called AE title {called_ae!r} is not ours ({own_ae!r})")
    if receive.check_calling_ae:
        known = [caller for caller in receive.callers if caller.ae_title.strip() == calling_ae.strip()]
        if not known:
            return Rejection(1, 1, 3, f"calling AE title {calling_ae!r} is not in receive.callers")
        if not any(_comes_from(caller, address) for caller in known):
            return Rejection(
                1, 1, 3, f"{calling_ae!r} is not expected from {address}: see its host in receive.callers"
            )
    return None


def _comes_from(caller: Caller, address: str) -> bool:
    if caller.host is None:
        return True
    try:
        allowed = {entry[4][0] for entry in socket.getaddrinfo(caller.host, None)}
    except OSError:
        return False  # a name that does not resolve vouches for nobody
    return _plain(address) in {_plain(str(ip)) for ip in allowed}


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address that a dual-stack socket shows as ``::ffff:a.b.c.d`` is that IPv4 address."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
