"""The process that holds librdkafka's in-memory cluster: `python -m infra.local.kafka_in_memory ADDRESS_FILE`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from confluent_kafka.admin import AdminClient


def main(address_file: Path) -> None:
    """Serve until SIGTERM. The cluster's address is in `address_file` as soon as it answers."""
    client = AdminClient({"test.mock.num.brokers": 1})
    (broker,) = client.list_topics(timeout=30).brokers.values()
    scratch = address_file.with_suffix(".new")
    scratch.write_text(f"{broker.host}:{broker.port}")
    scratch.replace(address_file)
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    # Before the client starts its threads, so that they inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(Path(sys.argv[1]))
