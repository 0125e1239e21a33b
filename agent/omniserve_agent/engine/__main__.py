"""`python -m omniserve_agent.engine --config JSON`: one engine process."""

from __future__ import annotations

import argparse
import sys

import msgspec

from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.engine.process import run


def main() -> int:
    """Parse the configuration and run until told to stop; the exit code."""
    parser = argparse.ArgumentParser(prog="omniserve-engine")
    parser.add_argument("--config", required=True, help="an EngineConfig as JSON")
    try:
        config = msgspec.json.decode(parser.parse_args().config, type=EngineConfig)
    except msgspec.MsgspecError as error:
        sys.stderr.write(f"omniserve-engine: --config: {error}\n")
        return 2
    return run(config)


if __name__ == "__main__":
    sys.exit(main())
