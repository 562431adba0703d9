"""Transformations: what their hash follows, and what they may be given and return."""

from __future__ import annotations

import gc
import importlib
import inspect
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tally import functions
from tally.columns import Column, column
from tally.dtypes import DTYPES, Dtype
from tally.errors import DataError, DefinitionError, DefinitionMismatchError
from tally.functions import as_udf, describe, load, on_frame, parameters, run, run_on_events, run_on_few, source_hash
from tally.plan import Field, Function
from tests.tally import transforms
from tests.tally.stored import ITEMS

BIG = 2**60 + 1

MODULE = '''"""A module."""
import math as m
from os import path

LIMIT = 3  # a constant
TABLE = {}
TABLE["a"] = 1
UNUSED = 5
A, (B, C) = 1, (2, 3)
NAMES: list[str] = ["x"]
TOTAL = 0
TOTAL += 7
LONG = 1; WIDE = [
    2,
    3,
]
TABLE.update(b=2)
try:
    import fast as f
except ImportError:
    f = None
if LIMIT > 2:
    def chosen(x):
        return x + 1
else:
    def chosen(x):
        return x + 2
with open(path) as handle:
    READ = handle
for STEP in range(3):
    pass


def deco(function):
    return function


class Shape:
    side = 4


def helper(x):
    return x + inner(x) * LIMIT


def inner(x):
    return m.floor(x)


async def later():
    return 1


@deco
def feature(x):
    """What it is."""
    y = helper(x)  # why
    return {"y": y, "t": TABLE, "b": B, "s": Shape.side, "n": NAMES, "o": TOTAL, "l": LONG, "w": WIDE, "f": f, "c": chosen,
            "r": READ, "g": STEP, "a": later}


def other(x):
    return path.join(x, UNUSED)


# the end
if __name__ == "__main__":
    print(feature(1))
'''


def change(old: str, new: str) -> str:
    """The module with one piece of text changed."""
    assert MODULE.count(old) == 1, old
    return MODULE.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("y = helper(x)", "y = helper(x) + 0"), ("# why", "# because"), ('"""What it is."""', '"""Else."""'),
        ("LIMIT = 3 ", "LIMIT = 4 "), ("LIMIT = 3  # a constant", "LIMIT = 3  # changed"),
        ("inner(x) * LIMIT", "LIMIT * inner(x)"), ("m.floor(x)", "m.ceil(x)"), ("import math as m", "import cmath as m"),
        ("    return function\n", "    return function or None\n"), ("@deco", "@deco\n@deco"), ("side = 4", "side = 5"),
        ('TABLE["a"] = 1', 'TABLE["a"] = 2'), ("TABLE.update(b=2)", "TABLE.update(b=3)"), ("TABLE = {}", "TABLE = {1: 2}"),
        ("A, (B, C) = 1, (2, 3)", "A, (B, C) = 1, (9, 3)"), ('["x"]', '["y"]'), ("TOTAL = 0", "TOTAL = 1"),
        ("TOTAL += 7", "TOTAL += 8"), ("    3,\n", "    4,\n"), ("LONG = 1", "LONG = 2"), ("import fast as f", "import slow as f"),
        ("return x + 1", "return x + 11"), ("return x + 2", "return x + 12"), ("READ = handle", "READ = handle.read()"),
        ("range(3)", "range(4)"), ("return 1", "return 2"), ("LIMIT > 2", "LIMIT > 1"),
    ],
)  # fmt: skip
def test_the_hash_follows_what_the_function_reaches(old: str, new: str) -> None:
    """Helpers, constants and what fills them, classes, decorators, imports, branches: each change is another hash."""
    assert source_hash(change(old, new), "feature") != source_hash(MODULE, "feature")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("UNUSED = 5", "UNUSED = 6"), ("path.join(x, UNUSED)", "path.join(UNUSED, x)"), ("# the end", "# fin"),
        ('"""A module."""', '"""Another."""'), ("\n\n\ndef helper", "\n\n# a comment\n\n\ndef helper"),
        ("def inner(x):", "def unrelated():\n    return 0\n\n\ndef inner(x):"), ("print(feature(1))", "print(feature(2))"),
        ("    y = helper(x)  # why\n", "    y = helper(x)  # why   \n"), ("\n\n# the end", "\nLAST = UNUSED\n# the end"),
    ],
)  # fmt: skip
def test_the_hash_ignores_the_rest(old: str, new: str) -> None:
    """Other functions, comments elsewhere, blank lines and trailing spaces: the same hash."""
    assert source_hash(change(old, new), "feature") == source_hash(MODULE, "feature")


@pytest.mark.parametrize("break_", ["\f", "\x1c", "\u2028", "\x85"])
def test_odd_line_breaks_do_not_shift_the_hash(break_: str) -> None:
    """A form feed or a Unicode line break is no line to Python: the function's own lines are hashed all the same."""
    odd = f'NOTE = "a{break_ if break_ != chr(12) else ""}b"\n' + ("\f\n" if break_ == "\f" else "") + MODULE
    assert source_hash(odd, "feature") == source_hash(MODULE, "feature")
    assert source_hash(odd.replace("y = helper(x)", "y = helper(x + 1)"), "feature") != source_hash(MODULE, "feature")


def test_line_endings_do_not_matter() -> None:
    """A checkout with Windows' line endings has the same hash."""
    assert source_hash(MODULE.replace("\n", "\r\n"), "feature") == source_hash(MODULE, "feature")


@given(st.sampled_from(["feature", "other", "helper", "inner", "later", "chosen", "Shape"]))
def test_hashes_are_32_hex_digits(name: str) -> None:
    """Each definition has a hash of its own, the same each time."""
    found = source_hash(MODULE, name)
    assert len(found) == 32
    assert int(found, 16) >= 0
    assert found == source_hash(MODULE, name)
    assert (found == source_hash(MODULE, "feature")) == (name == "feature")


# Naming and loading


def test_functions_are_described_and_loaded() -> None:
    """Module and name, with the hash; loading gives the function itself, decorated ones too."""
    for function in (transforms.scaled, transforms.decorated):
        described = describe(function)
        assert described.reference == f"tests.tally.transforms:{function.__name__}"
        assert load(described) is function


@pytest.mark.parametrize(
    "function", [lambda x: {"y": x}, transforms.hidden, transforms.NOT_PLAIN, len, np.where, transforms.SCALE]
)
def test_what_is_not_a_plain_function_is_refused(function: Any) -> None:
    """Lambdas, partials, wrapped and compiled functions have no source of their own: DefinitionError."""
    with pytest.raises(DefinitionError):
        describe(function)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (Function("tests.tally.nowhere:f", "0" * 32), r"nowhere:f, which cannot be imported.*PYTHONPATH"),
        (Function("tests.tally.transforms:gone", "0" * 32), r"transforms:gone, which cannot be imported"),
        (
            Function("tests.tally.transforms:scaled", "0" * 32),
            r"transforms:scaled has source hash .* 0{32}.*feast apply",
        ),
    ],
)
def test_another_source_is_refused(function: Function, message: str) -> None:
    """A missing module, a missing function, another source: DefinitionMismatchError saying which and what to do."""
    with pytest.raises(DefinitionMismatchError, match=message):
        load(function)


def test_a_file_that_was_replaced_does_not_vouch_for_the_running_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash is that of the source that was imported: what is installed later counts after a reload or a restart."""
    file = tmp_path / "replaced_later.py"
    file.write_text("def double(x):\n    return {'y': x * 2}\n")
    monkeypatch.syspath_prepend(tmp_path)
    old = describe(importlib.import_module("replaced_later").double)
    text = "def double(x):\n    return {'y': x + x + 0}\n"
    file.write_text(text)
    new = Function(old.reference, source_hash(text, "double"))
    assert load(old) is sys.modules["replaced_later"].double
    with pytest.raises(DefinitionMismatchError, match=f"{old.source_hash} here.*{new.source_hash}"):
        load(new)
    importlib.invalidate_caches()
    importlib.reload(sys.modules["replaced_later"])
    assert load(new) is sys.modules["replaced_later"].double
    monkeypatch.delitem(sys.modules, "replaced_later")


def test_inputs_must_have_names() -> None:
    """Parameters name the inputs; stars and positional-only ones do not."""
    assert parameters(transforms.scaled) == ("x", "n")
    for function in (transforms.starred, transforms.keyworded, transforms.positional):
        with pytest.raises(DefinitionError, match=f"{function.__name__} must name its inputs"):
            parameters(function)


# Running


def returning(**outputs: Any) -> Callable[..., Any]:
    """A function of x that returns these."""

    def returned(x: Any) -> dict[str, Any]:
        del x
        return outputs

    return returned


X = {"x": column("Float64", [1.0, None])}
FLOAT = (Field("y", "Float64"),)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (returning(), r"returned returned \[\], its definition promises 'y' too"),
        (returning(z=np.zeros(2)), r"returned \['z'\], its definition promises 'y' too"),
        (returning(y=np.zeros(3)), "returned 3 values of y for 2 rows"),
        (returning(y=np.zeros(1)), "returned 1 values of y for 2 rows"),
        (returning(y=np.zeros((2, 2))), r"output y: shape \(2, 2\)"),
        (returning(y=5.0), "output y: 5.0 is one float"),
        (returning(y=np.float64(5.0)), "output y: .*5.0.* is one float64"),
        (returning(y="ab"), "output y: 'ab' is one str"),
        (returning(y=None), "output y: None is one NoneType"),
        (returning(y=np.array(["a", "b"])), "output y: .*expected Float64"),
        (returning(y=["1.5", None]), "output y: '1.5' is str; expected Float64"),
        (returning(y=np.array(["2020", "2021"], "M8[us]")), "output y: .*expected Float64"),
        (lambda x: x, "must return a dict of arrays, it returned ndarray"),
        (lambda x: [x], "must return a dict of arrays, it returned list"),
        (lambda x: None, "must return a dict of arrays, it returned NoneType"),  # noqa: ARG005
    ],
)
def test_what_a_function_returns_is_checked(function: Any, message: str) -> None:
    """A missing output, a wrong length, shape or dtype: DataError naming function and output."""
    with pytest.raises(DataError, match=message):
        run(function, X, FLOAT, 2)
    with pytest.raises(DataError, match=message.replace("2 rows", "1 rows").replace("1 values", "[13] values")):
        run_on_few(_not_one_value(function), [("x", "Float64", [1.0])], FLOAT, 1)


def _not_one_value(function: Any) -> Any:
    """`function`, whose arrays of one value have three: they would be right for one row."""

    def returned(x: Any) -> Any:
        found = function(x)
        longer = isinstance(found, dict) and isinstance(found.get("y"), np.ndarray) and found["y"].shape == (1,)
        return {"y": np.zeros(3)} if longer else found

    return returned


@pytest.mark.parametrize(
    ("dtype", "returned", "expected"),
    [
        ("Float64", np.array([1, 2]), [1.0, 2.0]),
        ("Float64", [1.0, None], [1.0, None]),
        ("Float64", np.array([np.nan, np.inf]), [None, math.inf]),
        ("Float32", np.array([0.1, 2.0]), [float(np.float32(0.1)), 2.0]),
        ("Int64", np.ma.MaskedArray([BIG, 1], [False, True]), [BIG, None]),
        ("Int64", np.array([BIG, None], object), [BIG, None]),
        ("Int64", pd.Series([BIG, None], dtype="Int64"), [BIG, None]),
        ("Int64", np.array([2.0, np.nan]), [2, None]),
        ("Int32", np.array([7, -7]), [7, -7]),
        ("Bool", np.ma.MaskedArray([True, True], [False, True]), [True, None]),
        ("String", np.array(["a", None], object), ["a", None]),
        ("String", np.array(["a", "bc"]), ["a", "bc"]),
        ("Bytes", np.array([b"a", None], object), [b"a", None]),
        (
            "UnixTimestamp",
            np.array(["1970-01-01T00:00:01", "NaT"], "M8[ns]"),
            [datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), None],
        ),
    ],
)
def test_nulls_and_dtypes_of_outputs(dtype: Dtype, returned: Any, expected: list[Any]) -> None:
    """Every NumPy form of a null comes back as one, and the promised dtype is what comes out."""
    found = run(returning(y=returned, more=0), X, [Field("y", dtype)], 2)
    assert list(found) == ["y"]
    assert found["y"].dtype == dtype
    assert found["y"].to_list() == expected


@pytest.mark.parametrize("promised", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=5)
@given(data=st.data())
def test_few_rows_are_run_as_many_are(dtype: Dtype, promised: Dtype, data: st.DataObject) -> None:
    """The same input, a null too, is the same array to the function, and its output the same value, by bits and type."""
    items = data.draw(st.lists(st.none() | ITEMS[dtype], min_size=1, max_size=4))
    seen: list[Any] = []

    def look(x: Any) -> dict[str, Any]:
        seen.append(x)
        return {"y": x}

    def answer(call: Callable[[], Any]) -> tuple[str, Any]:
        try:
            return "", call()
        except DataError as error:
            return str(error), None

    count = len(items)
    given_column = {"x": column(dtype, items)}
    refused, found = answer(lambda: run_on_few(look, [("x", dtype, items)], [Field("y", promised)], count))
    expected_refused, expected = answer(lambda: run(look, given_column, [Field("y", promised)], count)["y"])
    assert refused == expected_refused
    assert type(seen[0]) is type(seen[1])
    assert seen[0].dtype == seen[1].dtype
    assert [repr(value) for value in seen[0].tolist()] == [repr(value) for value in seen[1].tolist()]
    if not refused:
        values = expected.values.tolist()
        assert repr(found) == repr([[v if ok else None for v, ok in zip(values, expected.valid, strict=True)]])


def test_inputs_have_numpys_own_nulls() -> None:
    """NaN, NaT, None, and masks for integers and booleans, at full width."""
    seen: dict[str, Any] = {}

    def look(f: Any, i: Any, b: Any, s: Any, t: Any) -> dict[str, Any]:
        seen.update(f=f, i=i, b=b, s=s, t=t)
        return {"y": i}

    inputs = {
        "f": column("Float64", [1.0, None]), "i": column("Int64", [BIG, None]), "b": column("Bool", [True, None]),
        "s": column("String", ["a", None]), "t": column("UnixTimestamp", [1, None]),
    }  # fmt: skip
    assert run(look, inputs, [Field("y", "Int64")], 2)["y"].to_list() == [BIG, None]
    assert seen["f"].dtype == np.float64
    assert np.isnan(seen["f"]).tolist() == [False, True]
    assert seen["i"].tolist() == [BIG, None]
    assert seen["b"].tolist() == [True, None]
    assert seen["s"].tolist() == ["a", None]
    assert seen["t"].dtype == np.dtype("M8[us]")
    assert np.isnat(seen["t"]).tolist() == [False, True]


def test_floating_point_warnings_are_the_functions_own() -> None:
    """0/0 is NaN and so null, without a warning."""
    assert run(transforms.divided, {"x": column("Float64", [1.0])}, FLOAT, 1)["y"].to_list() == [math.inf]


MESSAGE: dict[str, Column] = {
    "x": column("Float64", [1.0, None, 3.0]),
    "n": column("Int64", [BIG, None, 3]),
    "s": column("String", ["a", None, "c"]),
}


def test_event_functions_add_and_replace_columns() -> None:
    """What the function returns replaces or joins the message's columns; the rest passes untouched."""
    found = run_on_events(transforms.scaled, MESSAGE, 3)
    assert sorted(found) == ["m", "n", "s", "x", "y"]
    assert found["y"].to_list() == [2.0, None, 6.0]
    assert found["m"].dtype == "Int64"
    assert found["m"].to_list() == [BIG + 1, None, 4]
    assert found["s"] is MESSAGE["s"]
    assert run_on_events(None, MESSAGE, 3) == MESSAGE


def test_event_functions_that_ask_or_answer_wrongly() -> None:
    """An input that the message lacks, a column of another length or of no feature dtype."""
    with pytest.raises(DefinitionError, match=r"scaled asks for \['n'\], the message has \['x'\]"):
        run_on_events(transforms.scaled, {"x": MESSAGE["x"]}, 3)
    for wrong, message in (
        (np.zeros(2), "2 values of y for 3 rows"),
        (5.0, "output y"),
        (np.zeros(3, "c16"), "complex128"),
    ):
        with pytest.raises(DataError, match=message):
            run_on_events(returning(y=wrong), MESSAGE, 3)


# As Feast calls them


SERIES: list[tuple[Any, Dtype, list[Any]]] = [
    (pd.Series([BIG, None], dtype="Int64"), "Int64", [BIG, None]),
    (pd.Series([BIG, None], dtype=object), "Int64", [BIG, None]),
    (pd.Series([BIG, 2]), "Int64", [BIG, 2]),
    (pd.Series([5, None], dtype="Int32"), "Int32", [5, None]),
    (pd.Series([True, None], dtype=object), "Bool", [True, None]),
    (pd.Series([True, None], dtype="boolean"), "Bool", [True, None]),
    (pd.Series([b"a", None]), "Bytes", [b"a", None]),
    (pd.Series(["a", None]), "String", ["a", None]),
    (pd.Series(["a", None], dtype="string"), "String", ["a", None]),
    (pd.Series([1.5, None], dtype="Float64"), "Float64", [1.5, None]),
    (pd.Series([1.5, None]), "Float64", [1.5, None]),
    (pd.Series([1.5, 2, None], dtype=object), "Float64", [1.5, 2.0, None]),
    (pd.Series([1.5], dtype="float32"), "Float32", [1.5]),
    (pd.Series(pd.to_datetime(["1970-01-01T00:00:01", "NaT"])), "UnixTimestamp", [1_000_000, None]),
    (pd.Series(pd.to_datetime(["1970-01-01T00:00:01", "NaT"], utc=True)), "UnixTimestamp", [1_000_000, None]),
    (pd.Series([datetime(1970, 1, 1), None], dtype=object), "UnixTimestamp", [0, None]),
    (pd.Series([None, None], dtype=object), "String", [None, None]),
]


@pytest.mark.parametrize(("series", "dtype", "expected"), SERIES, ids=lambda item: str(getattr(item, "dtype", item)))
def test_frames_go_in_and_out_whole(series: Any, dtype: Dtype, expected: list[Any]) -> None:
    """Whatever pandas makes of a column with nulls, the function sees its dtype and 2**60 + 1 stays exact both ways."""
    seen: dict[str, Any] = {}

    def look(x: Any) -> dict[str, Any]:
        seen["x"] = x
        return {"y": x}

    frame = pd.DataFrame({"x": series, "unused": 1})
    frame.index = pd.RangeIndex(5, 5 + len(series))
    found = on_frame(look)(frame)
    again = column(dtype, seen["x"])
    assert [v if ok else None for v, ok in zip(again.values.tolist(), again.valid.tolist(), strict=True)] == expected
    assert found.index.tolist() == frame.index.tolist()
    out = column(dtype, found["y"])
    assert out.values.tolist() == again.values.tolist()
    assert out.valid.tolist() == again.valid.tolist()


def test_frames_without_an_input_are_refused() -> None:
    """The frame that Feast hands over lacks a column: DefinitionError saying what there is."""
    with pytest.raises(DefinitionError, match=r"scaled asks for 'n'.*\['x'\]"):
        on_frame(transforms.scaled)(pd.DataFrame({"x": [1.0]}))


def test_a_udf_is_a_reference_with_a_hash() -> None:
    """The text in Feast's registry imports the function, holds its hash and runs to the same frame function."""
    udf = as_udf(transforms.scaled)
    assert set(udf) == {"mode", "udf", "udf_string"}
    assert udf["udf"].transformation is transforms.scaled
    assert udf["udf"].__name__ == "scaled"
    assert describe(transforms.scaled).source_hash in udf["udf_string"]
    namespace: dict[str, Any] = {}
    exec(udf["udf_string"], namespace)
    assert namespace["scaled"].transformation is transforms.scaled
    frame = pd.DataFrame({"x": [1.0], "n": [BIG]})
    for function in (udf["udf"], namespace["scaled"]):
        assert function(frame).to_dict("list") == {"y": [2.0], "m": [BIG + 1]}


def test_threads_may_hash_at_the_same_time() -> None:
    """Workers that start together load their functions together, and the interpreter makes one syntax tree at a time."""
    source = inspect.getsource(functions)
    expected = source_hash(source, "describe")
    thresholds = gc.get_threshold()

    def give_way(*_: object) -> None:
        time.sleep(0)  # another thread runs while a tree is half made

    gc.callbacks.append(give_way)
    gc.set_threshold(50)
    try:
        with ThreadPoolExecutor(4) as pool:
            hashes = list(pool.map(lambda _: source_hash(source, "describe"), range(8)))
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(give_way)
    assert hashes == [expected] * 8
