"""`omniserve-agent node`: the agent of one Kubernetes node."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from omniserve_agent import flags
from omniserve_agent.engine_flags import with_engine_flags
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


@with_engine_flags
def node(
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
    *,
    engine: Settings,
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
            engine=replace(
                engine,
                host=host,
                be_retries=be_retries,
                drain_grace_s=drain_grace,
                cors_origins=tuple(cors_origin or ()),
                log_format=log_format,
                log_level=log_level,
            ),
            template=template,
            admin_port=admin_port,
            cache_bytes=cache_size,
            model_volumes=volumes,
            tls_dir=tls_dir,
        )
    )


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
