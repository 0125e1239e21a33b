"""The simulator (built by the SLO issue; pure)."""
