"""What collectors of logs read."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from tally_cli.output import JsonHandler


def test_records_are_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, with time, level, logger, message, and the traceback where there is one."""
    handler = JsonHandler()
    handler.emit(
        logging.makeLogRecord(
            {"name": "ingestion.kafka", "levelno": 20, "levelname": "INFO", "msg": "a %s\nb", "args": ("ü",)}
        )
    )
    try:
        int("oops")
    except ValueError:
        handler.emit(logging.makeLogRecord({"msg": "failed", "levelname": "ERROR", "exc_info": sys.exc_info()}))

    first, second = map(json.loads, capsys.readouterr().err.splitlines())

    assert first["time"].endswith("+00:00")
    assert (first["level"], first["logger"], first["message"]) == ("info", "ingestion.kafka", "a ü\nb")
    assert "ValueError: invalid literal" in second["exception"]
