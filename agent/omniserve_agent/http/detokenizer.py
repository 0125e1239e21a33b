"""Token ids to text as they come: never half a character, never a lost space."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer, pre_tokenizers

UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
MAX_HELD_TOKENS = 16  # without a clean end for so long, the bytes are no text
CONTEXT_TOKENS = 6
METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # a space in vocabularies that came from sentencepiece

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Detokenizer:
    """Decodes one request's output.

    A window of the tokens before the new ones is decoded with them, because some decoders treat
    the first token of a text differently (they drop its space). `context`: the prompt's ids when
    the output continues a text, nothing when it begins one.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        window = list(context[-CONTEXT_TOKENS:])
        before = self._decode(window)
        # A window that begins or ends inside a character has no stable text to compare with.
        self._window = [] if UNDECODABLE in before else window
        self._before = "" if UNDECODABLE in before else before
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; the start of a character waits for its end."""
        self._held.append(token_id)
        text = self._decode(self._window + self._held)
        stable = text.rstrip(UNDECODABLE)
        if stable == text or len(self._held) >= MAX_HELD_TOKENS:
            return self._release(text)
        if not stable.startswith(self._before):
            return ""
        new, self._before = stable[len(self._before) :], stable
        return new

    def flush(self) -> str:
        """At the end: what is held, incomplete characters as U+FFFD."""
        if not self._held:
            return ""
        return self._release(self._decode(self._window + self._held))

    def _release(self, text: str) -> str:
        new = text[len(self._before) :]
        self._window, self._held = self._held, []
        self._before = self._decode(self._window)
        if UNDECODABLE in self._before:
            self._window, self._before = [], ""
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


class TokenBytes:
    """The exact bytes of single tokens, for `logprobs`."""

    def __init__(self, tokenizer: Tokenizer, byte_level: bool, metaspace: bool = False) -> None:
        self._tokenizer = tokenizer
        self._metaspace = metaspace
        self._byte_of = _byte_alphabet() if byte_level else {}

    def __call__(self, token_id: int) -> bytes:
        """Bytes of one token; those of a byte-level or byte-fallback token may be part of a
        character."""
        token = self._tokenizer.id_to_token(token_id) or ""
        match = _BYTE_TOKEN.fullmatch(token)
        if match:
            return bytes([int(match[1], 16)])
        if self._byte_of and all(character in self._byte_of for character in token):
            return bytes(self._byte_of[character] for character in token)
        if self._metaspace:  # the decoder would take a first word's space away
            return token.replace(METASPACE, " ").encode()
        return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()


def _byte_alphabet() -> dict[str, int]:
    """Character of byte-level vocabularies → byte.

    Bytes that are printable in Latin-1 stand for themselves; the others got the characters from
    U+0100 on, in order.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own = {character: ord(character) for character in alphabet if ord(character) < 256}
    shifted = sorted(character for character in alphabet if ord(character) >= 256)
    missing = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip(shifted, missing, strict=True))
