"""Marks on Nodes in use, so that cluster autoscalers leave them alone.

Off unless asked for: it takes the right to patch Nodes.

A mark that somebody else has set is theirs: it is neither changed nor taken away.
"""

from __future__ import annotations

from collections.abc import Mapping

from omniserve_operator.api import NODES, ApiError
from omniserve_operator.store import Store
from omniserve_operator.writer import Writer

MARKS = {
    "cluster-autoscaler.kubernetes.io/scale-down-disabled": "true",
    "karpenter.sh/do-not-disrupt": "true",
}
OURS = "omniserve.io/kept-by"  # the marks that are ours, separated by spaces

Changes = dict[str, str | None]  # None: the annotation goes


def change(annotations: Mapping[str, str], in_use: bool) -> Changes | None:
    """The annotations to write; None where all is well. Pure."""
    ours = annotations.get(OURS, "").split()
    if not in_use:
        gone: Changes = dict.fromkeys([name for name in ours if name in MARKS])
        return gone | {OURS: None} if OURS in annotations else None
    missing: Changes = {name: value for name, value in MARKS.items() if name not in annotations}
    return missing | {OURS: " ".join(sorted({*ours, *missing}))} if missing else None


class NodeMarks:
    """Writes them."""

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer

    async def carry_out(self, name: str, in_use: bool, now_s: float) -> None:
        """Mark the Node, or take our marks away; a Node that is gone is no fault."""
        node = self._store.node(name)
        changes = change(node.annotations, in_use) if node is not None else None
        if changes is None:
            return
        try:
            written = await self._writer.patch(
                NODES, "", name, {"metadata": {"annotations": changes}}
            )
        except ApiError as error:
            if error.not_found:
                return
            raise
        self._store.put(NODES, written, now_s)
