"""Where the viewer listens: its server tries in vain, and then waits for ever, where it cannot."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from divff_nerfstudio.schema import OptionError


def require_listening(host: str, port: int | None, option: str = "--viewer.websocket-host") -> None:
    """Looks whether a server can listen, before one is started.

    Args:
        host: Address to listen on.
        port: Port to listen on; a server goes on to those behind it where it is taken. None: any that is free.
        option: What a user gave the address by.

    Raises:
        OptionError: If the address is none of this machine, or all ports from this one on are taken.
    """
    with _told(host, option):
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        _try(family, kind, protocol, address)
    if port is None:
        return
    for each in range(port, 65536):
        with contextlib.suppress(OSError):
            return _try(family, kind, protocol, (address[0], each, *address[2:]))
    raise OptionError(
        f"{option.replace('host', 'port')} is {port}: no port from there on is free; take another, or leave it out."
    )


def _try(family: int, kind: int, protocol: int, address: tuple) -> None:
    with socket.socket(family, kind, protocol) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)


@contextlib.contextmanager
def _told(host: str, option: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise OptionError(
            f"{option} is {host}, where this machine cannot listen ({getattr(error, 'strerror', None) or error}): give "
            "one of its addresses, 127.0.0.1 for this machine alone, or 0.0.0.0 for the whole network."
        ) from None
