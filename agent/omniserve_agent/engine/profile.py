"""`python -m omniserve_agent.engine.profile --config JSON`: measure a device, or what was kept.

Prints JSON lines: steps (`stage`, `fraction`), then one with `profile`, or with `error`.
"""

from __future__ import annotations

import argparse
import json
import sys

import msgspec

from omniserve_agent.engine.build import profiled
from omniserve_agent.engine.errors import EngineSetupError
from omniserve_agent.engine.messages import EngineConfig


def main() -> int:
    """The exit code: 0, or 2 where it cannot be done."""
    parser = argparse.ArgumentParser(prog="omniserve-profile")
    parser.add_argument("--config", required=True, help="an EngineConfig as JSON")
    parser.add_argument("--fresh", action="store_true", help="measure even where one is kept")
    options = parser.parse_args()
    try:
        config = msgspec.json.decode(options.config, type=EngineConfig)
        found = profiled(config, _step, fresh=options.fresh)
    except (msgspec.MsgspecError, EngineSetupError) as error:
        _say({"error": str(error)})
        return 2
    _say({"profile": msgspec.to_builtins(found)})
    return 0


def _step(stage: str, fraction: float) -> None:
    _say({"stage": stage, "fraction": fraction})


def _say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
