"""What systemd is told of a server: ready, stopping, and what it does, in a line. Nothing where there is no systemd."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)

PATIENCE = 5.0  # s; a manager that is busy lets datagrams wait, as many as max_dgram_qlen, and takes no more


def notify(*lines: str) -> None:
    """Send assignments such as READY=1 to the socket that NOTIFY_SOCKET names (sd_notify(3)). Never fails;
    STATUS alone, of which there will be another, does not wait for a busy manager.

    A datagram is all there is to it, and the libraries for it are not kept up or need systemd's headers."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket, as in containers
        address = f"\0{address[1:]}"
    text = "\n".join(line.replace("\n", " ") for line in lines)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
            one.settimeout(0.0 if text.startswith("STATUS=") else PATIENCE)
            one.sendto(text.encode(), address)
    except OSError as exc:
        log.debug("systemd at NOTIFY_SOCKET is not told %r: %s", text, exc.strerror or exc)
