"""The errors of the embedded services: one plain sentence saying what, where, and what to do."""

from __future__ import annotations


class LocalServiceError(RuntimeError):
    """An embedded service, or the connector stand-in, could not do its work."""


class ChildDiedError(LocalServiceError):
    """A service's process ended before it answered."""
