"""One place that logs what should not have happened."""

from __future__ import annotations

import structlog

from omniserve_agent.http.errors import ApiError
from omniserve_agent.serving import EngineUnavailableError, RequestRefusedError


def log_unexpected(error: BaseException) -> None:
    """Log an exception that no answer was foreseen for, with its trace."""
    foreseen = (ApiError, RequestRefusedError, EngineUnavailableError, TimeoutError)
    if not isinstance(error, foreseen):
        structlog.get_logger("omniserve.http").error("request failed", exc_info=error)
