"""Dead letters: messages that cannot be used, on a topic beside theirs, with their bytes, headers and the reason."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from connections import RefusedError
from ingestion.kafka import Headers, headers_of, without_consumer
from tally.errors import UnavailableError

log = logging.getLogger(__name__)

SUFFIX: Final = ".dlq"
TOPIC, PARTITION, OFFSET = "tally-topic", "tally-partition", "tally-offset"
REASON, PROJECT, VIEW, DEFINITION = "tally-reason", "tally-project", "tally-view", "tally-definition"
"""Headers of a letter, behind those that its message had."""
KAFKA_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.1

ANY_SIZE: Final = {"message.max.bytes": 1_000_000_000, "compression.type": "zstd"}
"""Properties of a producer that leaves it to the broker to say what is too large."""
_WRITING: Final = {
    **ANY_SIZE,
    "enable.idempotence": True,
    "message.timeout.ms": 30_000,
    "queue.buffering.max.kbytes": 131_072,  # as much as should get there in this time
}
_AWAY: Final = (KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)  # noqa: SLF001
_Contents = tuple[bytes | None, bytes | None, Headers]
"""(key, value, headers)."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message, why it cannot be used, for which view (empty: for all), and the hash of the definition that says so.

    That is the view's, or `decoding.schema_hash` where the message does not decode.
    """

    message: Message
    view: str
    reason: str
    definition: str


def _with_message(letter: Letter, project: str) -> _Contents:
    message = letter.message
    return (
        message.key(),
        message.value(),
        [*(headers_of([message])[0] or []), *_headers(letter, project, letter.reason)],
    )


def _without_message(letter: Letter, project: str, target: str) -> _Contents:
    message = letter.message
    place = f"{message.topic()}[{message.partition()}]@{message.offset()}"
    reason = f"{letter.reason} (key, value and headers are not here, for {target} takes no letter as large; they are at {place})"
    log.warning("the dead letter of %s is without its message: %s takes no letter as large", place, target)
    return None, None, _headers(letter, project, reason)


def _headers(letter: Letter, project: str, reason: str) -> Headers:
    message = letter.message
    return [
        (TOPIC, message.topic().encode()),
        (PARTITION, str(message.partition()).encode()),
        (OFFSET, str(message.offset()).encode()),
        (REASON, reason.encode()),
        (PROJECT, project.encode()),
        (VIEW, letter.view.encode()),
        (DEFINITION, letter.definition.encode()),
    ]


class DeadLetters:
    """The dead-letter topics of one Kafka (`config`: librdkafka's properties); they are created when first needed.

    Projects that read one topic share its dead-letter topic: each letter says whose it is.
    """

    def __init__(self, config: Mapping[str, Any], project: str) -> None:
        self._project = project
        self._config = without_consumer(config)
        self._ready: set[str] = set()
        self._producer: Producer | None = None

    def write(self, topic: str, letters: Sequence[Letter]) -> None:
        """Write letters of a topic and return when Kafka has them all.

        One that is too large for its topic goes there without what the message held. Raises UnavailableError, RefusedError when
        Kafka says no: then some of them may be there.
        """
        failed = self._sent(topic, [(letter, _with_message(letter, self._project)) for letter in letters])
        for letter in failed:  # it may be the batch in which it was sent that was too large
            if self._sent(topic, [(letter, _with_message(letter, self._project))]):
                self._sent(topic, [(letter, _without_message(letter, self._project, topic + SUFFIX))])

    def _sent(self, topic: str, letters: Sequence[tuple[Letter, _Contents]]) -> list[Letter]:
        """Those that were too large, when Kafka has the others."""
        if not letters:
            return []
        target = topic + SUFFIX
        too_large: list[Letter] = []
        failures: list[KafkaError] = []

        def delivered(letter: Letter, error: KafkaError | None, _: Message | None) -> None:
            if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                too_large.append(letter)
            elif error is not None:
                failures.append(error)

        producer = self._producer_for(target)
        for letter, (key, value, headers) in letters:
            while not failures:
                try:
                    producer.produce(target, value, key, headers=headers, on_delivery=partial(delivered, letter))
                    break
                except BufferError:  # the queue is full: let some of it go
                    producer.poll(POLL_SECONDS)
                except KafkaException as error:
                    delivered(letter, error.args[0], None)
                    break
        producer.flush()
        if failures:
            self._producer = None
            self._ready.discard(target)
            away = failures[0].code() in _AWAY
            raise (UnavailableError if away else RefusedError)(
                f"Dead letters could not be written to Kafka topic {target} at {self._config.get('bootstrap.servers')} "
                f"({failures[0].str()}); create the topic and let us write to it. Nothing of their batch was committed."
            )
        return too_large

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
            self._producer = Producer({**self._config, **_WRITING}, logger=log)
        return self._producer
