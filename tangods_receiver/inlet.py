"""A PULL socket connected to one sender, whose high-water mark follows the size of the frames."""

from __future__ import annotations

from typing import Any

import zmq


class Inlet:
    """libzmq counts the mark in messages; what it may hold is meant in bytes, so the mark must be changed while
    messages flow. Whoever fills the queue learns only now and then how much was read: when the number of messages read
    is a multiple of half the mark. A mark that is lowered at another moment can lie below what he believes to be in a
    queue that is empty: then nothing comes any more, for ever; and one that is raised does not wake him. So it is
    changed only just before a message is read of which he will learn, and one that is there to be read.

    (It may not be changed at all on a socket that binds: libzmq 4.3.5 crashes when a peer goes away in that moment.)"""

    def __init__(self, socket: zmq.Socket[Any], mark: int) -> None:
        """A socket without any connection yet; it must get one only."""
        self.socket = socket
        self._mark = self._wanted = socket.rcvhwm = mark
        self._taken = 0  # messages

    def hold(self, messages: int) -> None:
        """Have no more than so many messages wait here, 2 at least; as soon as that can be."""
        self._wanted = max(2, messages)

    def ready(self, most: int) -> int:
        """How many messages may be taken now, up to `most`; tell `took` how many they were."""
        if self._mark == self._wanted or not self.socket.poll(0):
            return most
        following = self._taken + 1
        told = (self._wanted + 1) // 2
        if following % told == 0:
            self._set(self._wanted)
            return 1
        if self._wanted < self._mark:  # at once as low as can be, then exactly
            lower = 2 * next(n for n in range(told, 0, -1) if following % n == 0)
            if lower < self._mark:
                self._set(lower)
                return 1
        return min(most, -following % told)

    def took(self, messages: int) -> None:
        self._taken += messages

    def _set(self, mark: int) -> None:
        self._mark = self.socket.rcvhwm = mark
