"""How a process reaches Redis: one address, three topologies, two kinds of client, and what to say when it fails.

    client = connections.open_client("rediss+sentinel://worker:secret@s1:26379,s2:26379/features/0")
    with connections.reaching(client):
        client.ping()

Imports redis and nothing heavier: inference workers pay for it.
"""

from connections.address import Address, redacted
from connections.clients import AsyncClient, Client, next_reply, open_async_client, open_client
from connections.deadline import ending, punctual, until
from connections.errors import (
    ClusterDownError,
    LoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RefusedError,
    explained,
    reaching,
    where,
)

__all__ = [
    "Address",
    "AsyncClient",
    "Client",
    "ClusterDownError",
    "LoadingError",
    "OutOfMemoryError",
    "ReadOnlyError",
    "RefusedError",
    "ending",
    "explained",
    "next_reply",
    "open_async_client",
    "open_client",
    "punctual",
    "reaching",
    "redacted",
    "until",
    "where",
]
