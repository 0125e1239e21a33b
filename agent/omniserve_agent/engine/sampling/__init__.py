"""Choosing tokens: batched on any device, yet no row's choice depends on its neighbours."""

from omniserve_agent.engine.sampling.checks import check_params
from omniserve_agent.engine.sampling.sampler import RowLogprobs, Sampled, Sampler, SamplingRow

__all__ = ["RowLogprobs", "Sampled", "Sampler", "SamplingRow", "check_params"]
