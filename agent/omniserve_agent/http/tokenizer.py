"""A model directory's tokenizer: text to ids, messages to ids, ids to text. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from omniserve_agent.http.chat_template import ChatTemplate, ChatTemplateError
from omniserve_agent.http.detokenizer import METASPACE, Detokenizer, TokenBytes

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class TokenizerError(Exception):
    """A tokenizer directory cannot be used; the text names the file and what is wrong."""


class ModelTokenizer:
    """Reads tokenizer.json, tokenizer_config.json and the chat template once."""

    def __init__(self, directory: str) -> None:
        root = Path(directory)
        self._tokenizer = _load_tokenizer(root / "tokenizer.json")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        config = _load_config(root / "tokenizer_config.json")
        special_tokens = _special_tokens(config)
        self._template = _load_template(root, config, special_tokens)
        self.vocabulary_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.eos_id: int | None = self._tokenizer.token_to_id(special_tokens.get("eos_token", ""))

    def encode(self, text: str) -> list[int]:
        """Ids of a completion prompt, with the special tokens the model puts around a text."""
        return list(self._tokenizer.encode(text).ids)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation; ChatTemplateError if the template refuses it or there is none."""
        if self._template is None:
            raise ChatTemplateError("this model has no chat template; use /v1/completions")
        text = self._template.render(messages)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """A decoder for one request's output."""
        return Detokenizer(self._tokenizer, context)

    def token_text(self, token_id: int) -> str:
        """One token alone, special tokens shown, parts of characters as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of single tokens."""
        decoder = json.loads(self._tokenizer.to_str()).get("decoder") or {}
        parts = decoder.get("decoders", [decoder])
        byte_level = any(part.get("type") == "ByteLevel" for part in parts)
        metaspace = METASPACE in json.dumps(decoder, ensure_ascii=False)
        return TokenBytes(self._tokenizer, byte_level, metaspace)


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every cause
        raise TokenizerError(f"{path}: not a readable tokenizer: {error}") from error


def _load_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise TokenizerError(f"{path}: is a {type(config).__name__}; it must be an object")
    return config


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Name → text; a configuration may hold the text itself or an object around it."""
    found = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _load_template(
    root: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    path = root / "chat_template.jinja"
    source = path.read_text("utf-8") if path.exists() else _template_in(config)
    if source is None:
        return None
    try:
        return ChatTemplate(source, special_tokens)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"{root}: chat template, line {error.lineno}: {error}") from error


def _template_in(config: Mapping[str, Any]) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None
