"""The protocols of the receiver's input, by name: who decodes, how one connects, and who begins a series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tangods_receiver.protocol import Decode, dectris1, dectris2, stins


class Protocol(NamedTuple):
    """`decoder` makes what decodes the messages of one connection, which may remember earlier ones; it is given the
    number of the connection and how many there are. `subscribes` the usual socket is SUB, not PULL. `announces` start
    messages say when a series begins; False: whoever controls the detector must tell (`Engine.begin`), and frames
    outside a series are only shown. `itemsize` types whose plain frames the compiled receiver decodes itself."""

    about: str
    decoder: Callable[[int, int], Decode]
    subscribes: bool = False
    announces: bool = True
    itemsize: Mapping[str, int] | None = None


def _same(decode: Decode) -> Callable[[int, int], Decode]:
    """All connections are decoded alike, each message by itself."""
    return lambda connection, connections: decode


PROTOCOLS: dict[str, Protocol] = {
    "stins": Protocol("STINS, the streaming format of MAX IV", _same(stins.decode), itemsize=stins.ITEMSIZE),
    "dectris1": Protocol("Dectris stream V1 (legacy), of a SIMPLON control unit", _same(dectris1.decode)),
    "dectris2": Protocol("Dectris stream V2 (CBOR), of a SIMPLON control unit", _same(dectris2.decode)),
}
