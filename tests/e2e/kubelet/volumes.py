"""A pod's volumes as folders of this machine, and where each container sees them."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path

from e2e.harness.api import Api, Object
from e2e.kubelet.environment import field_value

TOKEN_SECONDS = 3600


class NotYetError(Exception):
    """Something the pod needs does not exist yet; the kubelet tries again."""


@dataclass(frozen=True)
class Mount:
    """`source` of this machine appears as `target` in the container."""

    source: Path
    target: str
    read_only: bool


class Volumes:
    """Makes a pod's volumes below `folder`; what belongs to the node lies below `node_folder`."""

    def __init__(self, api: Api, pod: Object, folder: Path, node_folder: Path) -> None:
        self._api = api
        self._pod = pod
        self._namespace: str = pod["metadata"]["namespace"]
        self._folder = folder
        self._node_folder = node_folder

    def prepare(self) -> None:
        """Makes every volume; NotYetError where a Secret or ConfigMap is missing."""
        for volume in self._pod["spec"].get("volumes", []):
            path = self._path(volume)
            path.mkdir(parents=True, exist_ok=True)
            if "hostPath" in volume:
                continue
            for name, content in self._contents(volume).items():
                file = path / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            self._own(path, writable="emptyDir" in volume or "persistentVolumeClaim" in volume)

    def mounts(self, container: Object) -> list[Mount]:
        """The container's volumeMounts, outer paths first."""
        volumes = {volume["name"]: volume for volume in self._pod["spec"].get("volumes", [])}
        found = []
        for mount in container.get("volumeMounts", []):
            source = self._path(volumes[mount["name"]]) / mount.get("subPath", "")
            found.append(Mount(source, mount["mountPath"], mount.get("readOnly", False)))
        return sorted(found, key=lambda mount: mount.target)

    def _path(self, volume: Object) -> Path:
        if "hostPath" in volume:
            return self._node_folder / volume["hostPath"]["path"].lstrip("/")
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            return self._node_folder.parent / "claims" / self._namespace / claim
        return self._folder / "volumes" / volume["name"]

    def _contents(self, volume: Object) -> dict[str, bytes]:
        if "projected" in volume:
            return {
                name: content
                for source in volume["projected"]["sources"]
                for name, content in self._projected(source).items()
            }
        if "secret" in volume:
            source = volume["secret"]
            return self._data("secrets", source["secretName"], source)
        if "configMap" in volume:
            return self._data("configmaps", volume["configMap"]["name"], volume["configMap"])
        if "downwardAPI" in volume:
            return self._downward(volume["downwardAPI"])
        return {}

    def _projected(self, source: Object) -> dict[str, bytes]:
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            return {wanted["path"]: self._token(wanted).encode()}
        if "secret" in source:
            return self._data("secrets", source["secret"]["name"], source["secret"])
        if "configMap" in source:
            return self._data("configmaps", source["configMap"]["name"], source["configMap"])
        return self._downward(source["downwardAPI"])

    def _data(self, plural: str, name: str, source: Object) -> dict[str, bytes]:
        found = self._api.find(f"/api/v1/namespaces/{self._namespace}/{plural}/{name}")
        if found is None:
            if source.get("optional"):
                return {}
            raise NotYetError(f"{plural} {self._namespace}/{name} does not exist")
        data = found.get("data") or {}
        decode = base64.b64decode if plural == "secrets" else str.encode
        items = source.get("items") or [{"key": key, "path": key} for key in data]
        return {item["path"]: decode(data[item["key"]]) for item in items}

    def _downward(self, source: Object) -> dict[str, bytes]:
        return {
            item["path"]: field_value(self._pod, item["fieldRef"]["fieldPath"], "").encode()
            for item in source["items"]
        }

    def _token(self, wanted: Object) -> str:
        account = self._pod["spec"].get("serviceAccountName", "default")
        path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}/token"
        meta = self._pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        spec: Object = {"expirationSeconds": TOKEN_SECONDS, "boundObjectRef": bound}
        if wanted.get("audience"):
            spec["audiences"] = [wanted["audience"]]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        token: str = self._api.create(path, body)["status"]["token"]
        return token

    def _own(self, path: Path, *, writable: bool) -> None:
        """Everybody may read; emptyDirs belong to the pod's user and group, as fsGroup makes it."""
        context = self._pod["spec"].get("securityContext") or {}
        group = context.get("fsGroup", context.get("runAsGroup", 0))
        path.chmod(0o2777 if writable else 0o755)
        for entry in (path, *path.rglob("*")):
            os.chown(entry, context.get("runAsUser", 0) if writable else 0, group)
