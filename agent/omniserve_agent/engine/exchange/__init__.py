"""Slots of offloaded rows and the exchange with the host attention workers."""
