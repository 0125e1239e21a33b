"""An API server in memory: versions, generations, uids, merge patches, status subresources.

Enough of one for the operator's passes; what real servers do beyond it is tested in tests/e2e.
"""

import copy
import itertools
import re

from omniserve_operator.api import ApiError

_DNS_1035_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


class FakeApi:
    """`omniserve_operator.api.Api` over dictionaries, by path."""

    def __init__(self):
        self.objects = {}
        self.calls = []  # (verb, path) of everything that changes something
        self.refusals = {}  # (verb, path): ApiError to raise once
        self.before = {}  # (verb, path): called once before the call is carried out
        self._versions = itertools.count(100)
        self._uids = itertools.count(1)

    # ---- Api -----------------------------------------------------------------------------

    async def get(self, path):
        self._meet("get", path)
        if path not in self.objects:
            raise ApiError(404, f"{path} not found")
        return copy.deepcopy(self.objects[path])

    async def list(self, path, labels=""):
        self._meet("list", path)
        wanted = dict(part.split("=") for part in labels.split(",") if part)
        found = [
            copy.deepcopy(body)
            for place, body in sorted(self.objects.items())
            if _in_collection(place, path)
            and wanted.items() <= (body["metadata"].get("labels") or {}).items()
        ]
        return found, str(next(self._versions))

    async def create(self, path, body):
        place = f"{path}/{body['metadata']['name']}"
        self._meet("create", place)
        self.calls.append(("create", place))
        if place in self.objects:
            raise ApiError(409, f"{place} exists")
        if path.endswith("/services") and not _DNS_1035_LABEL.fullmatch(body["metadata"]["name"]):
            raise ApiError(422, f"{place}: a DNS-1035 label must consist of lower case letters")
        return self.put(place, body)

    async def patch(self, path, body):
        self._meet("patch", path)
        self.calls.append(("patch", path))
        place = path.removesuffix("/status")
        if place not in self.objects:
            raise ApiError(404, f"{place} not found")
        current = self.objects[place]
        version = (body.get("metadata") or {}).get("resourceVersion")
        if version not in (None, current["metadata"]["resourceVersion"]):
            raise ApiError(409, f"{place} has changed")
        body = {"status": body["status"]} if path.endswith("/status") else _without_status(body)
        return self._merge(place, body)

    async def delete(self, path, uid):
        self._meet("delete", path)
        self.calls.append(("delete", path))
        found = self.objects.get(path)
        if found is not None and found["metadata"]["uid"] != uid:
            raise ApiError(409, "another uid")
        self.remove(path)

    # ---- what others do ------------------------------------------------------------------

    def put(self, place, body):
        """Create at a path."""
        body = copy.deepcopy(body)
        metadata = body["metadata"]
        metadata.setdefault("uid", f"uid-{next(self._uids)}")
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        metadata["generation"] = 1
        metadata["resourceVersion"] = str(next(self._versions))
        parts = place.split("/")
        if "namespaces" in parts[:-2]:
            metadata["namespace"] = parts[parts.index("namespaces") + 1]
        self.objects[place] = body
        return copy.deepcopy(body)

    def edit(self, place, patch):
        """Somebody else's merge patch."""
        return self._merge(place, patch)

    def remove(self, place):
        """Delete, and what it owned."""
        gone = self.objects.pop(place, None)
        if gone is None:
            return
        uid = gone["metadata"]["uid"]
        for other, body in list(self.objects.items()):
            owners = body["metadata"].get("ownerReferences") or []
            if any(owner["uid"] == uid for owner in owners):
                self.remove(other)

    def writes(self):
        """What has been written since the last question."""
        done, self.calls = self.calls, []
        return done

    def _merge(self, place, body):
        current = self.objects[place]
        before = copy.deepcopy(current.get("spec"))
        merged = _merged(current, body)
        if merged == current:
            return copy.deepcopy(current)
        metadata = merged["metadata"]
        metadata["resourceVersion"] = str(next(self._versions))
        if merged.get("spec") != before:
            metadata["generation"] = current["metadata"]["generation"] + 1
        self.objects[place] = merged
        return copy.deepcopy(merged)

    def _meet(self, verb, path):
        action = self.before.pop((verb, path), None)
        if action is not None:
            action()
        refusal = self.refusals.pop((verb, path), None)
        if refusal is not None:
            raise refusal


def _in_collection(place, path):
    head = place.rpartition("/")[0]
    if head == path:
        return True
    # /api/v1/services lists those of all namespaces.
    prefix, _, plural = path.rpartition("/")
    return head.startswith(f"{prefix}/namespaces/") and head.endswith(f"/{plural}")


def _without_status(body):
    return {key: value for key, value in body.items() if key != "status"}


def _merged(current, patch):
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    found = dict(copy.deepcopy(current)) if isinstance(current, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        elif key == "resourceVersion":
            continue
        else:
            found[key] = _merged(found.get(key), value)
    return found
