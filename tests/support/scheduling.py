"""A small engine's limits, as the policy tests reckon with them."""

from omniserve_agent.scheduling.plan import Caps

LAYERS = 10
CAPS = Caps(
    layers=LAYERS,
    block_tokens=16,
    device_blocks=1000,
    host_blocks=1000,
    max_device_rows=64,
    join_rows=8,
    ls_prefill_rows=512,
    be_prefill_rows=256,
)
