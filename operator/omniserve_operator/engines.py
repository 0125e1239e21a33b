"""Which services share an engine, and what an engine's assignment says."""

from __future__ import annotations

import hashlib
import json

from omniserve_crds.llmservice import Model
from omniserve_crds.servingnode import EngineAssignment
from omniserve_operator.world import Service


def engine_key(namespace: str, model: Model) -> str:
    """Hash of (uri, revision, dtype, kvCacheDtype, maxModelLen, credentials' namespace and name).

    Class, SLO, priority and keys are no part of it: they change while the engine runs.
    """
    credentials = model.credentials_secret_ref
    parts = [
        str(model.source),
        model.revision,
        model.dtype.value,
        model.kv_cache_dtype.value,
        model.max_model_len,
        [namespace, credentials.name] if credentials else None,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def credentials_mirror(namespace: str, secret: str) -> str:
    """The name under which a credentials Secret is mirrored into the release namespace."""
    return f"cred-{hashlib.sha256(f'{namespace}/{secret}'.encode()).hexdigest()[:16]}"


def keys_mirror(uid: str) -> str:
    """The name under which a service's API keys are mirrored into the release namespace."""
    return f"svc-{uid}"


def engine_for(
    service: Service, model: Model, device: str, host_cores: int, host_kv_bytes: int
) -> EngineAssignment:
    """The engine that serves `model` on `device` with this share of the host."""
    credentials = model.credentials_secret_ref
    return EngineAssignment(
        device=device,
        key=engine_key(service.namespace, model),
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
    )
