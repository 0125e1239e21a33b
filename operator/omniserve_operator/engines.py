"""What an engine's assignment says, and the names of copied Secrets."""

from __future__ import annotations

import hashlib

from omniserve_crds.llmservice import Model
from omniserve_crds.servingnode import EngineAssignment
from omniserve_operator.world import Service


def credentials_mirror(namespace: str, secret: str) -> str:
    """The name under which a credentials Secret is mirrored into the release namespace."""
    return f"cred-{hashlib.sha256(f'{namespace}/{secret}'.encode()).hexdigest()[:16]}"


def keys_mirror(uid: str) -> str:
    """The name under which a service's API keys are mirrored into the release namespace."""
    return f"svc-{uid}"


def engine_for(
    service: Service,
    model: Model,
    device: str,
    host_cores: int,
    host_kv_bytes: int,
    weights_bytes: int | None,
) -> EngineAssignment:
    """The engine that serves `model` on `device` with this share of the host."""
    credentials = model.credentials_secret_ref
    return EngineAssignment(
        device=device,
        key=service.engine_key,
        uri=str(model.source),
        revision=model.revision,
        dtype=model.dtype,
        kv_cache_dtype=model.kv_cache_dtype,
        max_model_len=model.max_model_len,
        credentials_secret=credentials_mirror(service.namespace, credentials.name)
        if credentials
        else None,
        host_cores=host_cores,
        host_kv_bytes=host_kv_bytes,
        weights_bytes=weights_bytes,
    )
