"""Who may connect to stream and orders: addresses, and holders of CURVE keys. Python 3.6, see pilatus_stream.

The rest of the package has `tangods_receiver.security`, which an old Python cannot import; the keys are the same."""

import os
import stat
from typing import Any, Callable, Sequence

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

DOMAIN = "pilatus"
OTHERS_TOUCH = 0o077  # mode bits that a secret file must not have


class Guard:
    """Of the sockets that are bound with it. `allow` addresses ("": from everywhere); `key` the own .key_secret file;
    `clients` a folder with the .key files of those who may connect."""

    def __init__(self, allow: Sequence[str] = (), key: str = "", clients: str = "") -> None:
        """ValueError: a sentence."""
        if bool(key) != bool(clients):
            raise ValueError(
                "the own .key_secret file (--curve-key) goes with a folder of .key files (--curve-clients)"
            )
        self._allow, self._clients = tuple(allow), clients
        self._public = self._secret = b""
        if key:
            if not zmq.has("curve"):
                raise ValueError("this libzmq was built without CURVE")
            self._read(key)

    def _read(self, key: str) -> None:
        try:
            mode = stat.S_IMODE(os.stat(key).st_mode)
            if mode & OTHERS_TOUCH:
                raise ValueError(f"{key}: others may read or change this secret key: chmod 600 (it is {mode:04o})")
            public, secret = zmq.auth.load_certificate(key)
            names = [name for name in os.listdir(self._clients) if name.endswith(".key")]
        except OSError as exc:
            raise ValueError(f"{exc.filename or key} cannot be read ({exc.strerror or exc})") from exc
        if not secret:
            raise ValueError(f"{key} holds no secret key: give the .key_secret file")
        if not names:
            raise ValueError(f"{self._clients} holds no public key: put a NAME.key file there for each client")
        self._public, self._secret = public, secret

    def protect(self, context: Any, socket: Any) -> Callable[[], None]:
        """Before the socket binds; keys are read now. What it gives is called before the context ends."""
        if not self._allow and not self._secret:
            return lambda: None
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        if self._allow:
            authenticator.allow(*self._allow)
        socket.zap_domain = DOMAIN.encode("ascii")
        if self._secret:
            authenticator.configure_curve(domain=DOMAIN, location=self._clients)
            socket.curve_publickey, socket.curve_secretkey = self._public, self._secret
            socket.curve_server = True
        return authenticator.stop


NOBODY_IS_REFUSED = Guard()
