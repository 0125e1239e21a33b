"""How slow work on a model tells where it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]  # stage, fraction done (0 to 1)
