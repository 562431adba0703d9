"""A schema registry: which schema has which id. Confluent's client, and its errors as ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from httpx2 import URL, HTTPError, InvalidURL

from tally.errors import ArgumentError, UnavailableError

_NOT_FOUND: Final = 404


class SchemaRegistry:
    """The registry at `config["url"]`; the other properties are those of Confluent's client.

    Raises ArgumentError for what is no URL, UnavailableError where a file is not there.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        try:
            address = URL(str(config["url"]))
        except InvalidURL:
            address = URL("")
        if address.scheme not in ("http", "https") or not address.host:
            # Not shown: it may hold a password.
            raise ArgumentError("SCHEMA_REGISTRY_URL is not an address like https://HOST:8081; correct it.")
        self._shown = str(address.copy_with(username=None, password=None))
        try:
            self._client = SchemaRegistryClient({"max.retries": 2, **config})
        except (ValueError, OSError) as error:
            raise self._unavailable(str(error)) from error

    def avro(self, schema_id: int) -> tuple[str, ...] | None:
        """The Avro schema with an id, after those that it refers to; None when there is no such id.

        Raises UnavailableError when the registry cannot be asked, or does not let us ask.
        """
        try:
            schema = self._client.get_schema(schema_id)
            referred: dict[tuple[str, int], str] = {}
            self._follow(schema.references or [], referred)
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                return None
            raise self._unavailable(error.error_message) from error
        except (HTTPError, OSError) as error:
            raise self._unavailable(str(error)) from error
        if (schema.schema_type or "AVRO") != "AVRO":
            # Text that cannot be compiled: the messages are refused with what it is.
            return (json.dumps(f"a schema of type {schema.schema_type}"),)
        return (*referred.values(), schema.schema_str)

    def _follow(self, references: list[Any], found: dict[tuple[str, int], str]) -> None:
        for reference in references:
            place = reference.subject, reference.version
            if place in found:
                continue
            schema = self._client.get_version(*place).schema
            self._follow(schema.references or [], found)
            found[place] = schema.schema_str

    def _unavailable(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"The schema registry at {self._shown} cannot be used ({reason}); check "
            "SCHEMA_REGISTRY_URL, its credentials, and that it is up."
        )
