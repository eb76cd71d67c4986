"""Remembers a number for each of a million names, in little memory."""

from __future__ import annotations

from array import array

_FEW = 50_000


class Numbers:
    """The numbers of requests by their ``custom_id``.

    A dict is fast, but takes more than 100 bytes a name. Of more than 50,000 names, only the hashes are kept,
    in a table of 12 bytes an entry, at least a third of which is in use.
    """

    def __init__(self) -> None:
        self._few: dict[str, int] | None = {}
        self._count = 0
        self._allocate(1 << 10)

    def first(self, custom_id: str, number: int) -> int:
        """Return the number of the first request with a ``custom_id``, which may be this one."""
        if self._few is None:
            return self._first(hash(custom_id) or 1, number)
        first = self._few.setdefault(custom_id, number)
        if len(self._few) > _FEW:
            few, self._few = self._few, None
            for known, its_number in few.items():
                self._first(hash(known) or 1, its_number)
        return first

    def _first(self, key: int, number: int) -> int:
        at = self._find(key)
        if self._keys[at]:
            return self._numbers[at]
        self._keys[at], self._numbers[at] = key, number
        self._count += 1
        if 3 * self._count > 2 * self._mask:
            keys, numbers = self._keys, self._numbers
            self._allocate(2 * len(keys))
            for known, its_number in zip(keys, numbers, strict=True):
                if known:
                    at = self._find(known)
                    self._keys[at], self._numbers[at] = known, its_number
        return number

    def _allocate(self, entries: int) -> None:
        self._mask = entries - 1
        self._keys, self._numbers = array("q", bytes(8 * entries)), array("I", bytes(4 * entries))

    def _find(self, key: int) -> int:
        keys, mask = self._keys, self._mask
        at = key & mask
        while keys[at] and keys[at] != key:
            at = (at + 1) & mask
        return at
