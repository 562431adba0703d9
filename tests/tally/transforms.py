"""Transformations for the tests of running them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

SCALE = 2


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that keeps the function's name."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def renamed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that hides the function's name."""

    def wrapper(x: Any) -> Any:
        return function(x)

    return wrapper


def scaled(x: Any, n: Any) -> dict[str, Any]:
    """Two outputs of two inputs."""
    return {"y": x * SCALE, "m": n + 1}


@logged
def decorated(x: Any) -> dict[str, Any]:
    """As a plain one."""
    return {"y": x}


@renamed
def hidden(x: Any) -> dict[str, Any]:
    """Its name is lost."""
    return {"y": x}


def same(x: Any) -> dict[str, Any]:
    """Its input."""
    return {"y": x}


def starred(*columns: Any) -> dict[str, Any]:
    """Inputs without names."""
    return {"y": columns[0]}


def keyworded(**columns: Any) -> dict[str, Any]:
    """Inputs without names."""
    return {"y": columns["x"]}


def positional(x: Any, /) -> dict[str, Any]:
    """An input that cannot be named."""
    return {"y": x}


def divided(x: Any) -> dict[str, Any]:
    """Divides by zero, as user functions do."""
    return {"y": np.ones(len(x)) / (x - x)}


NOT_PLAIN = functools.partial(same)
