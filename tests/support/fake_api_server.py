"""An API server that knows ServingNodes and Secrets, over HTTP, with the failures of a real one."""

import asyncio
import base64
import contextlib
import copy
import itertools
import json

from aiohttp import web

NODES = "/apis/omniserve.io/v1alpha1/servingnodes"


class FakeApiServer:
    """Start it with `up`; `kubeconfig` is what a client needs."""

    def __init__(self, node_name="n1", namespace="release"):
        self.node_name, self.namespace = node_name, namespace
        self.node = None
        self.secrets = {}  # name: {key: text}
        self.patches = []  # every status that was written
        self.refuse_patches = 0  # how many to answer with 500
        self.forgetful = 0  # how many watches to answer with 410
        self.watches = 0
        self.secret_reads = 0
        self.port = 0
        self._versions = itertools.count(100)
        self._uids = itertools.count(1)
        self._events = []  # (version, event)
        self._news = asyncio.Event()
        self._runner = None

    # ---- what an operator does ----------------------------------------------------------------

    def create(self, spec=None):
        metadata = {"name": self.node_name, "uid": f"uid-{next(self._uids)}", "generation": 1}
        self.node = {"metadata": metadata, "spec": spec or {}, "status": {}}
        self._note("ADDED")

    def set_spec(self, spec):
        self.node["spec"] = spec
        self.node["metadata"]["generation"] += 1
        self._note("MODIFIED")

    def delete(self):
        self._note("DELETED")
        self.node = None

    @property
    def status(self):
        return self.node["status"] if self.node else {}

    def service(self, uid):
        return next((s for s in self.status.get("services", []) if s["uid"] == uid), {})

    def _note(self, kind):
        version = next(self._versions)
        self.node["metadata"]["resourceVersion"] = str(version)
        self._events.append((version, {"type": kind, "object": copy.deepcopy(self.node)}))
        self._news.set()
        self._news = asyncio.Event()

    # ---- the server ---------------------------------------------------------------------------

    @property
    def kubeconfig(self):
        url = f"http://127.0.0.1:{self.port}"
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )

    async def up(self):
        app = web.Application()
        app.add_routes(
            [
                web.get(NODES, self._watch),
                web.get(NODES + "/{name}", self._get),
                web.patch(NODES + "/{name}/status", self._patch),
                web.get("/api/v1/namespaces/{namespace}/secrets/{name}", self._secret),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def down(self):
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _get(self, request):
        if self.node is None or request.match_info["name"] != self.node_name:
            return refusal(404, "not found")
        return web.json_response(self.node)

    async def _patch(self, request):
        body = await request.json()
        if request.content_type != "application/merge-patch+json" or list(body) != ["status"]:
            return refusal(415, "a merge patch of the status, please")
        if self.refuse_patches:
            self.refuse_patches -= 1
            return refusal(500, "no patches now")
        if self.node is None:
            return refusal(404, "not found")
        self.patches.append(body["status"])
        for name, value in body["status"].items():
            if value is None:
                self.node["status"].pop(name, None)
            else:
                self.node["status"][name] = value
        self._note("MODIFIED")
        return web.json_response(self.node)

    async def _secret(self, request):
        self.secret_reads += 1
        values = self.secrets.get(request.match_info["name"])
        if values is None or request.match_info["namespace"] != self.namespace:
            return refusal(404, "not found")
        data = {key: base64.b64encode(text.encode()).decode() for key, text in values.items()}
        name = request.match_info["name"]
        return web.json_response({"metadata": {"name": name}, "data": data, "type": "Opaque"})

    async def _watch(self, request):
        if request.query.get("fieldSelector") != f"metadata.name={self.node_name}":
            return refusal(403, "agents may watch their own node only")
        self.watches += 1
        response = web.StreamResponse()
        await response.prepare(request)
        if self.forgetful:
            self.forgetful -= 1
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        version = int(request.query.get("resourceVersion") or 0)
        with contextlib.suppress(ConnectionError):  # the client has left
            while True:
                news = self._news
                for at, event in [entry for entry in self._events if entry[0] > version]:
                    version = at
                    await response.write(json.dumps(event).encode() + b"\n")
                await news.wait()
        return response


def refusal(status, message):
    """An error as the API server words it."""
    body = {"kind": "Status", "status": "Failure", "code": status, "message": message}
    return web.json_response(body, status=status)
