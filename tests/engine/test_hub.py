"""hf:// models fetched from a hub: a small one, over HTTP, in a process of its own as agents do."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from omniserve_agent.engine.model.errors import PrepareError
from omniserve_agent.engine.model.hub import HubModel, find

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(1000),
    "tokenizer.json": b"{}",
    "README.md": b"not for loaders",
    "pytorch_model.bin": b"pickle: never",
}


class Hub(BaseHTTPRequestHandler):
    """One repository, org/tiny; org/secret wants the token."""

    files: ClassVar = FILES
    seen: ClassVar = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.seen.append(self.path)
        path = self.path.partition("?")[0]
        is_secret = "org/secret" in path
        if is_secret and self.headers.get("Authorization") != "Bearer hub-token":
            self.reply(401, b"", {"X-Error-Message": "a token, please"})
        elif path.startswith(("/api/models/org/tiny", "/api/models/org/secret")):
            siblings = [{"rfilename": n, "size": len(data)} for n, data in self.files.items()]
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "private": False}
            self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        elif "/resolve/" in path and path.rpartition("/")[2] in self.files:
            data = self.files[path.rpartition("/")[2]]
            etag = hashlib.sha1(data).hexdigest()
            self.reply(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body=body)
        else:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})

    def reply(self, status, data, headers, body=True):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    """The URL of a hub."""
    Hub.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def prepared(tmp_path):
    """Run the program; its last line."""

    def run(uri, endpoint, *flags, token=""):
        command = [sys.executable, "-m", "omniserve_agent.engine.model.prepare", "--uri", uri]
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": token,
        }
        done = subprocess.run(
            [*command, "--cache-dir", str(tmp_path / "cache"), *flags],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run


def test_what_loaders_read_is_fetched_once(hub, prepared):
    last = prepared("hf://org/tiny", hub, "--hub", "--inspect")[-1]
    assert last["needed_bytes"] == 1004
    steps = prepared("hf://org/tiny", hub, "--hub")
    folder = Path(steps[-1]["model_dir"])
    assert folder == Path(last["model_dir"])
    assert folder.name == "org--tiny-0123456789ab"
    wanted = ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in folder.iterdir()) == wanted
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "fetching model.safetensors" in [step.get("stage") for step in steps]
    Hub.seen.clear()
    assert prepared("hf://org/tiny", hub, "--hub")[-1]["model_dir"] == str(folder)
    assert not [path for path in Hub.seen if "/resolve/" in path]


def test_what_was_fetched_serves_while_the_hub_is_away(hub, prepared):
    folder = prepared("hf://org/tiny", hub, "--hub")[-1]["model_dir"]
    assert prepared("hf://org/tiny", "http://127.0.0.1:9", "--hub")[-1]["model_dir"] == folder


def test_a_hub_that_cannot_be_reached_is_told_with_the_remedy(prepared):
    error = prepared("hf://org/tiny", "http://127.0.0.1:9", "--hub")[-1]["error"]
    assert "model uri 'hf://org/tiny': no model hub can be reached" in error
    assert "HF_ENDPOINT" in error
    assert "pvc://" in error


def test_without_leave_nothing_is_fetched(hub, prepared):
    assert "not in the local Hugging Face cache" in prepared("hf://org/tiny", hub)[-1]["error"]
    assert Hub.seen == []


def test_a_token_opens_what_is_not_public(hub, prepared):
    refused = prepared("hf://org/secret", hub, "--hub")[-1]["error"]
    assert "the hub refuses" in refused
    last = prepared("hf://org/secret", hub, "--hub", "--inspect", token="hub-token")[-1]
    assert last["needed_bytes"] == 1004


def test_names_are_checked_before_anybody_is_asked():
    with pytest.raises(PrepareError, match="must read hf://org/name"):
        find("hf://onlyname")


def test_a_label_names_repository_and_commit():
    model = HubModel("hf://org/tiny", "org/tiny", COMMIT, (("a", 3), ("b", 4)))
    assert model.label == "org--tiny-0123456789ab"
    assert model.size_bytes == 7
