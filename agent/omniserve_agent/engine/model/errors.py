"""What can be wrong with a model: one line each, naming the thing, the value and what is right."""

from __future__ import annotations


class ModelError(ValueError):
    """A model directory cannot be served: unknown family, missing tensors, wrong shapes."""


class PrepareError(ModelError):
    """A model URI cannot be turned into a model directory."""
