"""A valid object of each class, to be broken one field at a time."""

import copy

import pytest

CHAT = {
    "apiVersion": "omniserve.io/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "chat"},
    "spec": {
        "class": "LS",
        "model": {"uri": "hf://org/name"},
        "slo": {"ttftMs": 500, "tpotMs": 50},
    },
}
BATCH = {
    "apiVersion": "omniserve.io/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "batch", "namespace": "jobs"},
    "spec": {"class": "BE", "model": {"uri": "file:///models/m"}},
}


@pytest.fixture
def chat():
    return copy.deepcopy(CHAT)


@pytest.fixture
def batch():
    return copy.deepcopy(BATCH)
