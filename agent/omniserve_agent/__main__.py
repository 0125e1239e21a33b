"""`python -m omniserve_agent`."""

from __future__ import annotations

import sys

from omniserve_agent.cli import main

sys.exit(main())
