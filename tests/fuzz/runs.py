"""One long run: streams of messages, each decoded, viewed and handed to a worker whose files are real."""

from __future__ import annotations

import faulthandler
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tangods_receiver.protocol import recording
from tests.fuzz import checks, messages
from tests.fuzz.messages import PROTOCOLS, Parts, Protocol

__all__ = ["PROTOCOLS", "Run"]

STREAM = 24  # messages in an input, at most
STAGE = 20_000  # messages that one engine takes; then its files are checked and the next begins
SETTLE = 200  # messages after which the engine is looked at
LONGEST = 1 << 20  # bytes of an input


class Run:
    """`random` returns when all messages were survived, `guided` ends the process; both raise `Broken` otherwise."""

    def __init__(self, protocol: Protocol, folder: Path, total: int, keep: Path) -> None:
        self._protocol = protocol
        self._yard = checks.Yard(folder)
        self._total, self._keep = total, keep
        self._kept = os.open(keep, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._done = self._refused = self._files = 0
        self._stage: checks.Stage | None = None
        self._unsettled: list[Parts] = []  # sent, and perhaps not handled yet
        self._begun = self._told = time.monotonic()
        self._seed: object = "libFuzzer's"

    def random(self, rng: Random, seed: int) -> None:
        self._seed = seed
        while self._done < self._total:
            count = min(rng.randint(1, STREAM), self._total - self._done)
            self._try([messages.message(rng, self._protocol.seeds) for _ in range(count)])
        self._finish()

    def guided(self, seed: int) -> None:
        import atheris

        corpus = self._yard.root.parent / "corpus"
        corpus.mkdir()
        self._yard = checks.Yard(_made(self._yard.root.parent / "guided"))
        rng = Random(seed)
        for number in range(200):
            stream = rng.sample(self._protocol.seeds, 6)
            (corpus / str(number)).write_bytes(packed(stream))
        flags = [sys.argv[0], str(corpus), f"-max_len={LONGEST}", f"-seed={seed % 2**31}", "-print_final_stats=1"]
        faulthandler.enable()  # tells which thread it was, which libFuzzer does not
        flags += ["-handle_segv=0", "-handle_bus=0", "-handle_abrt=0", "-handle_ill=0", "-handle_fpe=0"]
        flags += ["-rss_limit_mb=2500", "-timeout=60", "-verbosity=1", f"-artifact_prefix={self._keep}."]
        atheris.Setup(flags, self._one_input, custom_mutator=self._mutate)
        atheris.Fuzz()

    def _one_input(self, data: bytes) -> None:
        stream = list(unpacked(data))
        if stream:
            self._try(stream)
        if self._done >= self._total:
            self._finish()
            os._exit(0)  # libFuzzer would go on for ever

    def _mutate(self, data: bytes, longest: int, seed: int) -> bytes:
        import atheris

        rng = Random(seed)
        if rng.random() < 0.2:
            return bytes(atheris.Mutate(data, longest))
        stream = list(unpacked(data))[:STREAM]
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(len(stream) + 1)
            kind = rng.random()
            if kind < 0.6 and at < len(stream):
                stream[at] = messages.changed(rng, stream[at], self._protocol.seeds)
            elif kind < 0.85:
                stream.insert(at, messages.message(rng, self._protocol.seeds))
            else:
                del stream[at : at + 1]
        made = packed(stream)
        return made if len(made) <= longest else packed([messages.message(rng, self._protocol.seeds)])[:longest]

    def _try(self, stream: list[Parts]) -> None:
        try:
            for parts in stream:
                message = checks.decoded(self._protocol, parts)
                checks.seen(message)
                self._refused += message is None
            if self._stage is None:
                self._stage = checks.Stage(self._yard, protocol=self._protocol.name).__enter__()
            self._stage.send(stream)
            self._unsettled += stream
            os.write(self._kept, packed(stream))  # also for the case that the process dies
            if len(self._unsettled) > SETTLE:
                self._settle()
        except BaseException:
            print(f"not survived: kept in {self._keep}; seed {self._seed}", file=sys.stderr, flush=True)
            raise
        before, self._done = self._done, self._done + len(stream)
        if before // STAGE != self._done // STAGE:
            self._next_stage()
        if time.monotonic() - self._told > 30:
            self._tell()

    def _settle(self) -> None:
        if self._stage is not None:
            self._stage.settle()
            self._stage.good_files()
            self._clear()
        self._unsettled.clear()
        os.ftruncate(self._kept, 0)
        os.lseek(self._kept, 0, os.SEEK_SET)

    def _clear(self) -> None:
        self._files += len(self._yard.written())
        self._yard.clear()

    def _next_stage(self) -> None:
        self._unsettled.clear()
        if self._stage is not None:
            self._stage.__exit__(None, None, None)
            self._stage = None
        self._clear()

    def _finish(self) -> None:
        self._next_stage()
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        seconds = self._told - self._begun
        counts = (
            f"{self._done} messages, {self._refused} refused by the decoder, {self._files} files written and checked"
        )
        speed = f"{seconds:.0f} s, {self._done / max(seconds, 1e-6):.0f} messages/s, seed {self._seed}"
        print(f"{self._protocol.name}: {counts}, {speed}", flush=True)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def packed(stream: list[Parts]) -> bytes:
    """As in a recording."""
    out = bytearray()
    for parts in stream:
        out += struct.pack("<I", len(parts))
        for part in parts:
            out += struct.pack("<I", len(part)) + part
    return bytes(out)


def unpacked(data: bytes) -> Iterator[Parts]:
    """As far as it can be read; lengths beyond the end mean the rest."""
    at = 0
    while at + 4 <= len(data):
        count = min(int.from_bytes(data[at : at + 4], "little"), recording.MAX_PARTS)
        at += 4
        parts = []
        while len(parts) < count and at + 4 <= len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            parts.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        yield parts
