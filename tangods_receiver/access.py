"""Who may use the HTTP side: names under which it answers, pages that may talk to it, and the token for what changes
something. Pure ASGI: it stands in front of every route and WebSocket, those to come included."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import os
import re
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

from tangods_receiver.errors import ConfigError

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

READING = ("GET", "HEAD")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MIN_TOKEN = 16  # characters; what is shorter can be guessed
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/=-]{{{MIN_TOKEN},512}}")  # what fits into a header, RFC 6750
READ_ONLY = (
    "this receiver is read-only over HTTP: configure http_token_file (Tango property TokenFile), and send the token in "
    "that file as 'Authorization: Bearer ...'"
)


class TokenFile:
    """A secret in a file that its owner alone can read; a new content counts at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._mark: tuple[int, ...] = ()
        self._token = ""

    def create(self) -> bool:
        """A new secret where no file is yet; True when it was made. ConfigError: it cannot be."""
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        except OSError as exc:
            raise ConfigError(f"token file {self.path}: cannot be made ({exc.strerror}); name another place") from exc
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        return True

    def read(self) -> str:
        """The token. ConfigError: there is none, or others can read it, and what to do."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise ConfigError(f"token file {self.path}: cannot be read ({exc.strerror})") from exc
        try:
            now = os.fstat(fd)
            if not stat.S_ISREG(now.st_mode):
                raise ConfigError(f"token file {self.path}: not a plain file")
            if now.st_mode & 0o077:
                raise ConfigError(
                    f"token file {self.path}: others can use it (mode {now.st_mode & 0o777:03o}): "
                    f"chmod 600 {self.path}, and put a new token into it"
                )
            mark = (now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns, now.st_size)
            if mark != self._mark:
                self._token = self._checked(os.read(fd, 4096))
                self._mark = mark
        finally:
            os.close(fd)
        return self._token

    def _checked(self, content: bytes) -> str:
        token = content.decode("ascii", "replace").strip()
        if not _TOKEN.fullmatch(token):
            raise ConfigError(
                f"token file {self.path}: holds no token of at least {MIN_TOKEN} characters out of A-Z a-z 0-9 ._~+/=-"
            )
        return token

    def fits(self, authorization: str) -> bool:
        """Does a header `Authorization` carry the token? It takes as long for a good guess as for a bad one."""
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.read().encode())
        return same and scheme.lower() == "bearer"


def authorization(token_file: TokenFile | None) -> dict[str, str]:
    """Headers of a request that changes something; ConfigError: the file cannot be used."""
    return {} if token_file is None else {"Authorization": f"Bearer {token_file.read()}"}


class Names:
    """Host names under which this machine may be asked: any other in a request is a page of somebody else, whose name
    was made to point here (DNS rebinding)."""

    def __init__(self, bound: str, more: Iterable[str] = ()) -> None:
        """`bound` is the host of the address that is listened at; `more` what the configuration adds."""
        self._known = {*LOOPBACK, _plain(bound), *(_plain(name) for name in more)}
        self._looked_up = False

    def know(self, host: str, asked_at: str) -> bool:
        """Is it ours? `host` without port; `asked_at` is the address at which the connection arrived. It may ask the
        name service, once."""
        name = _plain(host)
        if name in self._known or (_is_address(name) and name == _plain(asked_at)):
            return True
        if not self._looked_up and not _is_address(name):
            own = {_plain(socket.gethostname()), _plain(socket.getfqdn())}
            self._known |= own | {name.partition(".")[0] for name in own}
            self._looked_up = True
        return name in self._known

    @property
    def settled(self) -> bool:
        """No answer takes time any more."""
        return self._looked_up


def _plain(host: str) -> str:
    name = host.strip().strip("[]").rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def host_of(header: str) -> str:
    """The host of a `Host` header, without its port; "" when it is none."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?", header.strip())
    return found[1].strip("[]") if found else ""


class Guard:
    """Lets through what may be asked; answers everything else with a sentence."""

    def __init__(self, app: App, names: Names, token_file: TokenFile | None) -> None:
        self._app = app
        self._names = names
        self._token_file = token_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refused = await self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(scope["type"], send, *refused)

    async def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status code and sentence; None: nothing is wrong with it."""
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        host = host_of(hosts[0]) if len(hosts) == 1 else ""
        if not host or not await self._is_ours(host, scope):
            shown = ", ".join(hosts)[:100]
            return 421, (
                f"{shown!r} is no name of this receiver: use the name of its computer, or add yours to http_hosts"
            )
        changes = scope["type"] == "http" and scope["method"] not in READING
        if (changes or scope["type"] == "websocket") and any(not _same(origin, hosts[0]) for origin in origins):
            return 403, f"a page of {', '.join(origins)[:100]!r} may not use this receiver"
        return self._without_token(scope) if changes else None

    async def _is_ours(self, host: str, scope: Scope) -> bool:
        asked_at = (scope.get("server") or ("",))[0]
        if self._names.settled:
            return self._names.know(host, asked_at)
        from starlette.concurrency import run_in_threadpool  # clients need only the token of this module

        return await run_in_threadpool(self._names.know, host, asked_at)

    def _without_token(self, scope: Scope) -> tuple[int, str] | None:
        if self._token_file is None:
            return 403, READ_ONLY
        given = _values(scope, b"authorization")
        try:
            fits = self._token_file.fits(given[0] if len(given) == 1 else "")
        except ConfigError as exc:
            log.error("%s", exc)
            return 503, str(exc)
        if fits:
            return None
        log.warning("%s %s refused: %s token", scope["method"], scope["path"], "wrong" if given else "no")
        return 401, "send the token of the receiver's http_token_file as 'Authorization: Bearer ...'" + (
            "; the one that came is another" if given else ""
        )


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _same(origin: str, host: str) -> bool:
    """Did the page come from the host and port that it now talks to?"""
    scheme, _, place = origin.partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme.lower())
    if default is None:
        return False
    return place.lower().removesuffix(default) == host.strip().lower().removesuffix(default)


async def _refuse(kind: str, send: Send, code: int, sentence: str) -> None:
    prefix = "websocket.http.response" if kind == "websocket" else "http.response"
    body = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),  # what else it sends is not read
    ]
    if code == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": f"{prefix}.start", "status": code, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body})
