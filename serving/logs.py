"""Logs as one JSON object per line, for collectors; secrets and personal data are masked.

Belongs here: the format. Does not belong here: what is logged, traces (`tracing`).
"""

import logging
from datetime import UTC, datetime

import orjson

from serving.settings import LogFormat
from serving.tracing.scrub import scrub

_CHATTY = ("httpx", "httpx2")
"""They tell every call of a model, which its trace tells better."""


class JsonFormatter(logging.Formatter):
    """Writes `at`, `level`, `logger`, `message`, and `error` where there was one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Whoever logged a secret by mistake did not write it down."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": scrub(record.getMessage()),
        }
        if record.exc_info:
            line["error"] = scrub(self.formatException(record.exc_info))
        return orjson.dumps(line).decode()


def write_logs_as(log_format: LogFormat) -> None:
    """Send every logger of this process to standard error, in JSON where it is asked for."""
    if log_format == "text":
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
