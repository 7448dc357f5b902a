"""What a job says on stderr, as lines for a person or as JSON objects, one a line, by Python's own logging."""

from __future__ import annotations

import io
import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from pipeline.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import TextIO

    from pipeline.config import LogFormat

T = TypeVar("T")

LOGGER = "pipeline.job"
"""Of what a job tells its user."""


class JsonFormatter(logging.Formatter):
    """A record as a JSON object: ``time`` (UTC), ``level``, ``logger``, ``message``, ``exception`` if there is one.

    What looks like a secret is taken out of the last two.

    Args:
        fields: what every object has besides, such as the run's name.
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = dict(fields)

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
            **self._fields,
        }
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            values["exception"] = "\n".join(redact(line) for line in trace.splitlines())
        return json.dumps(values, ensure_ascii=False)


class LogLines(io.StringIO):
    """A stream whose lines become records, for what prints."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                logging.getLogger(LOGGER).info(line.strip())
        return len(text)


def configure(form: LogFormat, fields: Mapping[str, str]) -> None:
    """Settles how this process logs. ``text`` leaves everything as it is.

    Args:
        form: the setting ``job.log_format``.
        fields: what every JSON object has besides its own.
    """
    if form == "text":
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(fields))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(LOGGER).setLevel(logging.INFO)
    sys.excepthook = _log_exception


def configured(function: Callable[[], T], form: LogFormat, fields: Mapping[str, str]) -> T:
    """Calls the function in a process that logs so from now on."""
    configure(form, fields)
    return function()


def stream(form: LogFormat) -> TextIO:
    """Where to print what is for the user."""
    return sys.stderr if form == "text" else LogLines()


def complain(text: str) -> None:
    """An error that ends the process: in JSON where :func:`configure` said so, else as a line."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        logging.getLogger(LOGGER).error(text)
    else:
        print(f"raysight: {text}", file=sys.stderr)


def _log_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(LOGGER).critical("not foreseen", exc_info=(kind, error, trace))
