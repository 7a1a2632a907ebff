"""Random numbers as pure functions of a key: no state, hence the same for every batching, rank and worker."""

from __future__ import annotations

import hashlib

import numpy as np

_MASK = (1 << 64) - 1
_GAMMA, _MIX_A, _MIX_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ARRAY_CONSTANTS = tuple(np.uint64(value) for value in (_GAMMA, 30, _MIX_A, 27, _MIX_B, 31))


def key_of(*parts: int | str) -> int:
    """A 64-bit key from any mixture of integers and strings; equal parts give equal keys on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(value: int) -> int:
    """SplitMix64's step and finaliser (Steele et al. 2014): 64 bits to 64 well-mixed bits, one to one."""
    value = (value + _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_A) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_B) & _MASK
    return value ^ (value >> 31)


def mix_array(values: np.ndarray) -> np.ndarray:
    """:func:`mix` for an array of ``uint64``, element by element."""
    gamma, shift_a, mix_a, shift_b, mix_b, shift_c = _ARRAY_CONSTANTS
    values = values + gamma
    values ^= values >> shift_a
    values *= mix_a
    values ^= values >> shift_b
    values *= mix_b
    values ^= values >> shift_c
    return values


def uniform(bits: int) -> float:
    """A number in [0, 1) from 64 random bits."""
    return (bits >> 11) * 2.0**-53


class KeyedPermutation:
    """A permutation of ``range(size)`` given by a key alone, in constant memory and expected constant time.

    A Feistel network over the smallest power of two that holds ``size``, with cycle walking (Black and Rogaway 2002).
    """

    _ROUNDS = 6

    def __init__(self, size: int, key: int):
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got {size}")
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._low_bits = bits // 2
        self._low_mask = (1 << self._low_bits) - 1
        self._high_mask = (1 << (bits - self._low_bits)) - 1
        self._round_keys = [(mix(key + index), mix(key + index + 1)) for index in range(0, self._ROUNDS, 2)]

    def __call__(self, index: int) -> int:
        """The element at place ``index``.

        Raises:
            IndexError: If ``index`` is outside ``range(size)``.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside range({self.size})")
        low_bits, low_mask, high_mask = self._low_bits, self._low_mask, self._high_mask
        while True:
            high, low = index >> low_bits, index & low_mask
            for even, odd in self._round_keys:
                low ^= mix(high ^ even) & low_mask
                high ^= mix(low ^ odd) & high_mask
            index = (high << low_bits) | low
            if index < self.size:
                return index
