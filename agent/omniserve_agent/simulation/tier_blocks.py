"""KV blocks of one tier in the simulator: how many are free, and which prompts are found there.

As `engine/kv/blocks.py`, by counts: blocks that nobody holds stay findable until they are needed,
least recently released first, a prompt's end before its beginning.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Blocks:
    """Blocks of one prompt that others may share (None: of nobody's), and how many requests do."""

    prompt: int | None
    count: int
    holders: int = 0


@dataclass
class TierBlocks:
    """See the module. Requests go by their handles, prompts by their names."""

    blocks: int
    free: int = field(init=False)
    _never_held: int = field(init=False)
    _idle: deque[_Blocks] = field(default_factory=deque)  # released, in this order
    _prompts: dict[int, _Blocks] = field(default_factory=dict)  # held or idle
    _shared: dict[int, _Blocks] = field(default_factory=dict)  # by handle

    def __post_init__(self) -> None:
        self.free = self._never_held = self.blocks

    def open(self, handle: int, prompt: int | None) -> int:
        """A request begins with what is found of its prompt: blocks, held by it from now on."""
        found = None if prompt is None else self._prompts.get(prompt)
        if found is None:
            return 0
        if not found.holders:
            self._idle.remove(found)
            self.free -= found.count
        found.holders += 1
        self._shared[handle] = found
        return found.count

    def publish(self, handle: int, prompt: int, count: int) -> None:
        """The first `count` blocks of this request are computed: others find them."""
        if prompt not in self._prompts:
            self._prompts[prompt] = self._shared[handle] = _Blocks(prompt, count, 1)

    def take(self, count: int) -> bool:
        """So many more are held, or there is no room."""
        if count > self.free:
            return False
        self.free -= count
        missing = max(0, count - self._never_held)
        self._never_held -= count - missing
        while missing:
            oldest = self._idle[0]
            taken = min(missing, oldest.count)
            oldest.count -= taken
            missing -= taken
            if not oldest.count:
                self._idle.popleft()
                if oldest.prompt is not None:
                    del self._prompts[oldest.prompt]
        return True

    def close(self, handle: int, count: int) -> None:
        """A request gives its `count` blocks back; what it shares stays with the others."""
        shared = self._shared.pop(handle, None)
        own = count - (shared.count if shared else 0)
        if own:
            self._idle.append(_Blocks(None, own))
            self.free += own
        if shared is not None:
            shared.holders -= 1
            if not shared.holders:
                self._idle.append(shared)
                self.free += shared.count
