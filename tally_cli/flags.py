"""Commands whose help shows a flag as what is typed: Typer puts `<bool>` behind it, as if it took a value."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its arguments and options, with `--help`."""
        return _plain_flags(super().get_params(ctx))


class Group(TyperGroup):
    """Commands with options of their own."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, with `--help`."""
        return _plain_flags(super().get_params(ctx))


def _plain_flags(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params
