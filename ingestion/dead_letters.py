"""Dead letters: messages that cannot be used, on a topic beside theirs, with their bytes, headers and the reason."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tally.errors import UnavailableError

log = logging.getLogger(__name__)

SUFFIX: Final = ".dlq"
TOPIC, PARTITION, OFFSET = "tally-topic", "tally-partition", "tally-offset"
REASON, VIEW, DEFINITION = "tally-reason", "tally-view", "tally-definition"
"""Headers of a letter, behind those that its message had."""
KAFKA_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.1

_CONSUMER_ONLY: Final = ("group.", "session.", "heartbeat.", "auto.", "enable.", "fetch.", "max.poll.", "queued.")


@dataclass(frozen=True, slots=True)
class Letter:
    """A message, why it cannot be used, for which view (empty: for all), and the hash of the definition that says so.

    That is the view's, or `decoding.schema_hash` where the message does not decode.
    """

    message: Message
    view: str
    reason: str
    definition: str


class DeadLetters:
    """The dead-letter topics of one Kafka (`config`: librdkafka's properties); they are created when first needed."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = {name: value for name, value in config.items() if not name.startswith(_CONSUMER_ONLY)}
        self._ready: set[str] = set()
        self._producer: Producer | None = None

    def write(self, topic: str, letters: Sequence[Letter]) -> None:
        """Write letters of a topic and return when Kafka has them all. Raises UnavailableError."""
        if not letters:
            return
        target = topic + SUFFIX
        failures: list[str] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failures.append(error.str())

        producer = self._producer_for(target)
        for letter in letters:
            message = letter.message
            headers = [
                *(message.headers() or []),
                (TOPIC, message.topic().encode()),
                (PARTITION, str(message.partition()).encode()),
                (OFFSET, str(message.offset()).encode()),
                (REASON, letter.reason.encode()),
                (VIEW, letter.view.encode()),
                (DEFINITION, letter.definition.encode()),
            ]
            while True:
                try:
                    producer.produce(target, message.value(), message.key(), headers=headers, on_delivery=delivered)
                    break
                except BufferError:  # the queue is full: let some of it go
                    producer.poll(POLL_SECONDS)
        left = producer.flush()
        if failures or left:
            raise UnavailableError(
                f"Dead letters could not be written to Kafka topic {target} at {self._config.get('bootstrap.servers')} "
                f"({failures[0] if failures else 'no answer'}); create the topic and let us write to it. Nothing of their "
                "batch was committed."
            )

    def _producer_for(self, target: str) -> Producer:
        if target not in self._ready:
            admin = AdminClient(self._config, logger=log)  # must outlive the call
            created = admin.create_topics([NewTopic(target, 1, -1)], request_timeout=KAFKA_SECONDS)
            try:
                created[target].result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    log.warning("topic %s could not be created (%s); it may exist", target, error.args[0].str())
            self._ready.add(target)
        if self._producer is None:
            self._producer = Producer({**self._config, "enable.idempotence": True}, logger=log)
        return self._producer
