"""Exact sums against fractions and `math.fsum`."""

from __future__ import annotations

import math
import random
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tally import exact

BOUND = 2.0**64
UNIT = Fraction(1, 2**96)
SUMMABLE = st.one_of(
    st.floats(-BOUND, BOUND, allow_nan=False, exclude_min=True, exclude_max=True),
    st.builds(math.ldexp, st.floats(-1, 1), st.integers(-110, -40)),
)
"""Whatever can be summed, often with bits on both sides of 2^-96."""
COARSE = st.builds(
    lambda mantissa, exponent, sign: sign * mantissa * 10.0**exponent,
    st.floats(1, 9.999), st.integers(-13, 17), st.sampled_from([-1.0, 1.0]),
)  # fmt: skip
"""1e-13..1e18 in magnitude: all bits of such a float are at or above 2^-96, so nothing is cut."""
INT64 = st.integers(-(2**63), 2**63 - 1)
EDGES = [0, 1, -1, 2**31, 2**32 - 1, 2**32, -(2**32), 2**62, 2**63 - 1, -(2**63), -(2**63) + 1]


def cut(value: float) -> Fraction:
    """A float as it is summed: toward zero to a multiple of 2^-96."""
    return math.trunc(Fraction(value) / UNIT) * UNIT


def value_of(limbs: exact.Limbs, lowest: int) -> Fraction:
    """What one row of limbs says."""
    return sum(int(limb) * Fraction(2) ** (32 * k + lowest) for k, limb in enumerate(limbs.tolist())) + Fraction(0)


def canonical(number: int, count: int) -> list[int]:
    """The canonical limbs of an integer."""
    return [number >> 32 * k & 0xFFFF_FFFF for k in range(count - 1)] + [number >> 32 * (count - 1)]


def total(values: list[float]) -> float:
    """Their sum by limbs."""
    limbs = exact.split_floats(np.array(values, np.float64)).sum(axis=0, keepdims=True)
    return float(exact.to_float64(limbs, exact.FLOAT_LOWEST)[0])


ENDS = [1e18, math.nextafter(1e18, 0), 1e-13, math.nextafter(1e-13, 1), 2.0**53 + 1, 2.0**-43, 1.0, 0.1]
"""Both ends of the range, full mantissas among them."""


@given(st.lists(st.one_of(COARSE, st.sampled_from(ENDS)), min_size=1, max_size=40), st.data())
def test_sums_are_those_of_fsum(values: list[float], data: st.DataObject) -> None:
    """Magnitudes 1e-13..1e18 with cancellation, in any order: `math.fsum` to the bit."""
    cancelled = data.draw(st.lists(st.sampled_from(values), max_size=20))
    mixed = data.draw(st.permutations(values + [-value for value in cancelled]))
    assert total(mixed).hex() == math.fsum(mixed).hex()


def test_hostile_sums() -> None:
    """A thousand values whose sum lies twenty-eight orders of magnitude below the greatest of them."""
    dice = random.Random(7)
    for _ in range(20):
        values = [dice.uniform(-1, 1) * 10.0 ** dice.randint(-12, 18) for _ in range(500)]
        values += [-value for value in values] + [dice.uniform(-1, 1) * 1e-10]
        dice.shuffle(values)
        assert total(values).hex() == math.fsum(values).hex()


@given(SUMMABLE)
@example(5e-324)
@example(-(2.0**-96))
@example(2.0**-97)
@example(math.nextafter(2.0**-96, 0))
@example(math.nextafter(BOUND, 0))
@example(-math.nextafter(BOUND, 0))
@example(-0.0)
@example(2.0**32)
def test_a_float_is_its_limbs_cut_below_the_range(value: float) -> None:
    """Each float below 2^64, subnormals included, is held exactly but for what lies below 2^-96, cut toward zero."""
    limbs = exact.split_floats(np.array([value]))
    assert limbs.shape == (1, exact.FLOAT_LIMBS)
    assert value_of(limbs[0], exact.FLOAT_LOWEST) == cut(value)


@given(st.lists(SUMMABLE, max_size=30), st.lists(st.integers(1, 5), max_size=30))
def test_batching_leaves_no_trace(values: list[float], sizes: list[int]) -> None:
    """Carried between batches of any size or summed at once: the same canonical bytes, and the exact sum rounded once."""
    limbs = exact.split_floats(np.array(values, np.float64))
    whole = exact.carry(limbs.sum(axis=0, keepdims=True))
    batched, start = np.zeros((1, exact.FLOAT_LIMBS), np.int64), 0
    for size in [*sizes, len(values)]:
        batched = exact.carry(batched + limbs[start : start + size].sum(axis=0, keepdims=True))
        start += size
    assert batched.tobytes() == whole.tobytes()
    expected = sum(map(cut, values), Fraction(0))
    assert value_of(whole[0], exact.FLOAT_LOWEST) == expected
    assert exact.to_float64(whole, exact.FLOAT_LOWEST)[0].hex() == float(expected).hex()


@given(SUMMABLE)
@example(math.nextafter(BOUND, 0))
@example(2.0**-96)
@example(-(2.0**-95))
@example(1.0 - 2.0**-53)
@example(math.nextafter(2.0**-50, 1))
@example(-math.nextafter(2.0**-95, 1))
@example(5e-324)
@example(134217729.0)
def test_squares_are_exact(value: float) -> None:
    """The square of the float as it is summed, without any rounding."""
    limbs = exact.split_squares(np.array([value]))
    assert limbs.shape == (1, exact.SQUARE_LIMBS)
    assert value_of(limbs[0], exact.SQUARE_LOWEST) == cut(value) ** 2


@given(INT64)
@pytest.mark.parametrize("edge", [None, *EDGES])
def test_integers_and_their_squares_are_exact(edge: int | None, number: int) -> None:
    """Every int64 and its square, the extremes included."""
    number = number if edge is None else edge
    values = np.array([number], np.int64)
    assert value_of(exact.split_integers(values)[0], 0) == number
    assert value_of(exact.split_integer_squares(values)[0], 0) == number**2


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=6))
def test_carry_makes_the_one_canonical_form(limbs: list[int]) -> None:
    """The value stays, all limbs but the top one lie in [0, 2^32), and the argument stays as it was."""
    given_limbs = np.array([limbs])
    carried = exact.carry(given_limbs)
    assert given_limbs.tolist() == [limbs]
    number = sum(limb << 32 * k for k, limb in enumerate(limbs))
    assert carried.tolist() == [canonical(number, len(limbs))]
    assert exact.to_python(carried) == exact.to_python(given_limbs) == [number]


@st.composite
def awkward(draw: st.DrawFn, bits: int) -> int:
    """Integers of up to `bits` bits around what rounding to 53 bits turns on: halves, and a last bit far below."""
    mantissa = draw(st.one_of(st.integers(2**52, 2**53 - 1), st.sampled_from([2**52, 2**52 + 1, 2**53 - 1])))
    shift = draw(st.integers(0, bits - 53))
    low = draw(st.sampled_from([0, 1, 2]))
    number = mantissa << shift
    if shift:
        number += (1 << shift - 1) * low + draw(st.integers(-1, 1)) * (1 << draw(st.integers(0, shift - 1)))
    return number * draw(st.sampled_from([-1, 1]))


@given(st.sampled_from([(3, 0), (5, 0), (6, -96), (11, -192)]), st.data())
def test_rounding_is_to_nearest_ties_to_even(shape: tuple[int, int], data: st.DataObject) -> None:
    """The one rounding is that of an exact fraction: ties, sticky bits in the lowest limb, a carry into the next power."""
    count, lowest = shape
    bits = 32 * count - 2
    whole = st.integers(-(2**bits), 2**bits)
    numbers = data.draw(st.lists(st.one_of(whole, awkward(bits), st.integers(-3, 3)), min_size=1, max_size=5))
    limbs = np.array([canonical(number, count) for number in numbers])
    borrow = data.draw(st.integers(-(2**29), 2**29))
    loose = limbs.copy()
    loose[:, 0] += borrow << 32
    loose[:, 1] -= borrow
    for form in (limbs, loose):
        for number, found in zip(numbers, exact.to_float64(form, lowest).tolist(), strict=True):
            assert found.hex() == float(Fraction(number) * Fraction(2) ** lowest).hex()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shift", [1, 29, 61, 93, 125, 137])
def test_halves_with_the_last_bit_in_every_limb(shift: int, sign: int) -> None:
    """A half rounds to even; one bit more, in whichever limb below, rounds up. Beside other numbers as alone."""
    numbers = []
    for mantissa in (2**52, 2**52 + 1, 2**53 - 1):
        half = (mantissa << shift) + (1 << shift - 1)
        for sticky in [0, *(1 << 32 * k for k in range(6) if 32 * k < shift - 1)]:
            numbers += [sign * (half + sticky), sign * (half - sticky)]
    limbs = np.array([canonical(number, 6) for number in numbers])
    expected = [float(number).hex() for number in numbers]
    assert [exact.to_float64(one[None], 0)[0].hex() for one in limbs] == expected
    assert [number.hex() for number in exact.to_float64(limbs, 0).tolist()] == expected


@given(
    st.lists(st.lists(st.integers(-(2**62), 2**62), min_size=6, max_size=6), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(-(2**54), 2**54), st.integers(0, 110), st.integers(-2, 2)), max_size=20),
)
def test_floats_and_integers_round_alike(rows: list[list[int]], ties: list[tuple[int, int, int]]) -> None:
    """Limbs of any form, and numbers at and around halves: pairs of floats give the bits of integers."""
    rows = [[*row[:-1], row[-1] % 2**30 - 2**29] for row in rows]
    wide = [[limb % 2**40 - 2**39 for limb in row[:-1]] + row[-1:] for row in rows]
    near = [canonical((number << shift) + off, exact.FLOAT_LIMBS) for number, shift, off in ties]
    limbs = np.array([*rows, *wide, *near])
    found = exact.to_float64(limbs, exact.FLOAT_LOWEST).tolist()
    for row, value in zip(limbs, found, strict=True):
        assert value.hex() == float(value_of(row, exact.FLOAT_LOWEST)).hex()
    by_integers = exact._to_float64_by_integers(limbs, exact.FLOAT_LOWEST).tolist()
    assert [value.hex() for value in by_integers] == [value.hex() for value in found]


def test_no_rows_and_no_value() -> None:
    """An empty array stays empty; zero is +0.0, however it came about."""
    assert exact.to_float64(np.zeros((0, 6), np.int64), -96).tolist() == []
    assert exact.split_floats(np.zeros(0)).shape == (0, 6)
    assert total([-0.0, -0.0]).hex() == total([1e18, -1e18]).hex() == (0.0).hex()


@given(SUMMABLE, st.integers(1, 2**27))
@example(math.nextafter(BOUND, 0), 2**27)
@example(-math.nextafter(BOUND, 0), 2**27)
def test_a_hundred_million_equal_floats(value: float, rows: int) -> None:
    """Limbs of 2^27 rows add without a carry between them: the sum and the squares stay exact."""
    sums = exact.split_floats(np.array([value])) * rows
    assert exact.to_float64(sums, exact.FLOAT_LOWEST)[0].hex() == float(cut(value) * rows).hex()
    squares = exact.carry(exact.split_squares(np.array([value])) * rows)
    assert value_of(squares[0], exact.SQUARE_LOWEST) == cut(value) ** 2 * rows


@given(INT64, st.integers(1, 2**27))
@example(-(2**63), 2**27)
@example(2**63 - 1, 2**27)
def test_a_hundred_million_equal_integers(number: int, rows: int) -> None:
    """As for floats: sums and squares of 2^27 int64 are exact, and fitting int64 is known."""
    values = np.array([number], np.int64)
    sums = exact.carry(exact.split_integers(values) * rows)
    assert exact.to_python(sums) == [number * rows]
    assert exact.to_python(exact.carry(exact.split_integer_squares(values) * rows)) == [number**2 * rows]
    assert exact.fits_int64(sums).tolist() == [-(2**63) <= number * rows < 2**63]


@given(st.lists(st.one_of(INT64, st.sampled_from(EDGES)), min_size=1, max_size=10))
def test_integer_sums_fit_or_say_so(numbers: list[int]) -> None:
    """A sum within int64 comes back whole; one beyond is known."""
    limbs = exact.carry(exact.split_integers(np.array(numbers, np.int64)).sum(axis=0, keepdims=True))
    expected = sum(numbers)
    fits = -(2**63) <= expected < 2**63
    assert exact.fits_int64(limbs).tolist() == [fits]
    if fits:
        assert exact.to_int64(limbs).tolist() == [expected]


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, -(2**64), 2**90, -(2**90), 0, -1])
def test_the_edge_of_int64(number: int) -> None:
    """The last integer that fits and the first that does not, on both sides."""
    limbs = np.array([canonical(number, exact.INT_LIMBS)])
    assert exact.fits_int64(limbs).tolist() == [-(2**63) <= number < 2**63]


@given(st.lists(COARSE, min_size=2, max_size=20))
@example([1e18, 1e18])
@example([1.0, math.nextafter(1.0, 2)])
@example([1e-13, 1.1e-13])
def test_spread_of_floats_is_rounded_once(values: list[float]) -> None:
    """Sample variance and deviation equal those of exact fractions, rounded once."""
    array = np.array(values)
    sums = exact.to_python(exact.split_floats(array).sum(axis=0, keepdims=True))[0]
    squares = exact.to_python(exact.split_squares(array).sum(axis=0, keepdims=True))[0]
    numerator, denominator = exact.sample_variance(len(values), sums, squares, 96)
    exactly = statistics.variance([Fraction(value) for value in values])
    assert Fraction(numerator, denominator) == exactly
    assert (numerator / denominator).hex() == float(exactly).hex()
    assert exact.sqrt_of_fraction(numerator, denominator).hex() == float(statistics.stdev(map(Fraction, values))).hex()


def spreads(groups: list[list[float]] | list[list[int]]) -> tuple[list[float], list[float], list[bool]]:
    """Variance, deviation, and whether they are there, of each group."""
    counts = np.array([len(group) for group in groups])
    if isinstance(groups[0][0], int):
        sums = np.array([exact.split_integers(np.array(group)).sum(axis=0) for group in groups])
        squares = np.array([exact.split_integer_squares(np.array(group)).sum(axis=0) for group in groups])
        found = exact.sample_variances(counts, sums, squares, 0)
    else:
        sums = np.array([exact.split_floats(np.array(group)).sum(axis=0) for group in groups])
        squares = np.array([exact.split_squares(np.array(group)).sum(axis=0) for group in groups])
        found = exact.sample_variances(counts, sums, squares, exact.FLOAT_LOWEST)
    variance, deviation, there = (values.tolist() for values in found)
    return variance, deviation, there


NEARLY_EQUAL = st.builds(
    lambda base, steps: [base + step * math.ulp(base) for step in steps],
    COARSE, st.lists(st.integers(-9, 9), min_size=2, max_size=6),
)  # fmt: skip
"""Values whose variance is some thirty digits below their squares."""
TIES = [[0.0, 134_217_727.0], [0.0, 134_217_725.0], [1.0 - 2.0**53, 0.5, 2.0**53], [0.1, 0.1, 0.1], [0.0, 2.0**-96]]
"""Variances, and a deviation, that lie halfway between two floats; none at all; and the least."""


@pytest.mark.parametrize("times", [1, 49])
@given(st.lists(st.one_of(st.lists(COARSE, min_size=2, max_size=8), NEARLY_EQUAL), min_size=1, max_size=4))
@example(TIES)
@example(TIES * 25)  # more rows than are looked at in one go
def test_spreads_of_many_rows_are_those_of_fractions(times: int, groups: list[list[float]]) -> None:
    """A few rows go through integers, many through pairs of floats, thousands in parts: the bits of exact fractions."""
    expected = [(float(statistics.variance(map(Fraction, g))), statistics.stdev(map(Fraction, g))) for g in groups]
    variance, deviation, there = spreads(groups * times)
    assert all(there)
    for found, other, (var, std) in zip(variance, deviation, expected * times, strict=True):
        assert (found.hex(), other.hex()) == (var.hex(), float(std).hex())


@given(st.lists(st.lists(st.one_of(INT64, st.sampled_from(EDGES)), min_size=2, max_size=6), min_size=1, max_size=3))
def test_spreads_of_many_integers_are_those_of_fractions(groups: list[list[int]]) -> None:
    """The same for integers, int64's ends included."""
    variance, deviation, there = spreads(groups * 49)
    assert all(there)
    for group, found, other in zip(groups * 49, variance, deviation, strict=True):
        assert found.hex() == float(statistics.variance(map(Fraction, group))).hex()
        assert other.hex() == float(statistics.stdev(map(Fraction, group))).hex()


@pytest.mark.parametrize("rows", [1, 49])
def test_sums_that_contradict_each_other_have_no_spread(rows: int) -> None:
    """A sum of squares below what the sum demands is known in either way."""
    sums = np.tile(exact.split_floats(np.array([3.0])), (rows, 1))
    squares = np.tile(exact.split_squares(np.array([1.0])), (rows, 1))
    _, _, there = exact.sample_variances(np.full(rows, 2), sums, squares, exact.FLOAT_LOWEST)
    assert there.tolist() == [False] * rows


def test_spreads_of_very_many_rows() -> None:
    """Counts of 2^26 and beyond, whose products no float holds, beside small ones."""
    counts = np.array([2**26 + 1, 2**31 + 1, 10**12 + 39] + [2] * 60)
    numbers = [(count, count * (2**40 + 1), count * (2**90 + 3)) for count in counts.tolist()]
    sums = np.array([canonical(total, exact.FLOAT_LIMBS) for _, total, _ in numbers])
    squares = np.array([canonical(square, exact.SQUARE_LIMBS) for _, _, square in numbers])
    variance, deviation, _ = exact.sample_variances(counts, sums, squares, exact.FLOAT_LOWEST)
    for (count, total, square), found, root in zip(numbers, variance.tolist(), deviation.tolist(), strict=True):
        spread = Fraction(count * square - total * total, count * (count - 1)) / 2**192
        assert found.hex() == float(spread).hex()
        assert root.hex() == exact.sqrt_of_fraction(spread.numerator, spread.denominator).hex()


@given(st.integers(0, 2**300), st.integers(1, 2**300))
@example(2**53 + 1, 1)
@example((2**53 + 1) ** 2, 1)
@example((2**54 + 2) ** 2 - 1, 2**2)
@example((2**54 + 2) ** 2 + 1, 2**2)
def test_square_roots_are_correctly_rounded(numerator: int, denominator: int) -> None:
    """The root is the nearest float: no float lies nearer to it."""
    found = exact.sqrt_of_fraction(numerator, denominator)
    target = Fraction(numerator, denominator)
    below, above = math.nextafter(found, 0), math.nextafter(found, math.inf)
    if numerator == 0:
        assert found == 0
        return
    half_down, half_up = (Fraction(below) + Fraction(found)) / 2, (Fraction(found) + Fraction(above)) / 2
    assert half_down**2 <= target <= half_up**2
    if target in (half_down**2, half_up**2):
        assert int(math.frexp(found)[0] * 2**53) % 2 == 0
