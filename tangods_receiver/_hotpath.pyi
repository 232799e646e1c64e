from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zmq

from tangods_receiver.protocol import Buffer, Frame, Message
from tangods_receiver.records import ImageLayout, Record

class Part: ...

class Receiver:
    def __init__(
        self,
        socket: zmq.Socket[bytes],
        decode: Callable[[Sequence[Buffer]], Message] | None = None,
        itemsize: Mapping[str, int] | None = None,
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def full(self) -> bool: ...
    def take(self, messages: int, nbytes: int, parts: int) -> list[Frame | list[Any]]: ...

class Packed:
    def __init__(
        self, records: Sequence[Record], layout: ImageLayout, nonce: int, payload_crc: bool = False
    ) -> None: ...
    @property
    def total(self) -> int: ...
    @property
    def payload(self) -> int: ...
    @property
    def headers(self) -> bytes: ...
    def write(self, fd: int, offset: int) -> None: ...
