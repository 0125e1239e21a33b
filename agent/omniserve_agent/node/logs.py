"""Logs of the agent: one console line or one JSON object per event, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure(log_format: str, log_level: str) -> None:
    """Set up structlog and, for libraries, the standard library's root logger."""
    level = logging.getLevelNamesMapping()[log_level.upper()]
    renderer: Any = structlog.processors.JSONRenderer()
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr, force=True)
