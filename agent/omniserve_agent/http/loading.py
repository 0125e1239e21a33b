"""A service's tokenizer, or the answer when there is none."""

from __future__ import annotations

from omniserve_agent.http.errors import unavailable
from omniserve_agent.http.state import State
from omniserve_agent.http.tokenizer import ModelTokenizer, TokenizerError
from omniserve_agent.serving import ServedService


async def loaded_tokenizer(state: State, service: ServedService) -> ModelTokenizer:
    """The tokenizer; ApiError 503 if it cannot be loaded."""
    try:
        return await state.tokenizing.get(service.tokenizer_dir)
    except TokenizerError as error:
        raise unavailable(f"{service.key}: {error}", code="tokenizer_unavailable") from error
