"""The simulator: one engine, or several, in virtual time. Pure."""
