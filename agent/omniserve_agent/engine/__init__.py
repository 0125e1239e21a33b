"""The combined engine: one model on one device for all its LS and BE services."""
