"""Exact sums: numbers as integers in limbs of 32 bits, which add without rounding, in any order.

A number is ``sum(limb[k] * 2**(32 * k + lowest))``. Limbs are int64, so millions of rows may be added limb by limb before
`carry` brings them back to canonical form: every limb but the top one in ``[0, 2**32)``, the top one signed. Canonical
limbs are unique for a value: equal sums have equal bytes. Only `to_float64` rounds, once, half to even.

`lowest` is -96 for floats (so 2^-96..2^64 fits five limbs, and a sixth holds the growth), -192 for their squares, 0 for
integers and theirs.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Limbs = NDArray[np.int64]
Floats = NDArray[np.float64]

BITS: Final = 32
MASK: Final = np.int64(0xFFFF_FFFF)
FLOAT_LOWEST: Final = -96
FLOAT_LIMBS: Final = 6
SQUARE_LOWEST: Final = 2 * FLOAT_LOWEST
SQUARE_LIMBS: Final = 11
INT_LIMBS: Final = 3
INT_SQUARE_LIMBS: Final = 5
FLOAT_BOUND: Final = 2.0**64
"""Floats that are summed must be smaller than this in magnitude."""

_VELTKAMP: Final = 2.0**27 + 1
_HALF: Final = np.int64(1 << 31)
_AT_ONCE: Final = 4096
_BLOCK: Final = 1 << 14
"""Floats that are split at once: what is made on the way stays in the processor's caches."""
_FEW: Final = 48
"""Rows whose variances are made one by one, for which a dozen arrays would cost more."""
_EXACT_PRODUCT: Final = 2**26
"""Below it, a count times its predecessor is a float64 without rounding."""
_DOUBT: Final = 2.0**-78
"""More than what arithmetic with pairs of floats is off by, relatively."""


def split_floats(values: Floats, limbs: int = FLOAT_LIMBS, lowest: int = FLOAT_LOWEST) -> Limbs:
    """Limbs of each float, shape (n, limbs), truncated toward zero below ``2**lowest``.

    Each step takes the leading 32 bits away; scaling by a power of two, truncating and subtracting are all exact.
    """
    out = np.empty((len(values), limbs), np.int64)
    for start in range(0, len(values), _BLOCK):
        rest = np.array(values[start : start + _BLOCK], np.float64)
        block = out[start : start + _BLOCK]
        block[:, limbs - 1] = 0
        for k in range(limbs - 2, -1, -1):
            scale = 2.0 ** (BITS * k + lowest)
            digit = np.trunc(rest * (1.0 / scale))
            rest -= digit * scale
            block[:, k] = digit
    return out


def split_squares(values: Floats) -> Limbs:
    """Limbs of the exact square of each float (after truncation at 2^-96), shape (n, 11).

    The square is written as high + low, both floats, without error.
    """
    scale = 2.0**FLOAT_LOWEST
    small = np.abs(values) < 1.0  # above it, 52 fraction bits end well before 2^-96
    x = np.where(small, np.trunc(np.where(small, values, 0.0) / scale) * scale, values)
    high, low = _two_product(x, x)
    return split_floats(high, SQUARE_LIMBS, SQUARE_LOWEST) + split_floats(low, SQUARE_LIMBS, SQUARE_LOWEST)


def split_integers(values: NDArray[np.int64]) -> Limbs:
    """Limbs of each integer, shape (n, 3)."""
    out = np.zeros((len(values), INT_LIMBS), np.int64)
    out[:, 0] = values & MASK
    out[:, 1] = values >> BITS
    return out


def split_integer_squares(values: NDArray[np.int64]) -> Limbs:
    """Limbs of the square of each integer, shape (n, 5)."""
    magnitude = np.where(values < 0, -values.astype(np.uint64), values.astype(np.uint64)).astype(np.uint64)
    mask, bits = np.uint64(MASK), np.uint64(BITS)
    low, high = magnitude & mask, magnitude >> bits
    out = np.zeros((len(values), INT_SQUARE_LIMBS), np.int64)
    cross = low * high  # counted twice below: 2 * low * high
    for product, position, times in ((low * low, 0, 1), (cross, 1, 2), (high * high, 2, 1)):
        out[:, position] += (product & mask).astype(np.int64) * times
        out[:, position + 1] += (product >> bits).astype(np.int64) * times
    return out


def carry(limbs: Limbs) -> Limbs:
    """The canonical form of each row of `limbs`, shape (..., k); a new array."""
    return _carry(limbs.copy())


def _carry(limbs: Limbs) -> Limbs:
    for k in range(limbs.shape[-1] - 1):
        limbs[..., k + 1] += limbs[..., k] >> BITS
        limbs[..., k] &= MASK
    return limbs


def to_float64(limbs: Limbs, lowest: int) -> Floats:
    """The nearest float64 of each row of limbs, ties to even: the one rounding. Shape (n,).

    The limbs have any form; carried, the top one is below 2^31 in magnitude.
    """
    if len(limbs) <= _AT_ONCE:
        return _to_float64(limbs, lowest)
    return np.concatenate(
        [_to_float64(limbs[start : start + _AT_ONCE], lowest) for start in range(0, len(limbs), _AT_ONCE)]
    )


def _to_float64(limbs: Limbs, lowest: int) -> Floats:
    """As `to_float64`, of few rows at once: what is made on the way stays in the processor's cache."""
    high, errors = _cascade(limbs, lowest)
    if not errors:
        return high
    low, lost = errors[0], np.zeros(len(limbs), np.bool_)
    for error in errors[1:]:
        low, rounded_off = _two_sum(low, error)
        lost |= rounded_off != 0
    high, low = _fast_two_sum(high, low)
    if lost.any():
        rest = np.flatnonzero(lost & ~_is_rounded(high, low))
        high[rest] = _to_float64_by_integers(limbs[rest], lowest)
    return high


def _cascade(limbs: Limbs, lowest: int) -> tuple[Floats, list[Floats]]:
    """(a float near each row of limbs, what was rounded off, by steps): together they are the row, without error.

    The limbs are as in `to_float64`. With digits of either sign, of at most 2^31 + 1 in magnitude, the first that
    is not 0 decides the size of the number: adding the others one by one cancels nothing. The float is 0 for 0 alone.
    """
    digits = np.array(limbs.T, np.int64, order="C")
    for _ in range(2):  # what is carried is at most 2^31 in magnitude, then at most 1
        carried = (digits[:-1] + _HALF) >> BITS
        digits[1:] += carried
        carried <<= BITS
        digits[:-1] -= carried
    used = np.flatnonzero(digits.any(axis=1)).tolist()
    first, last = (used[0], used[-1]) if used else (0, 0)  # digits that are 0 everywhere take as long as others
    scale = 2.0 ** (BITS * last + lowest)
    high, errors = digits[last] * scale, []
    for digit in digits[first:last][::-1]:
        scale /= 2.0**BITS
        high, error = _fast_two_sum(high, digit * scale)
        errors.append(error)
    return high, errors


def _to_float64_by_integers(limbs: Limbs, lowest: int) -> Floats:
    """As `to_float64`, by integers alone.

    The leading 64 bits are gathered in a uint64, everything below sets its last bit ("sticky"), and that is rounded to
    53 bits by hand. Results are at least ``2**lowest`` in magnitude, so they are never subnormal.
    """
    canonical = carry(limbs)
    negative = canonical[:, -1] < 0
    if negative.any():
        canonical = carry(np.where(negative[:, None], -canonical, canonical))
    count = canonical.shape[1]
    nonzero = canonical != 0
    top = count - 1 - np.argmax(nonzero[:, ::-1], axis=1)
    rows = np.arange(len(canonical))
    padded = np.concatenate([np.zeros((len(canonical), 2), np.int64), canonical], axis=1).astype(np.uint64)
    leading, second, third = padded[rows, top + 2], padded[rows, top + 1], padded[rows, top]
    lower = np.cumsum(nonzero, axis=1)
    has_more = np.where(top >= 3, lower[rows, np.maximum(top - 3, 0)] > 0, False)

    zeros = BITS - np.frexp(leading.astype(np.float64))[1].astype(np.int64)
    zeros = np.where(leading == 0, 0, zeros).astype(np.uint64)
    window = (leading << np.uint64(BITS)) | second
    back = np.uint64(BITS) - zeros
    bits = (window << zeros) | (third >> back)
    dropped = (third & ((np.uint64(1) << back) - np.uint64(1))) != 0
    bits |= (dropped | has_more).astype(np.uint64)

    mantissa = bits >> np.uint64(11)
    remainder = bits & np.uint64(0x7FF)
    half = np.uint64(0x400)
    up = (remainder > half) | ((remainder == half) & ((mantissa & np.uint64(1)) == 1))
    mantissa = mantissa + up.astype(np.uint64)
    exponent = (top - 1) * BITS - zeros.astype(np.int64) + lowest + 11
    magnitude: Floats = np.ldexp(mantissa.astype(np.float64), exponent.astype(np.int32))
    magnitude[negative] *= -1.0
    return magnitude


def to_python(limbs: Limbs) -> list[int]:
    """The exact integer of each row, in units of ``2**lowest``."""
    numbers = []
    for row in limbs[:, ::-1].tolist():
        number = 0
        for limb in row:
            number = (number << BITS) + limb
        numbers.append(number)
    return numbers


def fits_int64(limbs: Limbs) -> NDArray[np.bool_]:
    """Which rows of integer limbs (canonical) lie within int64."""
    high = (limbs[:, 2] << BITS) | limbs[:, 1] if limbs.shape[1] == INT_LIMBS else limbs[:, 1]
    return (high >= -(1 << 31)) & (high < (1 << 31))


def to_int64(limbs: Limbs) -> NDArray[np.int64]:
    """The integers of canonical rows that fit int64 (see `fits_int64`)."""
    return limbs[:, 0] | (limbs[:, 1] << BITS)


def sample_variance(count: int, total: int, squares: int, scale: int) -> tuple[int, int]:
    """Sample variance as an exact fraction (numerator, denominator), from integer sums in units 2^-scale and 2^-2scale."""
    return count * squares - total * total, (count * (count - 1)) << (2 * scale)


def sample_variances(
    counts: NDArray[np.int64], totals: Limbs, squares: Limbs, lowest: int
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(variance, standard deviation, whether they are there) of each row, correctly rounded; shape (n,).

    `totals` are in units ``2**lowest``, `squares` in ``2**(2 * lowest)``; every count is at least 2. A row whose sums
    contradict each other (a variance below 0) is not there. The same bits as `sample_variance` and `sqrt_of_fraction`.

    The numerator ``count * squares - total ** 2`` is exact. It is then divided, and the root taken, as a pair of floats. Where
    that leaves two ways to round, integers decide: about once in 2^25 rows.
    """
    if len(counts) <= _FEW:
        return _sample_variances_by_integers(counts, totals, squares, lowest)
    variance, deviation = np.empty(len(counts)), np.empty(len(counts))
    there = np.empty(len(counts), np.bool_)
    for start in range(0, len(counts), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        variance[part], deviation[part], there[part] = _sample_variances(
            counts[part], totals[part], squares[part], lowest
        )
    return variance, deviation, there


def _sample_variances_by_integers(
    counts: NDArray[np.int64], totals: Limbs, squares: Limbs, lowest: int
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    variance, deviation, there = np.zeros(len(counts)), np.zeros(len(counts)), np.ones(len(counts), np.bool_)
    sums = zip(counts.tolist(), to_python(totals), to_python(squares), strict=True)
    for row, (count, total, square) in enumerate(sums):
        numerator, denominator = sample_variance(count, total, square, -lowest)
        if numerator < 0:
            there[row] = False
        else:
            variance[row], deviation[row] = numerator / denominator, sqrt_of_fraction(numerator, denominator)
    return variance, deviation, there


def _sample_variances(
    counts: NDArray[np.int64], totals: Limbs, squares: Limbs, lowest: int
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    usual = counts < _EXACT_PRODUCT
    high, errors = _cascade(_spread_numerators(np.where(usual, counts, 0), totals, squares), 2 * lowest)
    high, low = _fast_two_sum(high, functools.reduce(np.add, errors, np.zeros(len(high))))
    there = high >= 0
    positive = np.flatnonzero(usual & (high > 0))
    number = counts[positive].astype(np.float64)
    high, low = _divided(high[positive], low[positive], number * (number - 1.0))
    root, root_low = _root(high, low)
    variance, deviation = np.zeros(len(counts)), np.zeros(len(counts))
    variance[positive], deviation[positive] = high, root
    certain = _is_rounded(high, low) & _is_rounded(root, root_low)
    rest = np.concatenate([positive[~certain], np.flatnonzero(~usual)])
    variance[rest], deviation[rest], there[rest] = _sample_variances_by_integers(
        counts[rest], totals[rest], squares[rest], lowest
    )
    return variance, deviation, there


def _spread_numerators(counts: NDArray[np.int64], totals: Limbs, squares: Limbs) -> Limbs:
    """Limbs of ``count * squares - total ** 2``, not carried."""
    magnitude = carry(totals)
    negative = magnitude[:, -1] < 0
    if negative.any():
        magnitude = carry(np.where(negative[:, None], -magnitude, magnitude))
    width = totals.shape[1]
    out = np.zeros((len(counts), max(squares.shape[1] + 1, 2 * width) + 1), np.int64)
    products = carry(squares) * counts[:, None]
    out[:, : squares.shape[1]] += products & MASK
    out[:, 1 : squares.shape[1] + 1] += products >> BITS
    digits = magnitude.astype(np.uint64)
    for position in range(width):
        crossed = digits * digits[:, position, None]
        out[:, position : position + width] -= (crossed & np.uint64(MASK)).astype(np.int64)
        out[:, position + 1 : position + 1 + width] -= (crossed >> np.uint64(BITS)).astype(np.int64)
    return out


def _divided(high: Floats, low: Floats, divisor: Floats) -> tuple[Floats, Floats]:
    quotient = high / divisor
    product, error = _two_product(quotient, divisor)
    return _fast_two_sum(quotient, (((high - product) - error) + low) / divisor)


def _root(high: Floats, low: Floats) -> tuple[Floats, Floats]:
    root = np.sqrt(high)
    product, error = _two_product(root, root)
    return _fast_two_sum(root, (((high - product) - error) + low) / (2.0 * root))


def _is_rounded(high: Floats, low: Floats) -> NDArray[np.bool_]:
    """Whether `high` is the nearest float to every number within 2^-78 of ``high + low``, relatively."""
    doubt = np.abs(high) * _DOUBT
    certain: NDArray[np.bool_] = (high + (low - doubt) == high) & (high + (low + doubt) == high)
    return certain


def _fast_two_sum(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """The rounded sum and its error; `one` is the greater in magnitude (Dekker 1971)."""
    total = one + other
    return total, other - (total - one)


def _two_sum(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """The rounded sum and its error (Knuth)."""
    total = one + other
    part = total - one
    return total, (one - (total - part)) + (other - part)


def _two_product(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """The rounded product and its error (Dekker 1971, Veltkamp's splitting)."""
    product = one * other
    head, tail = _halves(one)
    other_head, other_tail = _halves(other)
    return product, ((head * other_head - product) + head * other_tail + tail * other_head) + tail * other_tail


def _halves(values: Floats) -> tuple[Floats, Floats]:
    big = values * _VELTKAMP
    head = big - (big - values)
    return head, values - head


def sqrt_of_fraction(numerator: int, denominator: int) -> float:
    """The float64 nearest to ``sqrt(numerator / denominator)``, correctly rounded.

    As `statistics._float_sqrt_of_frac`: an integer square root of at least 109 bits, rounded to odd, rounds once more
    without a double-rounding error.
    """
    if numerator == 0:
        return 0.0
    shift = (numerator.bit_length() - denominator.bit_length() - 109) // 2
    if shift >= 0:
        return float(_root_to_odd(numerator, denominator << 2 * shift) << shift)
    return _root_to_odd(numerator << -2 * shift, denominator) / (1 << -shift)


def _root_to_odd(numerator: int, denominator: int) -> int:
    root = math.isqrt(numerator // denominator)
    return root | (root * root * denominator != numerator)
