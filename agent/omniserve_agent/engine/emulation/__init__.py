"""The emulated device: dense modules and device attention as waits, everything else real."""
