"""Extraction: Snowflake tables to the offline store, a little at a time, losing and doubling nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import snowflake.connector

from ingestion.batch_tables import BatchTable
from ingestion.delta import open_table
from ingestion.extraction import Ingested, Progress
from ingestion.landing_tables import LandingTable
from ingestion.offline import extracted, source_hash
from tally.errors import ArgumentError, DataError, NotReadyError, TallyError, UnavailableError
from tally.plan import Plan, Source


def ingest(
    plan: Plan,
    source_names: Sequence[str] | None,
    connect_args: Mapping[str, Any],
    offline_uri: str,
    *,
    full: bool = False,
    progress: Progress | None = None,
) -> list[Ingested]:
    """Bring what is new in these sources' tables (None: all) into the offline store; one commit for each source.

    `connect_args` are those of `snowflake.connector.connect` (`Settings.snowflake_connect_args()`). `full` reads whole
    tables and replaces what is kept; earlier versions stay readable. A run that fails leaves its source as it was.
    Raises DataError for a missing table or column or a type that does not fit, NotReadyError when the definitions have
    changed since the last run (then `full` is needed); both once the other sources are in, which the error's notes name, as
    they do further errors. Raises UnavailableError when Snowflake or the store cannot be reached, ArgumentError for a store of no
    known kind, at once.
    """
    names = [source.name for source in plan.sources] if source_names is None else source_names
    sources = [plan.source(name) for name in names]
    report = progress or (lambda _source, _done, _total: None)
    done: list[Ingested] = []
    failures: list[TallyError] = []
    with closing(_connect(connect_args)) as connection:
        for source in sources:
            try:
                done.append(_ingest_one(connection, plan, source, offline_uri, report, full=full))
            except ArgumentError:  # of the store, and so of every table
                raise
            except (DataError, NotReadyError) as error:
                failures.append(error)
    if not failures:
        return done
    first, *others = failures
    for other in others:
        first.add_note(str(other))
    if done:
        first.add_note(f"Ingested all the same: {', '.join(one.source for one in done)}.")
    raise first


def _connect(connect_args: Mapping[str, Any]) -> Any:
    try:
        # Bound by the server, so that a % in a name is a % in a name; and numbers with a scale as decimals: as doubles some
        # of them would be rounded twice, and which ones would depend on how a chunk of the result was encoded.
        return snowflake.connector.connect(**connect_args, paramstyle="qmark", arrow_number_to_decimal=True)
    except snowflake.connector.errors.Error as error:
        account = connect_args.get("account", "")
        raise UnavailableError(
            f"Snowflake account {account!r} cannot be reached ({error.msg}); check SNOWFLAKE_ACCOUNT and its companions."
        ) from error
    except (OSError, ValueError, TypeError) as error:  # of the key file: absent, of another form, another passphrase
        key = connect_args.get("private_key_file")
        if key is None:
            raise
        raise UnavailableError(
            f"The private key {key} cannot be used ({error}); check SNOWFLAKE_PRIVATE_KEY_FILE (PKCS 8 in PEM) and "
            "SNOWFLAKE_PRIVATE_KEY_PASSPHRASE."
        ) from error


def _ingest_one(
    connection: Any, plan: Plan, source: Source, offline_uri: str, progress: Progress, *, full: bool
) -> Ingested:
    table = open_table(offline_uri, source.name)
    known = None if table is None or full else extracted(table, source.name)
    if known is not None and known.schema_hash != source_hash(plan, source):
        raise NotReadyError(
            f"Source {source.name} was extracted under other definitions (columns or dtypes have changed); "
            f"run: tally ingest --full {source.name}"
        )
    kind = LandingTable if source.topic else BatchTable
    return kind(connection, plan, source, offline_uri, table, known, progress).run()
