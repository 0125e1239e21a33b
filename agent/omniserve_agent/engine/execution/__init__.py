"""Executors: how a plan becomes one iteration on a device."""
