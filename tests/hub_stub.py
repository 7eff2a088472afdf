"""A stand-in of the Hugging Face hub's HTTP interface, on this machine alone: repositories held in memory."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stub"


@dataclass
class Repository:
    """Commits of a repository, and its branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """Add a commit of these files; its hash."""
        text = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in files.items()})
        sha = hashlib.sha1(f"{len(self.commits)}{text}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha


@dataclass
class Hub:
    """What the server holds, what it was asked, and how it is to fail."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)  # "models/ORG/NAME"
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(
        default_factory=dict
    )  # name of a file -> bytes after which it is cut off, once
    down_after_a_cut: bool = False
    down: bool = False  # whether files are answered by an error of the server
    read_only: bool = False
    uploads: dict[str, bytes] = field(default_factory=dict)  # LFS objects by SHA-256

    def add(self, name: str, files: dict[str, bytes], kind: str = "model", ref: str = "main") -> str:
        """Add a commit to the repository ``name``, which is made if need be; its hash."""
        return self.repositories.setdefault(f"{kind}s/{name}", Repository()).commit(files, ref)


@contextmanager
def serve() -> Iterator[Hub]:
    """The stand-in, for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._read(body=True)

    def do_HEAD(self) -> None:
        self._read(body=False)

    def _read(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if re.fullmatch(r"/api/models/([^/]+/[^/]+)/auth-check/write", path):
            self._error(403, "") if self.hub.read_only else self._json({})
            return
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            kind, name, what, revision = match.groups()
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)", path):
            kind, name, what, revision = *match.groups(), "revision", "main"
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, name, revision, file = match.groups()
            kind, what = "datasets" if kind else "models", "file"
        else:
            self._error(404, "EntryNotFound")
            return
        repository = self.hub.repositories.get(f"{kind}/{name}")
        if repository is None:
            self._error(401, "RepoNotFound")
            return
        if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(403, "GatedRepo")
            return
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            self._error(404, "RevisionNotFound")
            return
        files = repository.commits[sha]
        if what == "file":
            self._file(file, files, sha, body)
        elif what == "tree":
            self._json([_entry(path, data) for path, data in files.items()])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": sha, "siblings": siblings, "private": False, "tags": []})

    def _file(self, path: str, files: dict[str, bytes], sha: str, body: bool) -> None:
        if self.hub.down and body:
            self._error(500, "")
            return
        if path not in files:
            self._error(404, "EntryNotFound")
            return
        data, start = files[path], 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            self.hub.ranges.append(f"{path} from {asked[1]}")
            start = int(asked[1])
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        end = len(data)
        if path in self.hub.cut:
            end, self.close_connection = self.hub.cut.pop(path), True
            self.hub.down = self.hub.down_after_a_cut
        self.wfile.write(data[start:end])

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"POST {path}")
        if self.hub.read_only or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(403, "")
            return
        if path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}"
            there = f"models/{name}" in self.hub.repositories
            if not there:
                self.hub.add(name, {".gitattributes": b""})
            self._json({"url": f"{self.hub.url}/{name}", "name": name}, 409 if there else 200)
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = json.loads(data)["files"]
            mode = {True: "lfs", False: "regular"}
            self._json(
                {
                    "files": [
                        {
                            "path": one["path"],
                            "uploadMode": mode[one["path"].endswith(".safetensors")],
                            "shouldIgnore": False,
                        }
                        for one in files
                    ]
                }
            )
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/put/{one['oid']}"}}}
                for one in json.loads(data)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(match[1], [json.loads(line) for line in data.splitlines()])
        else:
            self._error(404, "")

    def _commit(self, name: str, lines: list[dict]) -> None:
        repository = self.hub.repositories[f"models/{name}"]
        files = dict(repository.commits[repository.refs["main"]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def do_PUT(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.uploads[hashlib.sha256(data).hexdigest()] = data
        self._json({})

    def _json(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        data = json.dumps({"error": code}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if path.endswith(".safetensors"):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
