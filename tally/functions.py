"""Transformations: plain functions from named NumPy columns to named NumPy columns, and how both sides run them.

A function's parameters name its inputs; it returns a dict of arrays, one value for each row. Nulls come and go in NumPy's
own forms: NaN in floats, NaT in ``datetime64[us]``, None in object arrays of strings, masks in integers and booleans
(`numpy.ma`). The same function gets a million rows offline and one online. The arrays that it gets are its own: it may write
into them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import ModuleType
from typing import Any, Final

import numpy as np

from tally.columns import Column, column, infer_dtype, is_null
from tally.dtypes import DTYPES, FLOATS, INTEGERS, STORAGE, VARIABLE_WIDTH, Dtype
from tally.errors import DataError, DefinitionError, DefinitionMismatchError
from tally.plan import Field, Function

Transformation = Callable[..., Mapping[str, Any]]


def parameters(function: Transformation) -> tuple[str, ...]:
    """Names of a transformation's inputs. Raises DefinitionError for ``*args`` and ``**kwargs``."""
    signature = inspect.signature(function).parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in signature):
        raise DefinitionError(f"{_name(function)} must name its inputs one by one, without * or **.")
    return tuple(p.name for p in signature)


def describe(function: Transformation) -> Function:
    """Reference and source hash of a module-level function. Raises DefinitionError for any other."""
    module = inspect.getmodule(function)
    name = getattr(function, "__name__", "")
    if module is None or not inspect.isfunction(function) or getattr(module, name, None) is not function:
        raise DefinitionError(f"{_name(function)} must be a plain function at the top level of a module.")
    try:
        source = _source(module)
    except (OSError, TypeError) as error:
        raise DefinitionError(
            f"The source of {_name(function)} cannot be read ({error}); keep it in a .py file."
        ) from error
    return Function(f"{module.__name__}:{name}", source_hash(source, name))


_SOURCES: Final[dict[str, tuple[object, str]]] = {}


def _source(module: ModuleType) -> str:
    """The text of a module as it was when first asked for; a reload, which makes a new spec, asks again.

    A process runs the code that it imported. Were the file read each time, one that was replaced meanwhile would vouch for
    functions that are not the running ones.
    """
    spec = module.__spec__
    known = _SOURCES.get(module.__name__)
    if known is None or known[0] is not spec:
        known = _SOURCES[module.__name__] = spec, inspect.getsource(module)
    return known[1]


_PARSING: Final = threading.Lock()
"""Python 3.11 fails where two threads make syntax trees ("AST constructor recursion depth mismatch")."""


def source_hash(module_source: str, name: str) -> str:
    """Hash of a function's source and of every definition in its module that it reaches, in the order of the module.

    Comments outside those definitions, and other functions, do not change it. Imports that it uses do.
    """
    with _PARSING:
        statements = ast.parse(module_source).body
    deciding: dict[str, list[int]] = {}
    for position, statement in enumerate(statements):
        for decided in _decided(statement):
            deciding.setdefault(decided, []).append(position)
    reached: set[int] = set()
    pending = [name]
    seen: set[str] = set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        for position in deciding.get(current, ()):
            reached.add(position)
            pending.extend(_names(statements[position]))
    lines = module_source.split("\n")  # as `ast` counts them; str.splitlines also breaks at form feeds
    pieces = []
    for position in sorted(reached):
        statement = statements[position]
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(d.lineno for d in decorators)])
        pieces.append("\n".join(text.rstrip() for text in lines[first - 1 : statement.end_lineno]))
    return hashlib.sha256("\n".join(pieces).encode()).hexdigest()[:32]


def _decided(node: ast.AST) -> Iterator[str]:
    """Names whose meaning a statement of a module decides: it binds them, or may change what they hold."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield (alias.asname or alias.name).split(".")[0]
    elif isinstance(node, ast.Expr | ast.Delete) or isinstance(getattr(node, "ctx", None), ast.Store):
        yield from _names(node)  # X = ..., but also TABLE["x"] = ... and TABLE.update(...)
    elif not (isinstance(node, ast.If) and "__name__" in _names(node.test)):  # not run on import
        for child in ast.iter_child_nodes(node):
            yield from _decided(child)


def _names(node: ast.AST) -> list[str]:
    return [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)]


def load(function: Function) -> Transformation:
    """Import the function of a plan. Raises DefinitionMismatchError when it is missing or its source is another."""
    module_name, name = function.reference.split(":")
    try:
        loaded = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise DefinitionMismatchError(
            f"The plan needs the transformation {function.reference}, which cannot be imported here ({error}); "
            "install the feature repository's package, or put the folder that holds it on PYTHONPATH."
        ) from error
    installed = describe(loaded).source_hash
    if installed != function.source_hash:
        raise DefinitionMismatchError(
            f"{function.reference} has source hash {installed} here, the plan was made with {function.source_hash}; "
            "install the version that was applied, or run feast apply with this one."
        )
    return loaded  # type: ignore[no-any-return]


def run(
    function: Transformation, inputs: Mapping[str, Column], outputs: Iterable[Field], count: int
) -> dict[str, Column]:
    """Run a request function on `count` rows; `outputs` are what its definition promises.

    Raises DataError, naming the function, when an output is missing, of another length, or not of its dtype.
    """
    returned = _call(function, inputs)
    return {promised.name: _promised(function, promised, returned, count) for promised in outputs}


def _promised(function: Transformation, promised: Field, returned: Mapping[str, Any], count: int) -> Column:
    if promised.name not in returned:
        raise DataError(
            f"{_name(function)} returned {sorted(returned)}, its definition promises {promised.name!r} too."
        )
    return _returned(function, promised.name, promised.dtype, returned[promised.name], count)


def run_on_few(
    function: Transformation, inputs: Iterable[tuple[str, Dtype, list[Any]]], outputs: Iterable[Field], count: int
) -> list[list[Any]]:
    """As `run`, in lists: for each of `outputs` a value for each row, from (parameter, dtype, values) of each input.

    None is null, timestamps are int µs. Warnings of NumPy are for the caller to silence (``numpy.errstate(all="ignore")``),
    once for all functions. Columns would cost more than most functions do.
    """
    returned = function(**{name: _array_of(dtype, items) for name, dtype, items in inputs})
    if type(returned) is not dict:
        _require_mapping(function, returned)
    made = []
    for promised in outputs:
        array = returned.get(promised.name)
        if type(array) is np.ndarray and array.shape == (count,) and array.dtype == _SCALAR[promised.dtype]:
            items = array.tolist()
            if promised.dtype in FLOATS:
                items = [None if item != item else item for item in items]  # noqa: PLR0124 NaN is null
            made.append(items)
        else:
            found = _promised(function, promised, returned, count)
            pairs = zip(found.values.tolist(), found.valid.tolist(), strict=True)
            made.append([item if there else None for item, there in pairs])
    return made


_NO_SCALAR: Final = np.dtype("V1")
_SCALAR: Final = {d: STORAGE[d] if d in FLOATS or d in INTEGERS else _NO_SCALAR for d in DTYPES}
"""Arrays of which dtype hold an output as it is, but for NaN."""
_USER: Final = STORAGE | {"UnixTimestamp": np.dtype("datetime64[us]")}
_NULL: Final[dict[Dtype, Any]] = {"Float64": np.nan, "Float32": np.nan, "UnixTimestamp": np.datetime64("NaT", "us")}
"""What stands for a null in an array that a function gets, where it is no mask."""


def _array_of(dtype: Dtype, items: list[Any]) -> Any:
    """As `Column.to_user` of a column of these values."""
    if dtype in _NULL:
        return np.array(items if None not in items else _filled(items, _NULL[dtype]), _USER[dtype])
    if dtype in VARIABLE_WIDTH:
        values = np.empty(len(items), object)
        values[:] = items
        return values
    return np.ma.MaskedArray(np.array(_filled(items, 0), _USER[dtype]), np.array([item is None for item in items]))


def _filled(items: list[Any], null: Any) -> list[Any]:
    return [null if item is None else item for item in items]


def run_on_events(function: Transformation | None, columns: Mapping[str, Column], count: int) -> dict[str, Column]:
    """Run an event function on the columns of `count` messages: what it returns replaces or joins what came in."""
    result = dict(columns)
    if function is not None:
        missing = [name for name in parameters(function) if name not in columns]
        if missing:
            raise DefinitionError(f"{_name(function)} asks for {missing}, the message has {sorted(columns)}.")
        for name, array in _call(function, {name: columns[name] for name in parameters(function)}).items():
            array = array if isinstance(array, np.ndarray) else np.asarray(array)
            result[name] = _returned(function, name, infer_dtype(array), array, count)
    return result


def _call(function: Transformation, inputs: Mapping[str, Column]) -> Mapping[str, Any]:
    with np.errstate(all="ignore"):
        returned = function(**{name: values.to_user() for name, values in inputs.items()})
    _require_mapping(function, returned)
    return returned


def _require_mapping(function: Transformation, returned: Any) -> None:
    if not isinstance(returned, Mapping):
        raise DataError(f"{_name(function)} must return a dict of arrays, it returned {type(returned).__name__}.")


def _returned(function: Transformation, name: str, dtype: Any, array: Any, count: int) -> Column:
    values = column(dtype, array, f"{_name(function)} output {name}")
    if len(values) != count:
        raise DataError(
            f"{_name(function)} returned {len(values)} values of {name} for {count} rows; return one for each."
        )
    return values


def on_frame(function: Transformation) -> Callable[[Any], Any]:
    """`function` as Feast's pandas mode calls it: a frame in, a frame of its outputs out.

    The attribute ``transformation`` leads the compiler to the function itself. (Not ``__wrapped__``: Feast would then
    check the function's own signature.)
    """

    def frame_function(frame):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 Feast refuses other annotations
        inputs = {}
        for name in parameters(function):
            if name not in frame:
                there = sorted(other for other in frame.columns if "__" not in other)
                raise DefinitionError(
                    f"{_name(function)} asks for {name!r}, and the sources of the view that runs it have {there}; add a "
                    "source that has it."
                )
            inputs[name] = _from_series(frame[name], name)
        outputs = {}
        for name, array in _call(function, inputs).items():
            returned = np.asanyarray(array)
            values = column(_dtype_of(returned), returned, name)
            user = values.to_user()
            if isinstance(user, np.ma.MaskedArray):  # pandas would make floats of integers beside a null
                user = values.values if values.valid.all() else np.array(values.to_list(), object)
            outputs[name] = user
        return type(frame)(outputs, index=frame.index)

    frame_function.__name__ = frame_function.__qualname__ = function.__name__
    frame_function.__doc__ = function.__doc__
    frame_function.transformation = function  # type: ignore[attr-defined]
    return frame_function


def _from_series(series: Any, name: str) -> Column:
    """A column from a pandas Series: of the dtype that it has, or that its values have."""
    if isinstance(series.dtype, np.dtype):
        array = series.to_numpy()
        return column(_dtype_of(array), array, name)
    items = np.fromiter(series, object, len(series))
    nullable = getattr(series.dtype, "numpy_dtype", items.dtype)
    return column(infer_dtype(np.zeros(0, nullable)) if nullable.kind != "O" else _dtype_of(items), items, name)


def _dtype_of(array: Any) -> Dtype:
    """As `infer_dtype`, but objects are what all of them are that are not null."""
    if array.dtype.kind != "O":
        return infer_dtype(array)
    present = [item for item in array.tolist() if not is_null(item)]
    fitting = (dtype for dtype, kinds in _OBJECTS.items() if present and all(isinstance(i, kinds) for i in present))
    return next(fitting, "String")


_OBJECTS: Final[dict[Dtype, Any]] = {
    "Bool": bool | np.bool_,
    "Int64": int | np.integer,
    "Float64": int | float | np.number,
    "Bytes": bytes,
    "UnixTimestamp": datetime | np.datetime64,
}
"""What objects are when all of them are one of these; the first that fits, else strings."""


def as_udf(function: Transformation) -> dict[str, Any]:
    """How a Feast definition names a transformation: ``StreamFeatureView(..., **as_udf(transformations.landed))``.

    Feast keeps the text in its registry and builds the function from it, so the registry holds a reference instead of
    pickled code; the hash in it makes `feast apply` see that a function changed.
    """
    described = describe(function)
    module, name = described.reference.split(":")
    text = (
        f"# source hash {described.source_hash}\n"
        f"from {module} import {name} as shared\n"
        "from tally.functions import on_frame\n"
        f"{name} = on_frame(shared)\n"
    )
    return {"mode": "pandas", "udf": on_frame(function), "udf_string": text}


def _name(function: Transformation) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__name__', '?')}"
