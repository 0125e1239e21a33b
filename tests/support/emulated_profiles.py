"""Profiles of emulated devices for tiny models, and time that only tests and sleeps move."""

import json

from omniserve_agent.engine.model.config import ModelConfig


class Clock:
    """Sleeping moves it."""

    def __init__(self):
        self.now_s = 100.0
        self.slept_s = []

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.slept_s.append(seconds)
        self.now_s += seconds


def write_profile(path, model_dir, **entry):
    """A profile that knows the model of `model_dir`; the device string."""
    shape = ModelConfig.from_directory(model_dir)
    latency = {
        "rows": [1, 16, 17, 64],
        "dense_s": [0.001, 0.001, 0.002, 0.005],
        "head_rows": [1, 8],
        "head_s": [0.0005, 0.001],
        "fixed": 0.0002,
        "key": 1e-6,
        "pair": 1e-7,
        "join": 1e-5,
    }
    sizes = {
        "layers": shape.layers,
        "hidden": shape.hidden_size,
        "intermediate": shape.intermediate_size,
        "q_heads": shape.q_heads,
        "kv_heads": shape.kv_heads,
        "head_size": shape.head_size,
        "vocab": shape.vocab_size,
    }
    model = {"engines": 1, "device_blocks": 64, "shape": sizes, "latency": latency, **entry}
    host = {"read_gbps": 10, "kv_gib": 1, "tflops": 1}
    path.write_text(json.dumps({"local_host": host, "models": {"tiny": model}}))
    return f"emulated:{path}"
