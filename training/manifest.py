"""Manifests: what a training set was made from, kept beside each file, and whether all of it is still there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tally.errors import DataError, DefinitionMismatchError
from tally.plan import Plan

EXPORT: Final = "export"
"""The part of a manifest beside a file that speaks of the file; the part inside a file ends before it."""

_NEEDED: Final = frozenset(
    {
        "service",
        "service_hash",
        "view_hashes",
        "visibility",
        "timestamp",
        "offline_versions",
        "offline_tables",
        "label_digest",
        "label_rows",
        "packages",
    }
)


def manifest_path(path: Path) -> Path:
    """Where the manifest of the file `path` is."""
    return path.with_name(f"{path.name}.manifest.json")


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read: `document` is all of it, `where` what to call it in errors."""

    document: Mapping[str, Any]
    where: str

    @staticmethod
    def read(source: str | os.PathLike[str] | Mapping[str, Any]) -> Manifest:
        """From the file beside an export, or the `manifest` of a training set. Raises DataError for anything else."""
        document: Any = source
        where = "The manifest"
        if not isinstance(source, Mapping):
            path = Path(source)
            where = f"The manifest {path}"
            try:
                document = json.loads(path.read_bytes())
            except OSError as error:
                raise DataError(f"{where} cannot be read ({error.strerror}).") from error
            except ValueError as error:
                raise DataError(
                    f"{where} is not JSON; give the file T.parquet.manifest.json that lies beside an export."
                ) from error
        missing = sorted(_NEEDED - set(document)) if isinstance(document, Mapping) else sorted(_NEEDED)
        if missing:
            raise DataError(
                f"{where} says nothing of {', '.join(missing)}; give the file T.parquet.manifest.json that lies beside an export."
            )
        return Manifest(document, where)

    def __getitem__(self, name: str) -> Any:
        return self.document[name]

    @property
    def export(self) -> Mapping[str, Any]:
        """What it says of the file beside it; nothing where it does not lie beside one."""
        found: Mapping[str, Any] = self.document.get(EXPORT, {})
        return found

    def check_definition(self, plan: Plan) -> None:
        """Raise DefinitionMismatchError, naming what changed, unless `plan` defines the service as it was."""
        service = plan.service(self["service"])
        if service.hash == self["service_hash"]:
            return
        now = {use.view: plan.view(use.view).hash for use in service.views}
        then: Mapping[str, str] = self["view_hashes"]
        changed = [f"view {name}" for name in sorted(now.keys() & then.keys()) if now[name] != then[name]]
        changed += [f"view {name}, which it did not use" for name in sorted(now.keys() - then.keys())]
        changed += [f"view {name}, which it no longer uses" for name in sorted(then.keys() - now.keys())]
        what = ", ".join(changed) or "its features, keys or request functions"
        raise DefinitionMismatchError(
            f"{self.where} was made with definition {self['service_hash']} of service {service.name}, the plan has "
            f"{service.hash}; changed: {what}. Apply the definitions of then, or export anew."
        )

    def check_labels(self, digest: str, rows: int, path: Path | None) -> None:
        """Raise DataError unless the labels are the very ones."""
        if digest != self["label_digest"]:
            given = "The labels given" if path is None else f"The labels at {path}"
            raise DataError(
                f"{given} are not those of {self.where[0].lower()}{self.where[1:]}: {rows:,} rows with digest "
                f"{digest[:16]}, not {self['label_rows']:,} with {self['label_digest'][:16]}; give the same rows in the "
                "same order, with all their columns."
            )

    def check_tables(self, tables: Mapping[str, str]) -> None:
        """Raise DataError unless the offline tables (name -> identity) are the very ones."""
        for name, identity in tables.items():
            if self["offline_tables"].get(name) != identity:
                raise DataError(
                    f"The offline table {name} was deleted and made anew since {self.where[0].lower()}{self.where[1:]} "
                    f"was written, so its version {self['offline_versions'].get(name)} is another; export anew."
                )

    def check_rows(self, digest: str, packages: Mapping[str, str]) -> None:
        """Raise DataError unless the rows made again have the digest of those that were exported."""
        then = self.export.get("rows_digest")
        if then is None or then == digest:
            return
        others = [
            f"{name} {version} (then {self['packages'].get(name)})"
            for name, version in packages.items()
            if self["packages"].get(name) != version
        ]
        raise DataError(
            f"The rows made again have digest {digest[:16]}, those of {self.where[0].lower()}{self.where[1:]} had "
            f"{then[:16]}, though labels, definition and versions are the same; packages that differ: "
            f"{', '.join(others) or 'none'}. Nothing was written."
        )
