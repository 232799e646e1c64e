"""The place of a Lambda frame in its series, from the number that the module gave it. Pure."""

from __future__ import annotations

LATE = 8  # part of a turn by which a frame may come late


class Numbers:
    """Of one module, after one start: the unit counts from 1 and returns to a low number when its counter is full.

    `bits` of that counter. After its highest number comes 0, or, where the counter leaves 0 out, 1: which of them is
    found out when the counter rolls over with nothing lost there, and until then 0 is taken for it. `dual` two frames
    belong together; `shared` they have the same number (None: found out at the first pair that does)."""

    def __init__(self, bits: int, *, dual: bool = False, shared: bool | None = None, skips_zero: bool | None = None):
        self.shared = bool(shared) and dual
        self.skips_zero = skips_zero
        self._turn = 1 << bits
        self._late = self._turn // LATE
        self._learns = dual and shared is None
        self._raw = 0  # that of the last frame
        self._number = 0  # the same, as a counter without an end would have it
        self._second = False  # it was the second of its pair

    def place(self, number: int) -> int:
        """From 0; below that, it is no frame of this start. A frame may come late by an eighth of a turn; what looks
        like more is a loss, of fewer frames than seven eighths of a turn."""
        raw = number % self._turn
        step = (raw - self._raw) % self._turn
        if step == 0 and self._number:
            return self._again()
        if (
            step >= self._turn - self._late and self._number
        ):  # overtaken; then the frames after the last are still the next
            back = self._turn - step
            return self._index(self._number - back + (raw > self._raw and self._skips(False)), False)
        if raw < self._raw:
            step -= self._skips(raw == 1 and self._raw == self._turn - 1, raw == 0)
        self._raw, self._number, self._second = raw, self._number + step, False
        return self._index(self._number, False)

    def _skips(self, does: bool, does_not: bool = False) -> bool:
        """Is there no 0? Told by this roll-over, or by one before."""
        if self.skips_zero is None and (does or does_not):
            self.skips_zero = does
        return bool(self.skips_zero)

    def _again(self) -> int:
        """The same number once more: the second of a pair, or a repetition."""
        if self._learns:
            self._learns, self.shared = False, True
        self._second = self.shared
        return self._index(self._number, self._second)

    def _index(self, number: int, second: bool) -> int:
        return 2 * (number - 1) + second if self.shared else number - 1
