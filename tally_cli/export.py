"""`tally export`: a point-in-time training set as a Parquet file."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tally.errors import DataError
from tally_cli.errors import UsageError
from tally_cli.output import bars, say
from tally_cli.repository import DEFAULT_REPO, Repo, open_plan

if TYPE_CHECKING:
    import pyarrow as pa


class Visibility(StrEnum):
    """Which rows a label may see."""

    event_time = "event_time"
    as_served = "as_served"


def export(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="The feature service to export.")],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels",
            metavar="L.parquet",
            exists=True,
            dir_okay=False,
            help="Label rows: the service's keys and request fields, and event_timestamp. Other columns come along.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="T.parquet", dir_okay=False, help="The training set.")],
    visibility: Annotated[
        Visibility,
        typer.Option(help="event_time: all rows up to the label's time. as_served: those that had arrived by then."),
    ] = Visibility.event_time,
    offline_version: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Read the offline tables as of this version.")
    ] = None,
    repo: Repo = DEFAULT_REPO,
) -> None:
    """Write a training set: for each label row, the features as they were at its time.

    Every label row comes back, in the same order.

    \b
    tally export arrival_delay --labels labels.parquet --out training.parquet
    tally export arrival_delay --labels l.parquet --out t.parquet --visibility as_served
    """
    open_plan(repo).service(service)
    if not out.parent.is_dir():
        raise UsageError(f"There is no folder {out.parent} for the training set; make it, or choose another --out.")

    from training import build_training_set

    with bars([service]) as progress:
        dataset = build_training_set(
            read_labels(labels),
            service=service,
            repo=repo,
            visibility=visibility.value,
            offline_version=offline_version,
            progress=partial(progress, service),
        )
    dataset.to_parquet(out)
    say(f"{out}: {len(dataset):,} rows")


def read_labels(path: Path) -> pa.Table:
    """The rows of a Parquet file. Raises DataError when it is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}); write labels with to_parquet.") from error
