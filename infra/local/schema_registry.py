"""A small schema registry over HTTP, for tests: ids to schemas, as Confluent's REST interface answers them.

Confluent's own is not on Maven Central and Apicurio's needs a server of hundreds of megabytes; what a worker asks is one
question, and this answers it.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Registry:
    """A running registry: where it is, the schemas that it knows, and how often it was asked.

    `references` of a schema are (subject, version); `refuse` is an HTTP status to answer everything with.
    """

    url: str = ""
    schemas: dict[int, str] = field(default_factory=dict)
    references: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    versions: dict[tuple[str, int], int] = field(default_factory=dict)
    asked: int = 0
    refuse: int = 0

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """(status, body) of GET `path`."""
        self.asked += 1
        parts = path.split("?", maxsplit=1)[0].strip("/").split("/")
        if self.refuse:
            return self.refuse, {"error_code": self.refuse, "message": "refused"}
        if parts[:2] == ["schemas", "ids"] and int(parts[2]) in self.schemas:
            return 200, self._described(int(parts[2]))
        if parts[0] == "subjects" and (parts[1], int(parts[3])) in self.versions:
            number = self.versions[parts[1], int(parts[3])]
            return 200, {**self._described(number), "subject": parts[1], "version": int(parts[3]), "id": number}
        return 404, {"error_code": 40403, "message": "Schema not found"}

    def _described(self, number: int) -> dict[str, Any]:
        return {"schema": self.schemas[number], "references": self.references.get(number, [])}


@contextmanager
def serving(user: str = "", password: str = "") -> Iterator[Registry]:
    """A registry on a free port for the block; with a user, it wants basic authentication."""
    registry = Registry()
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = registry.answer(self.path)
            if user and self.headers.get("Authorization") != expected:
                status, body = 401, {"error_code": 401, "message": "Unauthorized"}
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    registry.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
