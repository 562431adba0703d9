"""`tally export`: a point-in-time training set as a Parquet file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from tally_cli.errors import UsageError
from tally_cli.output import bars, counts, say, versions
from tally_cli.repository import DEFAULT_REPO, OfflineVersion, Repo, open_plan, require_place, version_of

if TYPE_CHECKING:
    from training import TrainingSet

_NULLS_SHOWN = 5


class Visibility(StrEnum):
    """Which rows a label may see."""

    event_time = "event_time"
    as_served = "as_served"


def export(
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="T.parquet", dir_okay=False, help="The training set; its manifest goes beside it."
        ),
    ],
    service: Annotated[
        str | None,
        typer.Argument(
            metavar="SERVICE", help="The feature service to export, unless a manifest names it.", show_default=False
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="L.parquet",
            exists=True,
            help="Label rows, a file or a folder of Parquet: the service's keys and request fields, and the time. "
            "Other columns come along.",
        ),
    ] = None,
    timestamp: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The labels' column of times. [dim](event_timestamp)[/]"),
    ] = None,
    visibility: Annotated[
        Visibility | None,
        typer.Option(
            help="event_time: all rows up to the label's time. as_served: those that had arrived by then. "
            "[dim](event_time)[/]"
        ),
    ] = None,
    offline_version: OfflineVersion = None,
    from_manifest: Annotated[
        Path | None,
        typer.Option(
            "--from-manifest",
            metavar="M.json",
            exists=True,
            dir_okay=False,
            help="Make the export again that this manifest lies beside: the same rows, or an error that says what changed.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="4GB",
            help="Hold no more than this in memory; the rest goes through files in TMPDIR. [dim](a part of what is free)[/]",
        ),
    ] = None,
    repo: Repo = DEFAULT_REPO,
) -> None:
    """Write a training set: for each label row, the features as they were at its time.

    Every label row comes back, in the same order, with all its columns.
    Times without a zone are UTC. The file is complete or not there at all.

    tally export arrival_delay --labels labels.parquet --out t.parquet
    # as a lookup would have answered, without what came too late
    tally export ... --visibility as_served
    # from the offline store as it was then
    tally export ... --offline-version 2013-12-01T10:00:00Z
    # the same file once more, whatever was ingested since
    tally export --from-manifest t.parquet.manifest.json --out again.parquet
    """
    plan = open_plan(repo)
    if from_manifest is None:
        if service is None:
            raise UsageError("Name the feature SERVICE to export, or make an export again with --from-manifest.")
        plan.service(service)
        if labels is None:
            raise UsageError(f"Give the rows that service {service} is asked for with --labels L.parquet.")
    else:
        given = {"SERVICE": service, "--visibility": visibility, "--offline-version": offline_version}
        given["--timestamp"] = timestamp
        twice = [name for name, value in given.items() if value is not None]
        if twice:
            raise UsageError(f"--from-manifest already says what {twice[0]} is; leave {twice[0]} out.")
    require_place(out, "the training set", "--out")

    from training import build_training_set, rebuild_training_set
    from training.manifest import Manifest

    # Read now: --out may be the file that it lies beside.
    then = None if from_manifest is None else Manifest.read(from_manifest).export.get("sha256")
    began = time.monotonic()
    name = service or str(from_manifest)
    with bars([name]) as progress:
        if from_manifest is None:
            dataset = build_training_set(
                labels,
                service=name,
                repo=repo,
                visibility=(visibility or Visibility.event_time).value,
                offline_version=version_of(offline_version),
                timestamp=timestamp or "event_timestamp",
                memory=memory,
                progress=partial(progress, name),
            )
        else:
            dataset = rebuild_training_set(
                from_manifest, labels, repo=repo, memory=memory, progress=partial(progress, name)
            )
    written = dataset.to_parquet(out)
    say(f"{out}: {len(dataset):,} rows x {len(written['nulls'])} features in {time.monotonic() - began:.1f} s")
    for what, text in _summary(dataset, written):
        say(f"  {what:<11} {text}")
    if from_manifest is not None:
        say(f"  {'again':<11} {_compared(then, written['sha256'])}")


def _summary(dataset: TrainingSet, written: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a user wants to know of an export, as (subject, text)."""
    made = dataset.manifest
    by = " by the labels' evidence" if made["evidence"] else ""
    yield "definition", f"{made['service']} {dataset.definition[:8]}, visibility {made['visibility']}{by}"
    yield "read", versions(made["offline_versions"])
    empty = [name for name, nulls in written["nulls"].items() if nulls and nulls == len(dataset)]
    if empty:
        more = f" and {len(empty) - _NULLS_SHOWN} more" if len(empty) > _NULLS_SHOWN else ""
        yield "always null", ", ".join(empty[:_NULLS_SHOWN]) + more
    for view, reasons in made["refused"].items():
        if reasons:
            yield "left out", f"rows of {view}: {counts(reasons)}"
    for note in written["notes"]:
        yield "note", note
    yield "file", f"{decimal(written['bytes'])}, SHA-256 {written['sha256'][:16]}; manifest beside it"


def _compared(then: str | None, now: str) -> str:
    """How a file that was made again is to the first one, by the SHA-256 of both."""
    if then is None:
        return "its manifest lies beside no file, so the rows could not be compared"
    return "byte for byte" if then == now else "the same rows; other packages wrote other bytes"
