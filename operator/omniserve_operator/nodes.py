"""ServingNodes: made for nodes with an agent, their specs written as planned."""

from __future__ import annotations

from omniserve_crds.group import API_VERSION, SERVING_NODE_KIND
from omniserve_crds.servingnode import ServingNodeSpec
from omniserve_operator.api import PODS, SERVING_NODES, ApiError, Object
from omniserve_operator.parse import ServingNodeObject, serving_node
from omniserve_operator.store import Store
from omniserve_operator.world import AgentPod, Node
from omniserve_operator.writer import Writer

ATTEMPTS = 4


class ServingNodes:
    """The operator's half of ServingNodes."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer

    async def carry_out(self, node: Node, wanted: ServingNodeSpec, now_s: float) -> None:
        """Create, replace or correct the node's object."""
        current = self._store.serving_node(node.name)
        if current is not None and current.owner_uid != node.uid:
            # Another Node had this name: what its agent did is over.
            await self._writer.delete(SERVING_NODES, "", node.name, current.uid)
            self._store.drop(SERVING_NODES, {"metadata": {"name": node.name}})
            current = None
        if current is None:
            if node.agent is not None:
                await self._create(node, wanted, now_s)
        elif current.spec != wanted:
            await self._correct(current, wanted, now_s)

    async def _create(self, node: Node, wanted: ServingNodeSpec, now_s: float) -> None:
        owner = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}
        body = {
            "apiVersion": API_VERSION,
            "kind": SERVING_NODE_KIND,
            "metadata": {"name": node.name, "ownerReferences": [owner]},
            "spec": _written(wanted),
        }
        made = await self._writer.create(SERVING_NODES, "", body)
        self._store.put(SERVING_NODES, made, now_s)

    async def _correct(
        self, current: ServingNodeObject, wanted: ServingNodeSpec, now_s: float
    ) -> None:
        """The agent's reports move the version all the time; only another spec is a conflict."""
        for attempt in range(ATTEMPTS):
            metadata = {"resourceVersion": current.resource_version}
            body = {"metadata": metadata, "spec": _written(wanted)}
            try:
                written = await self._writer.patch(SERVING_NODES, "", current.name, body)
            except ApiError as error:
                if not error.conflict or attempt == ATTEMPTS - 1:
                    raise
                newer = serving_node(await self._writer.read(SERVING_NODES, "", current.name))
                if newer.generation != current.generation or newer.uid != current.uid:
                    raise
                current = newer
            else:
                self._store.put(SERVING_NODES, written, now_s)
                return

    async def restart(self, pod: AgentPod) -> None:
        """Its DaemonSet (OnDelete) makes the new one."""
        await self._writer.delete(PODS, pod.namespace, pod.name, pod.uid)


def _written(spec: ServingNodeSpec) -> Object:
    return spec.model_dump(by_alias=True, exclude_none=True, mode="json")
