"""Logs, metrics and traces of one process, started once in its composition root."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import orjson
import structlog

from shortstack.core.config import ServiceConfig
from shortstack.core.errors import Fatal, did_you_mean
from shortstack.core.metrics import Metrics
from shortstack.core.tracing import current_trace_id

__all__ = ["Telemetry"]

_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
_QUIET: Final[dict[str, int]] = {
    # Each client says at every attempt that its broker is away; the stack says so once, in its own words.
    "kafka": logging.ERROR,
    "kafka.net": logging.CRITICAL,
    "kafka.cluster": logging.CRITICAL,
    "kafka.consumer": logging.CRITICAL,
    "asyncio": logging.WARNING,
    "fsspec": logging.WARNING,
    "s3fs": logging.WARNING,
    "botocore": logging.WARNING,
    "urllib3": logging.WARNING,
    "grpc": logging.WARNING,
    # A line a request, and serving looks at its servers every second.
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx2": logging.WARNING,
    "httpcore2": logging.WARNING,
}
"""Libraries whose talk is about themselves, and from which level on they are heard; all of it at DEBUG."""


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a service tells about itself.

    Attributes:
        service: its name, on every log line.
        log: structured logger: ``log.info("dataset pinned", dataset=…)``. Never give it record text or secrets.
        metrics: see `Metrics`.
    """

    service: str
    log: structlog.stdlib.BoundLogger
    metrics: Metrics

    @classmethod
    @contextmanager
    def start(cls, service: str, config: ServiceConfig, stream: TextIO | None = None) -> Iterator[Telemetry]:
        """Sends this process's logs, the libraries' too, to ``stream`` (stderr) until the block ends.

        Raises:
            Fatal: unknown level or format of logs.
        """
        handler = logging.StreamHandler(stream or sys.stderr)
        handler.setFormatter(_formatter(service, config.log_format))
        root = logging.getLogger()
        before, level = root.level, _level(config.log_level)
        root.addHandler(handler)
        root.setLevel(level)
        quiet = {name: logging.getLogger(name).level for name in _QUIET}
        for name, heard in _QUIET.items():
            logging.getLogger(name).setLevel(level if level == logging.DEBUG else max(level, heard))
        try:
            metrics, kept = Metrics(service), _storage_folder(config)
            metrics.storage_free_bytes.set_function(lambda: _free_bytes(kept))
            yield cls(service, _logger(service), metrics)
        finally:
            root.removeHandler(handler)
            root.setLevel(before)
            for name, was in quiet.items():
                logging.getLogger(name).setLevel(was)


def _storage_folder(config: ServiceConfig) -> Path:
    """The folder of the object store; the service's own if that is elsewhere."""
    scheme, _, path = config.storage_url.partition("://")
    return Path(path) if scheme == "file" else config.var


def _free_bytes(folder: Path) -> float:
    """Bytes free there, or where it would be made."""
    there = next((place for place in [folder, *folder.absolute().parents] if place.exists()), Path("/"))
    return float(shutil.disk_usage(there).free)


def _level(name: str) -> int:
    if name.upper() not in _LEVELS:
        raise Fatal(f'log level "{name}" is unknown', where="SHORTSTACK_LOG_LEVEL", remedy=did_you_mean(name, _LEVELS))
    return int(getattr(logging, name.upper()))


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    trace_id = current_trace_id()
    if trace_id is not None:
        event["trace_id"] = trace_id
    return event


_SHARED: Final[tuple[structlog.types.Processor, ...]] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _add_trace,
)


def _json(event: Any, **_options: Any) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _formatter(service: str, log_format: str) -> logging.Formatter:
    renderers: dict[str, list[structlog.types.Processor]] = {
        "json": [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)],
        "console": [structlog.dev.ConsoleRenderer(colors=False)],
    }
    if log_format not in renderers:
        remedy = did_you_mean(log_format, renderers)
        raise Fatal(f'log format "{log_format}" is unknown', where="SHORTSTACK_LOG_FORMAT", remedy=remedy)

    def add_service(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder()],
        processors=[add_service, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers[log_format]],
    )


def _logger(service: str) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(f"shortstack.{service}"),
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return logger
