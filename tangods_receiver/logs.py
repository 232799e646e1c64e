"""How log records look: for people, or one JSON object per line for what collects logs (TANGODS_LOG=json)."""

from __future__ import annotations

import datetime
import logging
import os
import sys

from pythonjsonlogger.orjson import OrjsonFormatter

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
PROGRAM = "%(asctime)s %(levelname)-7s %(message)s"
FIELDS = {"levelname": "level", "name": "logger", "threadName": "thread", "exc_info": "exception"}


class JsonFormatter(OrjsonFormatter):
    """time (UTC, ISO 8601), level, logger, message, thread; `server` where it is known, `exception` where there is
    one, and whatever a record has as `extra`."""

    def __init__(self, server: str = "") -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s %(message)s %(threadName)s",
            rename_fields={"asctime": "time", **FIELDS},
            static_fields={"server": server} if server else None,
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        then = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        return then.isoformat(timespec="milliseconds")


def formatter(server: str = "", text: str = FORMAT) -> logging.Formatter:
    """As the environment variable TANGODS_LOG says: json, or anything else for people, as `text`."""
    if os.environ.get("TANGODS_LOG", "").strip().lower() == "json":
        return JsonFormatter(server)
    return logging.Formatter(text)


def of_a_program(verbose: bool) -> None:
    """Records of a program that is no device server: to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(text=PROGRAM))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
