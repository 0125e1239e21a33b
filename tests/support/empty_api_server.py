"""An API server with every kind the operator watches and no object; its watches can be broken.

For the operator's own process: what it does with objects is tested with `FakeApi` and in tests/e2e.
"""

import asyncio
import itertools
import json

from aiohttp import web

GROUPS = {
    "omniserve.io/v1alpha1": {"llmservices": True, "servingnodes": False},
    "discovery.k8s.io/v1": {"endpointslices": True},
}
CORE = {"nodes": False, "namespaces": False, "pods": True, "services": True}
WATCHED = {*CORE, *itertools.chain.from_iterable(GROUPS.values())}


class EmptyApiServer:
    """`statuses`: what a watch of a kind answers from now on; those that are open end. `held`: how
    many lists wait since `hold_lists`."""

    def __init__(self):
        self.statuses = {}  # plural: HTTP status
        self.watching = set()  # plurals with an open watch
        self.lease = None
        self.port = 0
        self.held = 0
        self._holds = False
        self._broken = asyncio.Event()
        self._runner = None

    def break_watches(self, statuses):
        self.statuses = statuses
        self._broken.set()

    def hold_lists(self):
        self._holds = True

    @property
    def kubeconfig(self):
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )

    async def up(self):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def down(self):
        await self._runner.cleanup()

    async def _answer(self, request):
        parts = request.match_info["path"].strip("/").split("/")
        if parts[-1] == "leases" or "leases" in parts[:-1]:
            return await self._lease(request)
        if request.query.get("watch") == "true":
            return await self._watch(request, parts[-1])
        if parts == ["apis"]:
            return web.json_response({"groups": [_group(name) for name in GROUPS]})
        if parts == ["api"]:
            return web.json_response({"versions": ["v1"]})
        if parts == ["api", "v1"]:
            return web.json_response(_resources(CORE))
        if parts[0] == "apis" and "/".join(parts[1:]) in GROUPS:
            return web.json_response(_resources(GROUPS["/".join(parts[1:])]))
        if parts[-1] not in {*WATCHED, "controllerrevisions"}:  # these are listed every 10 s
            return web.Response(status=404, text="404 page not found")
        if self._holds:
            self.held += 1
            await asyncio.Event().wait()
        return web.json_response({"items": [], "metadata": {"resourceVersion": "1"}})

    async def _lease(self, request):
        if request.method == "GET":
            if self.lease is None:
                return web.json_response({"kind": "Status", "code": 404}, status=404)
            return web.json_response(self.lease)
        body = await request.json()
        if request.method == "PATCH":
            self.lease["spec"] |= body["spec"]
        else:
            self.lease = body
        self.lease["metadata"]["resourceVersion"] = "1"
        return web.json_response(self.lease, status=201 if request.method == "POST" else 200)

    async def _watch(self, request, plural):
        if plural in self.statuses:
            return web.Response(status=self.statuses[plural], text="404 page not found")
        response = web.StreamResponse()
        await response.prepare(request)
        self.watching.add(plural)
        await self._broken.wait()
        return response


def _group(name):
    version = {"groupVersion": name, "version": name.split("/")[1]}
    return {"name": name.split("/")[0], "versions": [version], "preferredVersion": version}


def _resources(kinds):
    verbs = ["get", "list", "watch"]
    return {
        "resources": [
            {"name": p, "singularName": "", "kind": p, "namespaced": n, "verbs": verbs}
            for p, n in kinds.items()
        ]
    }
