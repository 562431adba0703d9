"""`/metrics`, `/health` and `/ready` of a worker, over HTTP, from a thread of their own.

`/health` (for a liveness probe) is 503 when the loop has not gone round for a minute; waiting for a server that is away counts as
alive, for a restart would not help. `/ready` is 503 until the group has given this worker its share of the partitions, and
while it waits for Redis or Kafka. Both say why in JSON.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ingestion.metrics import Metrics
from ingestion.report import State
from tally.errors import UnavailableError

SILENCE_SECONDS: Final = 60.0


@contextmanager
def serving(state: State, metrics: Metrics, port: int) -> Iterator[int]:
    """Answer on all addresses at `port` (0: any that is free) during the block; gives the port.

    Raises UnavailableError when it is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics.registry))
            elif path in ("/health", "/ready"):
                reasons = unhealthy(state) if path == "/health" else unready(state)
                body = json.dumps({"ok": not reasons, "reasons": reasons, "lag": sum(state.lag.copy().values())})
                self._answer(503 if reasons else 200, "application/json", body.encode())
            else:
                self._answer(404, "text/plain", b"/metrics, /health or /ready\n")

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Probes come every few seconds and are not worth a line."""

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        raise UnavailableError(
            f"Port {port} cannot be opened for metrics ({error}); choose another --metrics-port."
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="tally-http", daemon=True
    )
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unhealthy(state: State) -> list[str]:
    """Why a restart would help; empty when it would not."""
    silence = time.monotonic() - state.ticked
    return [f"the loop has not gone round for {silence:.0f} s"] if silence > SILENCE_SECONDS else []


def unready(state: State) -> list[str]:
    """Why this worker applies nothing now; empty when it does."""
    reasons = unhealthy(state)
    if not state.joined:
        reasons.append("the consumer group has not given it partitions yet")
    return reasons + list(state.away.copy().values())
