"""Plain HTTP to an API server: JSON in, JSON out, the server's own words in errors.

The 1.36 server of CRDs has no legacy discovery, so generated and dynamic clients cannot talk to it;
this one talks to both servers alike and validates nothing itself: the servers shall.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import requests

Object = dict[str, Any]
CALL_TIMEOUT_S = 30
_PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}


class ApiError(Exception):
    """The server answered with an error; `code` is HTTP's, `message` the server's."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Access:
    """How a server is reached: the contents of a kubeconfig."""

    url: str
    ca_file: str
    token: str


class Api:
    """Calls on behalf of one token; safe to share between threads."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._local = threading.local()

    def get(self, path: str, **params: str) -> Object:
        """One object, or a list object."""
        return self._call("GET", path, params=params)

    def find(self, path: str) -> Object | None:
        """One object, or None where there is none."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def table(self, path: str) -> list[dict[str, Any]]:
        """What `kubectl get` prints: a list of rows, column name to cell."""
        accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
        response = self._session().get(
            self.access.url + path, headers=accept, timeout=CALL_TIMEOUT_S
        )
        _raise_for_error(response)
        found = response.json()
        names = [column["name"] for column in found["columnDefinitions"]]
        return [dict(zip(names, row["cells"], strict=True)) for row in found["rows"]]

    def items(self, path: str, **params: str) -> list[Object]:
        """The items of a list."""
        items: list[Object] = self.get(path, **params).get("items") or []
        return items

    def create(self, path: str, body: Object, **params: str) -> Object:
        return self._call("POST", path, body, params=params)

    def replace(self, path: str, body: Object, **params: str) -> Object:
        return self._call("PUT", path, body, params=params)

    def patch(self, path: str, body: Any, kind: str = "merge", **params: str) -> Object:
        return self._call("PATCH", path, body, params=params, content_type=_PATCH_TYPES[kind])

    def delete(self, path: str, **options: Any) -> None:
        """Deletes one object (or a collection); nothing there is fine."""
        try:
            self._call("DELETE", path, options or None)
        except ApiError as error:
            if error.code != 404:
                raise

    def watch(self, path: str, timeout_s: int, **params: str) -> Iterator[Object]:
        """Watch events until the server ends the watch."""
        query = params | {"watch": "true", "timeoutSeconds": str(timeout_s)}
        with self._session().get(
            self.access.url + path, params=query, stream=True, timeout=(5, timeout_s + 5)
        ) as response:
            _raise_for_error(response)
            for line in response.iter_lines():
                if line:
                    yield json.loads(line)

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        response = self._session().request(
            method,
            self.access.url + path,
            data=None if body is None else json.dumps(body),
            params=params,
            headers={"Content-Type": content_type},
            timeout=CALL_TIMEOUT_S,
        )
        _raise_for_error(response)
        answer: Object = response.json()
        return answer

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            session = requests.Session()
            session.trust_env = False  # no proxy between a test and loopback
            session.headers["Authorization"] = f"Bearer {self.access.token}"
            session.verify = self.access.ca_file
            self._local.session = session
        kept: requests.Session = self._local.session
        return kept


def _raise_for_error(response: requests.Response) -> None:
    if response.status_code < 400:
        return
    try:
        status = response.json()
    except ValueError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    message = str(status.get("message", response.text[:500]))
    raise ApiError(response.status_code, str(status.get("reason", "")), message)
