"""What the offline store keeps of a source: one Delta table, and with each commit what the extraction knew.

Landing tables (sources with a topic) are kept decoded: who the event is (`_partition`, `_offset`), when it came
(`_create_time`, `_landed_at`), the view that it is for where it is for one only (`_only_view`, see `tally.events.FOR_VIEW`),
and the message's fields with their types. Messages that do not decode lie beside them in ``<source>__rejected``, with their
reasons. Batch tables hold the typed columns that the views need.

Each commit carries the extraction's watermark, and a hash of what the rows were decoded as.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
from deltalake import DeltaTable

from ingestion.arrow import INSTANT
from ingestion.delta import open_version
from tally.errors import DataError, NotReadyError
from tally.plan import Field, Plan, Source, digest

PARTITION: Final = "_partition"
OFFSET: Final = "_offset"
CREATE_TIME: Final = "_create_time"
LANDED_AT: Final = "_landed_at"
ONLY_VIEW: Final = "_only_view"
IDENTITY: Final = pa.schema(
    [
        pa.field("_topic", pa.string()),
        pa.field(PARTITION, pa.int32()),
        pa.field(OFFSET, pa.int64()),
        pa.field(CREATE_TIME, INSTANT),
        pa.field(LANDED_AT, INSTANT),
        pa.field(ONLY_VIEW, pa.string()),
    ]
)
"""Columns that say which event a landed row is, and when it came."""
REJECTED: Final = pa.schema([*IDENTITY, pa.field("content", pa.binary()), pa.field("reason", pa.string())])
METADATA_KEY: Final = "tally"


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a commit says of the extraction that made it.

    `schema_hash` is `source_hash` of the definitions in use. For landing tables `offsets` is the greatest offset landed
    per partition (bad messages included), `landed` the number of rows that the warehouse had up to there, and `sums` the sum
    of their offsets, so that rows which land late are noticed, also while old ones are deleted. For batch tables `instant` is the greatest created or event time (µs), None without any.
    """

    schema_hash: str
    offsets: dict[int, int]
    landed: dict[int, int]
    instant: int | None
    sums: dict[int, int] = dataclasses.field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """As the custom metadata of a commit."""
        return {METADATA_KEY: json.dumps(asdict(self))}

    @staticmethod
    def from_metadata(text: str) -> Extracted:
        """From the text that `to_metadata` made."""
        document = {"sums": {}, **json.loads(text)}  # earlier versions kept no sums
        offsets, landed, sums = (
            {int(k): v for k, v in document[name].items()} for name in ("offsets", "landed", "sums")
        )
        return Extracted(document["schema_hash"], offsets, landed, document["instant"], sums)


def rejected_name(source: Source) -> str:
    """The table of a source's messages that do not decode."""
    return f"{source.name}__rejected"


def source_fields(plan: Plan, source: Source) -> tuple[Field, ...]:
    """The typed columns that are kept of a source: its message's fields, or what its batch views need, by name.

    Raises DataError when two views give one column different dtypes.
    """
    if source.topic:
        return source.message
    dtypes: dict[str, tuple[Any, str]] = {}
    for view in plan.views:
        if view.source != source.name:
            continue
        for field in view.columns:
            dtype, owner = dtypes.setdefault(field.name, (field.dtype, view.name))
            if dtype != field.dtype:
                raise DataError(
                    f"Column {field.name} of {source.table} is {dtype} in {owner} and {field.dtype} in {view.name}; "
                    "give it one dtype in both feature views."
                )
    return tuple(Field(name, dtype) for name, (dtype, _) in sorted(dtypes.items()))


def source_hash(plan: Plan, source: Source) -> str:
    """Hash of what a source's rows are decoded as: rows that are kept under another hash must be extracted again."""
    fields = [[field.name, field.dtype] for field in source_fields(plan, source)]
    return digest([fields, source.topic, source.timestamp, source.created, IDENTITY.names, asdict(source.encoding)])


def extracted(table: DeltaTable, name: str) -> Extracted:
    """What the last extraction into this version of the table knew. Raises NotReadyError when no commit says."""
    version = table.version()
    # The newest table's history: delta-rs numbers that of an older version wrongly. The newest commit comes first.
    for commit in DeltaTable(table.table_uri).history():
        if commit["version"] > version:
            continue
        if METADATA_KEY in commit:
            return Extracted.from_metadata(commit[METADATA_KEY])
        if commit.get("operation") == "RESTORE":  # what had come after that version is gone again
            version = int(commit["operationParameters"].get("version", -1))
    raise NotReadyError(
        f"No commit of offline table {name} carries an extraction's watermark; run: tally ingest --full {name}"
    )


def checked(plan: Plan, source: Source, table: DeltaTable) -> Extracted:
    """`extracted`, of a table whose rows are those of the definitions in use. Raises NotReadyError for any other."""
    known = extracted(table, source.name)
    if known.schema_hash != source_hash(plan, source):
        raise NotReadyError(
            f"Offline table {source.name} (version {table.version()}) was extracted under another definition of its "
            f"message; run: tally ingest --full {source.name}"
        )
    return known


def high_watermarks(plan: Plan, source: Source, offline_uri: str, version: int | None = None) -> dict[int, int]:
    """Partition -> greatest offset landed (bad messages included) in a landing table, at `version`.

    Raises NotReadyError when it was never ingested, or under another definition of the message.
    """
    table = open_version(offline_uri, source.name, version)
    return checked(plan, source, table).offsets
