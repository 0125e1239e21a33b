"""`python -m omniserve_agent.engine --config JSON`: one engine process."""

from __future__ import annotations

import argparse
import sys

import msgspec
import zmq

from omniserve_agent.engine.errors import EngineSetupError
from omniserve_agent.engine.messages import EngineConfig, Failed
from omniserve_agent.engine.wire import LINGER_MS, connect

CANNOT_START = 2


def main() -> int:
    """Parse the configuration and run until told to stop; the exit code."""
    parser = argparse.ArgumentParser(prog="omniserve-engine")
    parser.add_argument("--config", required=True, help="an EngineConfig as JSON")
    try:
        config = msgspec.json.decode(parser.parse_args().config, type=EngineConfig)
    except msgspec.MsgspecError as error:
        return _say(f"--config: {error}")
    try:
        from omniserve_agent.engine.process import run  # and with it torch and the native library
    except ImportError as error:
        return _tell(config, f"{type(error).__name__}: {error}")
    return run(config)


def _tell(config: EngineConfig, line: str) -> int:
    """The API process hears of it too: it would start the engine again and again."""
    context = zmq.Context()
    try:
        connect(config, context).send(Failed(line))
    except (EngineSetupError, zmq.Again) as error:
        line = f"{line}; {error}"
    finally:
        context.destroy(linger=LINGER_MS)
    return _say(line)


def _say(line: str) -> int:
    sys.stderr.write(f"omniserve-engine: {' '.join(line.split())}\n")
    return CANNOT_START


if __name__ == "__main__":
    sys.exit(main())
