"""Arrays of a warehouse as Tally's dtypes."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ingestion.arrow import conform


@given(st.integers(-(10**38) + 1, 10**38 - 1), st.integers(0, 37))
def test_decimals_become_the_nearest_float(unscaled: int, scale: int) -> None:
    """Of float64 and of float32, whatever the digits: as near as the exact number allows."""
    number = Decimal(f"{unscaled}E-{scale}")
    array = pa.array([number, None], pa.decimal128(38, scale))
    double, none = conform("Float64", array, "x").to_pylist()
    single = np.float32(conform("Float32", array, "x").to_pylist()[0])

    assert (double.hex(), none) == (float(number).hex(), None)
    neighbours = (np.nextafter(single, np.float32(-np.inf)), np.nextafter(single, np.float32(np.inf)))
    off, others = (
        abs(Fraction(float(single)) - Fraction(number)),
        [abs(Fraction(float(one)) - Fraction(number)) for one in neighbours if np.isfinite(one)],
    )
    assert all(off <= other for other in others)
