"""The jars of Apache Kafka, resolved once by Maven from `pom.xml`."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from infra.local.errors import LocalServiceError
from infra.local.lock import locked

_POM = Path(__file__).with_name("pom.xml")
_OLDEST_JAVA = 17
_MAVEN_DEADLINE_S = 600.0


class NoApacheKafkaError(LocalServiceError):
    """Apache Kafka cannot run on this machine: Java, Maven or the jars are missing."""


def java() -> str:
    """The `java` on PATH, if it is recent enough. Raises NoApacheKafkaError."""
    binary = shutil.which("java")
    if binary is None:
        raise NoApacheKafkaError(f"there is no java on PATH: install Java {_OLDEST_JAVA} or newer")
    banner = subprocess.run([binary, "-version"], capture_output=True, text=True, check=False).stderr
    match = re.search(r'version "(\d+)', banner)
    if match is None or int(match[1]) < _OLDEST_JAVA:
        found = banner.splitlines()[0] if banner else "no version"
        raise NoApacheKafkaError(f"{binary} says {found!r}: install Java {_OLDEST_JAVA} or newer")
    return binary


def version() -> str:
    """The version of Apache Kafka that `pom.xml` asks for."""
    found = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)</version>", _POM.read_text())
    if found is None:
        raise NoApacheKafkaError(f"{_POM} does not name org.apache.kafka:kafka_2.13: restore the file")
    return found[1]


def resolve(lib: Path) -> None:
    """Make sure that `lib` holds the jars of the wanted version; of several processes one fetches them. Raises NoApacheKafkaError."""
    wanted = lib / f"kafka_2.13-{version()}.jar"
    if wanted.exists():
        return
    maven = shutil.which("mvn")
    if maven is None:
        raise NoApacheKafkaError("there is no mvn on PATH to fetch its jars: install Maven")
    with locked(lib.parent / "jars.lock", f"The jars of Kafka cannot be kept in {lib}", "TALLY_KAFKA_LIB"):
        if not wanted.exists():  # else another process has fetched them, and its broker loads classes from there
            _fetch(maven, lib)


def _fetch(maven: str, lib: Path) -> None:
    # Into a directory of its own first, so that an interrupted download is never taken for a complete one.
    with tempfile.TemporaryDirectory(dir=lib.parent, prefix="jars-") as scratch:
        fetched = Path(scratch) / "lib"
        command = [maven, "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_MAVEN_DEADLINE_S, check=False)
        except subprocess.TimeoutExpired as late:
            raise NoApacheKafkaError(
                f"Maven did not fetch its jars within {_MAVEN_DEADLINE_S:.0f} s: check the network"
            ) from late
        if done.returncode:
            raise NoApacheKafkaError(f"Maven could not fetch its jars: {(done.stdout + done.stderr).strip()[-800:]}")
        if lib.exists():
            shutil.rmtree(lib)
        fetched.rename(lib)
