"""Counter-based random numbers: a pure function of seed, stream and index, whatever else was drawn.

Every number is a multiple of 2**-24 made with integer arithmetic, so it has the same bits on every machine
and survives storage as float32.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED_LIMIT = 1 << 24
"""Seeds are integers below this, so that a float32 holds them exactly."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def hash64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64, a bijection that scatters its input over all 64 bits.

    Reference: Steele et al., Fast splittable pseudorandom number generators (2014), figure 16.
    """
    mixed = values + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


@lru_cache(maxsize=64)
def _counters(count: int) -> NDArray[np.uint64]:
    return np.arange(count, dtype=np.uint64)[None, :] * _GOLDEN


@lru_cache(maxsize=256)
def _salt(stream: str) -> np.uint64:
    return np.uint64(zlib.crc32(stream.encode())) << np.uint64(32)


def hashes(seeds: NDArray[Any], stream: str, count: int) -> NDArray[np.uint64]:
    """``count`` 64-bit hashes for each seed.

    Args:
        seeds: ``[B]`` non-negative integers (as any dtype).
        stream: Name of what the numbers are for; streams are independent.
        count: Numbers for each seed.

    Returns:
        ``[B, count]``.
    """
    keys = hash64(seeds.astype(np.uint64) ^ _salt(stream))
    return hash64(keys[:, None] + _counters(count))


def uniforms(seeds: NDArray[Any], stream: str, count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), multiples of 2**-24, ``[B, count]``; arguments as in `hashes`."""
    return (hashes(seeds, stream, count) >> np.uint64(40)).astype(np.float64) * (1.0 / SEED_LIMIT)


def draws(seed: int, stream: str, count: int) -> list[float]:
    """``count`` uniform numbers in [0, 1) of one seed."""
    numbers: list[float] = uniforms(np.array([seed]), stream, count)[0].tolist()
    return numbers


def bell(seeds: NDArray[Any], stream: str) -> NDArray[np.float64]:
    """A bell-shaped number for each seed, ``[B]``: mean 0, standard deviation 1, range [-3.47, 3.47].

    The sum of four uniforms (Irwin-Hall), because its range is bounded and it needs no logarithm.
    """
    total = uniforms(seeds, stream, 4)
    return np.asarray((total[:, 0] + total[:, 1] + total[:, 2] + total[:, 3] - 2.0) * 3.0**0.5)
