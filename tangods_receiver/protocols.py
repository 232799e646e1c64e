"""The protocols of the receiver's input, by name: who decodes, how one connects, and who begins a series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tangods_receiver.protocol import Decode, Images, array1, dectris1, dectris2, slsdet, stins, xspd


class Protocol(NamedTuple):
    """`decoder` makes what decodes the messages of one connection, which may remember earlier ones; it is given the
    number of the connection and how many there are. `subscribes` the usual socket is SUB, not PULL. `announces` start
    messages say when a series begins; False: whoever controls the detector must tell (`Engine.begin`), and frames
    outside a series are only shown. `itemsize` types whose plain frames the compiled receiver decodes itself.
    `prepare` makes such a `decoder` for one receiver, where connections must agree with each other, or messages do not
    tell all (`images`: how images are must be configured); each connection is then read in order. `ports` each
    endpoint sends one module of the images."""

    about: str
    decoder: Callable[[int, int], Decode] | None
    subscribes: bool = False
    announces: bool = True
    itemsize: Mapping[str, int] | None = None
    prepare: Callable[[Images | None], Callable[[int, int], Decode]] | None = None
    images: bool = False
    ports: bool = False

    @property
    def in_order(self) -> bool:
        """A frame finds its place by those that came before it."""
        return self.prepare is not None or not self.announces

    def decoders(self, images: Images | None = None) -> Callable[[int, int], Decode]:
        """Makes the decoders of one receiver, each for a connection."""
        if self.prepare is not None:
            return self.prepare(images)
        assert self.decoder is not None
        return self.decoder


def _same(decode: Decode) -> Callable[[int, int], Decode]:
    """All connections are decoded alike, each message by itself."""
    return lambda connection, connections: decode


PROTOCOLS: dict[str, Protocol] = {
    "stins": Protocol("STINS, the streaming format of MAX IV", _same(stins.decode), itemsize=stins.ITEMSIZE),
    "dectris1": Protocol("Dectris stream V1 (legacy), of a SIMPLON control unit", _same(dectris1.decode)),
    "dectris2": Protocol("Dectris stream V2 (CBOR), of a SIMPLON control unit", _same(dectris2.decode)),
    "array1": Protocol("array-1.0, plain arrays as at PSI", array1.decoder, announces=False, ports=True),
    "slsdet": Protocol("SLS detector package of PSI", None, subscribes=True, prepare=slsdet.decoders),
    "xspd": Protocol(
        "xspd of X-Spectrum", None, subscribes=True, announces=False, prepare=xspd.decoders, images=True, ports=True
    ),
}
