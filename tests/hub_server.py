"""A stand-in of the Hugging Face Hub's HTTP API: repositories in memory, on this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What it holds and was asked.

    Attributes:
        address: of its server.
        private: whether each repository is.
        commits: of each repository, the files of each revision, oldest first.
        asked: methods and paths, in order.
        open: whether it answers.
    """

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    is_open: bool = True

    def files(self, name: str) -> dict[str, bytes]:
        return list(self.commits[name].values())[-1]


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.hub.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if not self.hub.is_open or self.headers.get("Authorization") != "Bearer hf_test":
            self._json({"error": "Invalid username or password."}, 401)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.hub.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
            self.hub.commits.setdefault(name, {"0" * 40: {}})
            self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})
        elif "/preupload/" in path:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif "/commit/" in path:
            self._commit(path.split("/api/models/")[1].split("/commit/")[0], body)
        else:
            self._json({"error": "no such door"}, 404)

    def _commit(self, name: str, body: bytes) -> None:
        files = dict(self.hub.files(name))
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        oid = _sha1(repr(sorted(files.items())).encode())
        self.hub.commits[name][oid] = files
        address = f"{self.hub.address}/{name}/commit/{oid}"
        self._json({"commitUrl": address, "commitOid": oid, "success": True, "hookOutput": ""})

    def do_HEAD(self) -> None:
        self._get(with_body=False)

    def do_GET(self) -> None:
        self._get(with_body=True)

    def _get(self, *, with_body: bool) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/") and "/tree/" in path:
            name, _, revision = path.removeprefix("/api/models/").partition("/tree/")
            if found := self._found(name, revision):
                entries = found[1].items()
                sizes = [{"path": file, "size": len(content), "oid": _sha1(content)} for file, content in entries]
                self._json([{"type": "file", **each} for each in sizes])
            return
        if path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            found = self._found(name, revision or "main")
            if found:
                oid, files = found
                siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
                self._json(
                    {"id": name, "modelId": name, "sha": oid, "siblings": siblings, "private": False, "tags": []}
                )
            return
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self._found(name, revision)
        if found and file in found[1]:
            content = found[1][file]
            self.send_response(200)
            self.send_header("ETag", f'"{_sha1(content)}"')
            self.send_header("X-Repo-Commit", found[0])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if with_body else b"")
        elif found:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.hub.commits.get(name, {}) if self.hub.is_open else {}
        oid = list(commits)[-1] if commits and revision == "main" else revision
        if oid in commits:
            return oid, commits[oid]
        self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return None

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers on 127.0.0.1 until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
