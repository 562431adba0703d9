"""Messages as a worker takes and decodes them, while it is behind ahead of their turn."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial

from confluent_kafka import Message

from ingestion.avro import WriterSchema
from ingestion.decoding import Decoder, from_topic
from ingestion.kafka import GroupConsumer, Received
from ingestion.patience import Patience
from ingestion.wires import Messages
from tally.errors import UnavailableError
from tally.plan import Encoding, Field, Source

Schema = tuple[tuple[Field, ...], Encoding]
"""What decides what a message says: sources of one topic that agree on it are decoded once."""


def schema_of(source: Source) -> Schema:
    """The schema of a source's messages."""
    return source.message, source.encoding


def decoders_of(sources: Sequence[Source], writer_schema: WriterSchema | None) -> dict[Schema, Decoder]:
    """A decoder for each schema. Raises DefinitionError for one that Tally cannot read."""
    by_schema = {schema_of(source): source for source in sources}
    return {schema: from_topic(source, writer_schema) for schema, source in by_schema.items()}


def is_behind(lag: int, in_hand: int) -> bool:
    """Whether, of `lag` messages not applied yet, Kafka holds more than half as many again as the worker has in hand."""
    return 2 * (lag - in_hand) > in_hand


class Intake:
    """The messages of a consumer, and what they say. `topics` are the sources of each topic.

    `is_behind` is for its owner to set, and says whether `read_ahead` does anything.
    """

    def __init__(
        self,
        consumer: GroupConsumer,
        topics: Mapping[str, Sequence[Source]],
        decoders: Mapping[Schema, Decoder],
        stop: threading.Event,
        patience: Patience,
    ) -> None:
        self._consumer, self._decoders, self._stop, self._patience = consumer, decoders, stop, patience
        self._schemas = {topic: list(dict.fromkeys(map(schema_of, sources))) for topic, sources in topics.items()}
        self._ahead: Received = {}, ()
        self._decoded: dict[tuple[str, Schema], tuple[list[bytes | None], Messages]] = {}
        self.is_behind = False

    def received(self) -> Received:
        """What has come: what was read ahead, or else, as soon as there is a message, all that is there."""
        ahead, self._ahead = self._ahead, ({}, ())
        return ahead if any(ahead) else self._consumer.received()

    def read_ahead(self) -> None:
        """Take and decode the next batch while the views' threads apply this one: they wait for Redis much of the time.

        Only while the worker is behind: what is taken when a batch begins waits for two batches, what is taken when it has ended
        for one. What is read ahead counts for nothing until it is applied, and may be dropped at any time.
        """
        if not self.is_behind or any(self._ahead) or self._stop.is_set():
            return
        self._ahead = self._consumer.fetched()
        self._decoded.clear()
        for topic, messages in self._ahead[0].items():
            values = list(map(Message.value, messages))
            for schema in self._schemas[topic]:
                try:
                    self._decoded[topic, schema] = values, self._decoders[schema](values)
                except UnavailableError:
                    return  # the schema registry: it is asked again, with patience, when their turn comes

    def drop(self) -> None:
        """Forget what was read ahead."""
        self._ahead = {}, ()

    def decoded(self, topic: str, schema: Schema, values: list[bytes | None]) -> Messages:
        """What messages of a topic say. Waits for the schema registry: the messages are as good as ever."""
        known = self._decoded.pop((topic, schema), None)
        if known is not None and known[0] == values:
            return known[1]
        found = self._patience.outlast(partial(self._decoders[schema], values))
        self._patience.answered()
        return found
