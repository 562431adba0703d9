"""The emulator's process: `python -m infra.local.snowflake_server DIRECTORY DATABASE SCHEMA`.

It is fakesnow's own server with four mends:
NULL timestamps stay NULL, a statement that fakesnow cannot run is an error at once instead of an endless retry, staged
files live in DIRECTORY instead of the system's temporary directory, and its databases are there after a restart.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import fakesnow.arrow
import fakesnow.server
import pyarrow as pa
import pyarrow.compute as pc
import uvicorn
from fakesnow.instance import FakeSnow
from fakesnow.transforms import stage
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

# What a real account does and the emulator has no notion of: accepted and ignored.
_IGNORED = [
    r"^\s*ALTER\s+SESSION\b",
    r"^\s*ALTER\s+WAREHOUSE\b",
    r"^\s*DROP\s+STAGE\b",
    r"^\s*GRANT\b",
    r"^\s*USE\s+(WAREHOUSE|ROLE)\b",
]

_encode_timestamps = fakesnow.arrow.timestamp_to_sf_struct


def encode_timestamps(timestamps: pa.Array | pa.ChunkedArray) -> pa.StructArray:
    """The encoding of fakesnow, of timestamps, with nulls kept; as it stands they become 1970-01-01."""
    if isinstance(timestamps, pa.ChunkedArray):
        timestamps = timestamps.combine_chunks()
    if isinstance(timestamps, pa.ChunkedArray):
        timestamps = pa.concat_arrays(timestamps.chunks)
    epoch = pa.scalar(0, pa.int64()).cast(timestamps.type)
    encoded = _encode_timestamps(timestamps.fill_null(epoch))
    return pa.StructArray.from_arrays(encoded.flatten(), fields=list(encoded.type), mask=pc.is_null(timestamps))


async def query(request: Request) -> Response:
    """The query endpoint of fakesnow; its internal errors, which the connector would retry, end the statement."""
    response: Response = await fakesnow.server.query_request(request)
    if response.status_code < 500:
        return response
    message = "The Snowflake emulator cannot run this statement: its log has the statement and the reason."
    return JSONResponse(
        {"data": {"errorCode": "261000", "sqlState": "0A000"}, "code": "261000", "message": message, "success": False}
    )


async def process_id(_: Request) -> Response:
    """Which process answers."""
    return JSONResponse(os.getpid())


def application() -> Starlette:
    """The server's routes: fakesnow's, with `query` mended, and one that tells which process answers."""
    path = "/queries/v1/query-request"
    kept = [route for route in fakesnow.server.routes if route.path != path]
    return Starlette(routes=[Route(path, query, methods=["POST"]), Route("/tally/pid", process_id), *kept])


async def serve(directory: Path, database: str, schema: str) -> None:
    """Serve until SIGTERM. The port is in `directory/port` as soon as connections are accepted."""
    databases = directory / "databases"
    databases.mkdir(parents=True, exist_ok=True)
    stage.LOCAL_BUCKET_PATH = str(directory / "stages")
    fakesnow.arrow.timestamp_to_sf_struct = encode_timestamps
    emulator = FakeSnow(db_path=databases, nop_regexes=_IGNORED)
    fakesnow.server.shared_fs = emulator
    for known in sorted(databases.glob("*.db")):
        emulator.connect(known.stem).close()
    emulator.connect(database, schema).close()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        scratch = directory / "port.new"
        scratch.write_text(str(listener.getsockname()[1]))
        scratch.replace(directory / "port")
        configuration = uvicorn.Config(application(), log_level="warning", timeout_graceful_shutdown=2)
        await uvicorn.Server(configuration).serve(sockets=[listener])
    # Writes what is still in the write-ahead log into the database files.
    emulator.duck_conn.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
