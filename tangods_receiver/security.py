"""CURVE keys in files, and who may connect: optional encryption and authentication of the ZeroMQ ports."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import zmq
from zmq.utils import z85

from tangods_receiver.errors import ConfigError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_FILE = 65536  # bytes of a key file
SECRET_MODE, PUBLIC_MODE = 0o600, 0o644
OTHERS_TOUCH = 0o077  # mode bits that a secret file must not have
OTHERS_WRITE = 0o002  # and those of files and directories that say who is trusted
_LINE = re.compile(rb"(?m)^[ \t]*(public|secret)-key[ \t]*=[ \t]*[\"']?([^\"'\s]*)[\"']?[ \t]*\r?$")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
HEAD = "# ZeroMQ CURVE {kind} key of {name}. {advice}\nmetadata\ncurve\n"


@dataclass(frozen=True)
class KeyPair:
    """As libzmq takes them: 40 characters each."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Credentials:
    """What a socket that connects needs: who it is, and whom it expects to find."""

    own: KeyPair
    server: bytes


class Clients:
    """The public keys in a directory, one `NAME.key` each. It is looked at again for every connection: keys may come
    and go while the port is in use."""

    def __init__(self, directory: Path) -> None:
        """ConfigError: one of the files is wrong, or there is none."""
        self.directory = directory
        self._state = self._look()
        self._names, problems = self._load()
        if not problems and not self._names:
            problems = [f"{directory} holds no public key: put a NAME.key file there for each client"]
        if problems:
            raise ConfigError("; ".join(problems))

    def name(self, key: bytes) -> tuple[str, list[str]]:
        """Whose key this is ("": nobody's), and what is wrong in the directory if that has changed."""
        problems: list[str] = []
        if (state := self._look()) != self._state:
            self._names, problems = self._load()  # what is wrong lets nobody in
            self._state = state
        return self._names.get(key, ""), problems

    def _look(self) -> object:
        """It differs when a file, or its permissions, changed."""
        try:
            files = [(f.name, f.stat()) for f in os.scandir(self.directory) if f.name.endswith(".key")]
            about = [(name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_mode) for name, s in files]
            return os.stat(self.directory).st_mode, sorted(about)
        except OSError as exc:
            return exc.errno

    def _load(self) -> tuple[dict[bytes, str], list[str]]:
        found: dict[bytes, str] = {}
        problems = []
        try:
            if self.directory.stat().st_mode & OTHERS_WRITE:
                return {}, [f"{self.directory} may be written by everybody, who could let himself in: chmod o-w"]
            files = sorted(f for f in self.directory.iterdir() if f.suffix == ".key")
        except OSError as exc:
            return {}, [f"{self.directory} cannot be read ({exc.strerror})"]
        for file in files:
            try:
                found[public_key(file)] = file.stem
            except ConfigError as exc:
                problems.append(str(exc))
        return found, problems


@dataclass(frozen=True)
class Guard:
    """Who may connect to a port of ours. `own` None: no CURVE, only addresses; `allowed` empty: from everywhere."""

    own: KeyPair | None = None
    clients: Clients | None = None
    allowed: tuple[Network, ...] = ()

    def admits(self, address: str) -> bool:
        """Its address is one of those allowed."""
        if not self.allowed:
            return True
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        same = {peer, peer.ipv4_mapped or peer} if isinstance(peer, ipaddress.IPv6Address) else {peer}
        return any(one in network for network in self.allowed for one in same)


@dataclass(frozen=True)
class Security:
    """Of a receiver: credentials for each endpoint (none: no CURVE) and the guard of the forwarding port."""

    inputs: tuple[Credentials, ...] = ()
    guard: Guard | None = None


class Settings(Protocol):
    """What a receiver's configuration says about it."""

    @property
    def endpoints(self) -> Sequence[str]: ...
    @property
    def forward(self) -> object: ...
    @property
    def curve_key(self) -> str: ...
    @property
    def curve_server_keys(self) -> Sequence[str]: ...
    @property
    def curve_clients(self) -> str: ...
    @property
    def allow_peers(self) -> Sequence[str]: ...


# --- what is configured ----------------------------------------------------------------------------------------------


def of_receiver(settings: Settings) -> Security:
    """Keys and files are read now; ConfigError with all that is wrong."""
    wrong: list[str] = []
    own: KeyPair | None = None
    servers: list[bytes] = []
    guard = None
    count = len(settings.endpoints)
    with _noting("curve_key", wrong):
        if settings.curve_key:
            own = key_pair(settings.curve_key)
            if not settings.curve_server_keys and not settings.curve_clients:
                raise ConfigError(
                    "is not used without curve_server_keys (for the endpoints) or curve_clients (for the forwarding "
                    "port)"
                )
    if settings.curve_server_keys and len(settings.curve_server_keys) not in (1, count):
        wrong.append(
            f"curve_server_keys: {len(settings.curve_server_keys)} for {count} endpoints; give one for all, or one for "
            "each in their order"
        )
    for file in settings.curve_server_keys:
        with _noting("curve_server_keys", wrong):
            servers.append(public_key(file))
    if settings.curve_server_keys and not settings.curve_key:
        wrong.append("curve_key: missing, the receiver's own .key_secret file; curve_server_keys needs it")
    for key in ("curve_clients", "allow_peers"):
        if getattr(settings, key) and not settings.forward:
            wrong.append(
                f"{key}: is for the forwarding port, and `forward` is empty; data sockets connect, to `endpoints` only"
            )
    with _noting("", wrong):
        guard = _guard(settings.curve_key, own, settings.curve_clients, settings.allow_peers)
    if wrong:
        raise ConfigError("; ".join(wrong))
    each = servers * (count if len(servers) == 1 else 1)
    return Security(tuple(Credentials(own, server) for server in each if own), guard)


def guard(curve_key: str, curve_clients: str, allow_peers: Sequence[str]) -> Guard | None:
    """Of a sender's port; None: nothing is configured. ConfigError with all that is wrong."""
    wrong: list[str] = []
    own = found = None
    with _noting("curve_key", wrong):
        if curve_key:
            own = key_pair(curve_key)
            if not curve_clients:
                raise ConfigError("needs curve_clients, the directory with the public keys of who may connect")
    with _noting("", wrong):
        found = _guard(curve_key, own, curve_clients, allow_peers)
    if wrong:
        raise ConfigError("; ".join(wrong))
    return found


def _guard(curve_key: str, own: KeyPair | None, curve_clients: str, allow_peers: Sequence[str]) -> Guard | None:
    wrong: list[str] = []
    clients = None
    allowed: list[Network] = []
    with _noting("curve_clients", wrong):
        if curve_clients:
            if not curve_key:
                wrong.append("curve_key: missing, this side's own .key_secret file; curve_clients needs it")
            clients = Clients(Path(curve_clients).expanduser())
    for text in allow_peers:
        try:
            allowed.append(network(text))
        except ValueError as exc:
            wrong.append(f"allow_peers: {exc}")
    if wrong:
        raise ConfigError("; ".join(wrong))
    return Guard(own if clients else None, clients, tuple(allowed)) if clients or allowed else None


@contextmanager
def _noting(key: str, wrong: list[str]) -> Iterator[None]:
    """A ConfigError becomes one of the things that are wrong."""
    try:
        yield
    except ConfigError as exc:
        wrong.append(f"{key}: {exc}" if key else str(exc))


def network(text: str) -> Network:
    """An address, or a network such as 10.0.3.0/24; ValueError says what is wrong."""
    try:
        return ipaddress.ip_network(text.strip())
    except ValueError as exc:
        raise ValueError(f"{text!r} is no address or network such as 10.0.3.7 or 10.0.3.0/24 ({exc})") from exc


# --- sockets ---------------------------------------------------------------------------------------------------------


def secure_client(socket: zmq.Socket[Any], credentials: Credentials) -> None:
    """Before it connects; on all its connections."""
    _need_curve()
    socket.curve_publickey, socket.curve_secretkey = credentials.own.public, credentials.own.secret
    socket.curve_serverkey = credentials.server


def _need_curve() -> None:
    if not zmq.has("curve"):
        raise ConfigError("this libzmq was built without CURVE: install pyzmq from PyPI, or leave curve_key empty")


# --- files -----------------------------------------------------------------------------------------------------------


def key_pair(path: str | Path) -> KeyPair:
    """From a `.key_secret` file; ConfigError: others may read it, or it is damaged."""
    _need_curve()
    keys = _keys(path, OTHERS_TOUCH, "others may read or change this secret key: chmod 600")
    if b"secret" not in keys:
        raise ConfigError(f"{path} holds no secret key: give the .key_secret file")
    try:
        public = zmq.curve_public(keys[b"secret"])
    except zmq.ZMQError as exc:
        raise ConfigError(f"{path}: the secret key is damaged ({exc})") from exc
    if keys.get(b"public", public) != public:
        raise ConfigError(f"{path}: the public and the secret key in it do not belong together")
    return KeyPair(public, keys[b"secret"])


def public_key(path: str | Path) -> bytes:
    """From a `.key` file; ConfigError: it is no such file, or anybody may change it."""
    keys = _keys(path, OTHERS_WRITE, "everybody may change this key: chmod o-w")
    if b"secret" in keys:
        raise ConfigError(f"{path} holds a secret key, which belongs to one machine only: give the .key file")
    if b"public" not in keys:
        raise ConfigError(f"{path} holds no public key: give the .key file that `tangods-detector keygen` made")
    return keys[b"public"]


def _keys(path: str | Path, forbidden: int, advice: str) -> dict[bytes, bytes]:
    """What a file in the form of zmq.auth holds."""
    try:
        number = os.open(Path(path).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(number)
            if not stat.S_ISREG(about.st_mode):
                raise ConfigError(f"{path} is no file")
            if about.st_mode & forbidden:
                raise ConfigError(f"{path}: {advice} (its permissions are {stat.S_IMODE(about.st_mode):04o})")
            content = os.read(number, MAX_FILE)
        finally:
            os.close(number)
    except (OSError, ValueError, RuntimeError) as exc:  # a path that cannot be one
        raise ConfigError(f"{path} cannot be read ({getattr(exc, 'strerror', None) or exc})") from exc
    keys: dict[bytes, bytes] = {}
    for kind, key in _LINE.findall(content):
        if kind in keys:
            raise ConfigError(f"{path} holds more than one {kind.decode()} key")
        if not _is_key(key):
            raise ConfigError(f"{path}: the {kind.decode()} key is not 40 characters in Z85")
        keys[kind] = key
    return keys


def _is_key(text: bytes) -> bool:
    try:
        return len(text) == 40 and z85.encode(z85.decode(text)) == text
    except Exception:  # whatever the library makes of foreign characters
        return False


def generate(name: str, directory: str | Path = ".") -> tuple[Path, Path]:
    """Make a pair of keys, NAME.key and NAME.key_secret; ConfigError: it is there already, or cannot be written."""
    _need_curve()
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r}: the name of a key has letters, digits, and . _ - in it")
    folder = Path(directory).expanduser()
    public, secret = folder / f"{name}.key", folder / f"{name}.key_secret"
    there = [str(file) for file in (public, secret) if os.path.lexists(file)]
    if there:
        raise ConfigError(f"there is {' and '.join(there)} already: choose another name, or move it away")
    key = dict(zip(("public", "secret"), (k.decode() for k in zmq.curve_keypair()), strict=True))
    lines = {kind: f'    {kind}-key = "{text}"\n' for kind, text in key.items()}
    head = HEAD.format(kind="secret", name=name, advice="It stays on this machine, mode 0600.")
    _create(secret, head + lines["public"] + lines["secret"], SECRET_MODE)
    try:
        head = HEAD.format(kind="public", name=name, advice="Give it to those who talk with it.")
        _create(public, head + lines["public"], PUBLIC_MODE)
    except ConfigError:
        secret.unlink()
        raise
    return public, secret


def generate_token(path: str | Path) -> Path:
    """Make a file with a random word in one line, mode 0600; ConfigError: it is there already, or cannot be written."""
    file = Path(path).expanduser()
    _create(file, secrets.token_urlsafe(32) + "\n", SECRET_MODE)
    return file


def _create(path: Path, content: str, mode: int) -> None:
    """Never replaces anything, and nobody sees it with other permissions."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(number, "w", encoding="ascii") as file:
            os.fchmod(number, mode)  # whatever the umask is
            file.write(content)
    except FileExistsError as exc:
        raise ConfigError(f"{path} is there already and is kept: choose another name, or move it away") from exc
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written ({exc.strerror})") from exc
