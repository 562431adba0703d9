"""Dead letters, read again: what is open, what a replay would do, and the replay.

A replayed message is a new event: it goes to the end of its topic, with a new offset and a new CreateTime, and the landing
table gets it as the stream does, so both sides count the same events. Where only one view had refused the original, the
replay carries that view's name (`tally.events.FOR_VIEW`), and counts for it alone; otherwise it counts for all views of the
project, and in any case for no other project that reads the topic: each has letters of its own.

Only letters that the definition in use has written are replayed. Another definition reads the topic from its beginning, or
is bootstrapped from the landing table, and so judges the original itself: a replay would be counted beside it.

A replay is exactly once: the message and a note in the dead-letter topic that it was sent are one transaction of Kafka, and
of two replays at once the later one shuts the other out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from ingestion.avro import WriterSchema
from ingestion.dead_letters import (
    ANY_SIZE,
    DEFINITION,
    KAFKA_SECONDS,
    OFFSET,
    PARTITION,
    POLL_SECONDS,
    PROJECT,
    REASON,
    SUFFIX,
    TOPIC,
    VIEW,
)
from ingestion.decoding import columns, from_topic, schema_hash
from ingestion.kafka import CRITICAL, unusable
from ingestion.messages import view_rows
from tally.errors import UnavailableError
from tally.events import FOR_VIEW, for_view
from tally.functions import load
from tally.plan import Plan, Source
from tally.time import MILLISECOND

State = Literal["ready", "refused", "superseded"]
"""`ready`: the definition in use would take it now. `refused`: it would not. `superseded`: written by another definition."""

REPLAYED: Final = "tally-replayed"
"""Header of a note in a dead-letter topic: which letter was replayed. Notes have neither key nor value."""
REPLAY_OF: Final = "tally-replay-of"
"""Header of a replayed message: where the original is."""
_BATCH: Final = 1_000
_SILENCE_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A letter that was not replayed yet: whose it is (empty: nobody said), where its message is, for which view (empty: all), why."""

    project: str

    topic: str
    partition: int
    offset: int
    view: str
    reason: str
    definition: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    written: int
    """When the letter was written (µs)."""

    @property
    def place(self) -> str:
        """Where the message is, as text."""
        return f"{self.topic}[{self.partition}]@{self.offset}"

    @property
    def identity(self) -> str:
        """What a note of its replay says. A letter may be there more than once: a worker that crashed wrote it again."""
        return f"{self.project} {self.place} {self.view} {self.definition}".lstrip()


@dataclass(frozen=True, slots=True)
class Judged:
    """A letter, and what a replay would do with it; `why` explains what is not ready."""

    letter: DeadLetter
    state: State
    why: str


def read_letters(config: Mapping[str, Any], topics: Iterable[str], project: str) -> list[DeadLetter]:
    """The letters of a project in these topics that were not replayed, in the order in which they were written.

    A topic without a dead-letter topic has none. Raises UnavailableError when Kafka cannot be read.
    """
    letters: dict[str, DeadLetter] = {}
    replayed: set[str] = set()
    for message in _messages(config, [topic + SUFFIX for topic in topics]):
        headers = dict(message.headers() or ())
        if REPLAYED in headers:
            replayed.add(_text(headers[REPLAYED]))
        elif OFFSET in headers:
            letter = _letter(message, headers)
            if letter.project in ("", project):
                letters.setdefault(letter.identity, letter)
    return [letter for identity, letter in letters.items() if identity not in replayed]


def _letter(message: Message, headers: Mapping[str, bytes | None]) -> DeadLetter:
    ours = (TOPIC, PARTITION, OFFSET, REASON, PROJECT, VIEW, DEFINITION)
    said = {name: _text(headers.get(name)) for name in ours}
    return DeadLetter(
        project=said[PROJECT],
        topic=said[TOPIC],
        partition=int(said[PARTITION]),
        offset=int(said[OFFSET]),
        view=said[VIEW],
        reason=said[REASON],
        definition=said[DEFINITION],
        key=message.key(),
        value=message.value(),
        headers=tuple((name, value) for name, value in message.headers() if name not in ours),
        written=message.timestamp()[1] * MILLISECOND,
    )


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode(errors="replace")


def _messages(config: Mapping[str, Any], topics: Sequence[str]) -> list[Message]:
    """All messages of the topics, partition by partition. Raises UnavailableError."""
    reasons: list[str] = []
    reading = {"group.id": "tally-dead-letters", "enable.auto.commit": False, "enable.partition.eof": True}
    consumer = Consumer({**config, **reading, **_quiet(reasons)})
    found: list[Message] = []
    try:
        known = consumer.list_topics(timeout=KAFKA_SECONDS).topics
        open_places = {
            (topic, number)
            for topic in topics
            if topic in known and known[topic].error is None
            for number in known[topic].partitions
        }
        consumer.assign([TopicPartition(*place, 0) for place in sorted(open_places)])
        silent = 0.0
        while open_places:
            batch = consumer.consume(10_000, POLL_SECONDS)
            silent = 0.0 if batch else silent + POLL_SECONDS
            if silent > _SILENCE_SECONDS:
                raise UnavailableError(f"Kafka sent nothing of {sorted(open_places)}; check that the brokers are up.")
            for message in batch:
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                    open_places.discard((message.topic(), message.partition()))
                elif not error.retriable():
                    raise KafkaException(error)  # noqa: TRY301
    except KafkaException as error:
        consumer.poll(0)  # serves the error callback, which knows more
        raise _unavailable(config, error, reasons) from error
    finally:
        consumer.close()
    return sorted(found, key=lambda message: (message.topic(), message.partition(), message.offset()))


def _quiet(reasons: list[str]) -> dict[str, Any]:
    """Properties with which librdkafka says what fails to `reasons`, not to stderr."""
    return {"log_level": CRITICAL, "error_cb": lambda error: reasons.append(error.str())}


def _unavailable(config: Mapping[str, Any], error: KafkaException, reasons: Sequence[str]) -> UnavailableError:
    reason = reasons[0] if reasons else error.args[0].str()
    return UnavailableError(unusable(str(config.get("bootstrap.servers")), reason))


# What a replay would do


def judge(plan: Plan, letters: Sequence[DeadLetter], writer_schema: WriterSchema | None, now: int) -> list[Judged]:
    """What a replay at `now` (µs) would do with each letter. Raises UnavailableError for the schema registry."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for position, letter in enumerate(letters):
        groups.setdefault((letter.topic, letter.view, letter.definition), []).append(position)
    result: dict[int, Judged] = {}
    for (topic, view, definition), positions in groups.items():
        source = _source(plan, topic, view, definition)
        if source is None:
            why = "another definition wrote it; the one in use reads the message itself"
            result |= {position: Judged(letters[position], "superseded", why) for position in positions}
            continue
        reasons = _refusals(plan, source, view, [letters[position].value for position in positions], writer_schema, now)
        for row, position in enumerate(positions):
            why = reasons.get(row, "")
            result[position] = Judged(letters[position], "refused" if why else "ready", why)
    return [result[position] for position in range(len(letters))]


def _source(plan: Plan, topic: str, view: str, definition: str) -> Source | None:
    """The source under whose definition, or that of its view, a letter was written; None when it is in use no more."""
    for source in plan.sources:
        if source.topic != topic:
            continue
        if not view and schema_hash(source) == definition:
            return source
        if any(v.name == view and v.hash == definition and v.source == source.name for v in plan.views):
            return source
    return None


def _refusals(
    plan: Plan,
    source: Source,
    view: str,
    values: Sequence[bytes | None],
    writer_schema: WriterSchema | None,
    now: int,
) -> dict[int, str]:
    decoded = columns(source.message, from_topic(source, writer_schema)(values), len(values))
    if not view:
        return decoded.bad
    good = np.setdiff1d(np.arange(len(values)), np.array(list(decoded.bad), np.int64))
    of_view = plan.view(view)
    function = None if of_view.function is None else load(of_view.function)
    taken = {name: column.take(good) for name, column in decoded.columns.items()}
    _, _, reasons = view_rows(of_view, function, taken, len(good), np.full(len(good), now))
    return decoded.bad | {int(good[row]): reason for row, reason in reasons.items()}


# The replay


class Replayer:
    """Sends letters of one project back to their topics. To make one ends every other replay of the project.

    So `read_letters` comes after it: then it sees all that others have sent. Raises UnavailableError.
    """

    def __init__(self, config: Mapping[str, Any], project: str) -> None:
        self._config, self._project = config, project
        self._last: dict[tuple[Any, ...], Any] = {}
        self._reasons: list[str] = []
        mine = {"transactional.id": f"tally-replay-{project}"}
        self._producer = Producer({**config, **ANY_SIZE, **mine, **_quiet(self._reasons)})
        try:
            self._producer.init_transactions(_SILENCE_SECONDS)
        except KafkaException as error:
            raise self._failed(error) from error

    def send(self, letters: Sequence[DeadLetter]) -> int:
        """Send letters, each once; how many. Whoever reads the topics from now on finds them.

        Raises UnavailableError: then the letters that are still open were not sent.
        """
        try:
            for start in range(0, len(letters), _BATCH):
                self._producer.begin_transaction()
                for letter in letters[start : start + _BATCH]:
                    self._produce(letter.topic, letter.value, letter.key, _headers(letter, self._project))
                    self._produce(letter.topic + SUFFIX, None, None, [(REPLAYED, letter.identity.encode())])
                self._producer.commit_transaction(_SILENCE_SECONDS)
            self._wait_until_read()
        except KafkaException as error:
            raise self._failed(error) from error
        return len(letters)

    def _failed(self, error: KafkaException) -> UnavailableError:
        self._producer.poll(0)  # serves the error callback, which knows more
        return _unavailable(self._config, error, self._reasons)

    def _wait_until_read(self) -> None:
        """A commit is only a decision: brokers show the messages to readers once its marks are in every partition.

        Waits no longer than `_SILENCE_SECONDS`, for somebody else's open transaction may hide ours.
        """
        consumer = Consumer({**self._config, "group.id": "tally-dead-letters", **_quiet(self._reasons)})
        give_up = time.monotonic() + _SILENCE_SECONDS
        try:
            for place, last in self._last.items():
                while consumer.get_watermark_offsets(TopicPartition(*place), timeout=KAFKA_SECONDS)[1] <= last:
                    if time.monotonic() > give_up:
                        return
                    time.sleep(_PAUSE_SECONDS)
        finally:
            consumer.close()

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:  # otherwise the transaction fails, and says so
            self._last[message.topic(), message.partition()] = message.offset()

    def _produce(self, topic: str, value: bytes | None, key: bytes | None, headers: Any) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, headers=headers, on_delivery=self._delivered)
                return
            except BufferError:  # the queue is full: let some of it go
                self._producer.poll(POLL_SECONDS)


def _headers(letter: DeadLetter, project: str) -> list[tuple[str, bytes | None]]:
    ours: list[tuple[str, bytes | None]] = [(REPLAY_OF, letter.place.encode())]
    if letter.view or FOR_VIEW not in dict(letter.headers):  # else it is a replay for a view that did not decode
        ours.append((FOR_VIEW, for_view(project, letter.view).encode()))
    given = {name for name, _ in ours}
    return [(name, value) for name, value in letter.headers if name not in given] + ours
