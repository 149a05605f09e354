"""A Hub for tests: the calls of huggingface_hub against a local HTTP server that keeps repositories in memory.

Nothing of the client is replaced: it uploads (LFS included), commits, lists and downloads over HTTP. Processes meet it
by the environment in `LocalHub.env`, which must be set before huggingface_hub is imported, hence in a subprocess:

    with local_hub(tmp_path) as hub:
        subprocess.run([sys.executable, script], env=hub.env, check=True)
        assert "README.md" in hub.files("ORG/NAME")
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

NOW = "2026-01-01T00:00:00.000Z"
ID = r"(?P<id>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<type>model|dataset|space)s/{ID}"
GIT = rf"/(?:(?P<types>dataset|space)s/)?{ID}"
LFS_FROM = 64 * 1024  # smaller text goes into the commit itself, as on the Hub

Files = dict[str, bytes]


class HubError(Exception):
    """An error as the Hub reports it: status, and the code by which the client picks its exception."""

    def __init__(self, status: int, code: str, message: str, **body: str) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


class Repo:
    """One repository: every commit's files, the branches, and which files came by LFS."""

    def __init__(self) -> None:
        self.commits: dict[str, Files] = {}
        self.branches: dict[str, str] = {}
        self.commit({}, "main")

    def commit(self, files: Files, branch: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def at(self, revision: str) -> tuple[str, Files]:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, self.commits[oid]


class LocalHub:
    """The running server.

    Attributes:
        endpoint: its address.
        env: a copy of this process's environment with which a subprocess sees it as the Hub, with an empty cache.
        refuse_uploads: while True, every commit is answered by 403, as for a token without the right to write.
    """

    def __init__(self, endpoint: str, home: Path) -> None:
        self.endpoint = endpoint
        self.refuse_uploads = False
        self.repos: dict[tuple[str, str], Repo] = {}
        #: by repository, what its creation asked for; None: the default of the account or organisation
        self.privacy: dict[tuple[str, str], Any] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []  # "METHOD path" in order, for tests that ask what was called
        self.with_token: list[str] = []  # the paths of those that came with a token
        self.lock = threading.RLock()
        dropped = ("OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN_PATH", "_PROXY", "_proxy")
        self.env = {key: value for key, value in os.environ.items() if not key.endswith(dropped)}
        self.env |= {
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": "hf_" + "x" * 34,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> Files:
        """What a repository holds: path -> content. KeyError for a repository that was never created."""
        return dict(self.repos[repo_type, repo_id].at(revision)[1])

    def repo(self, repo_type: str, repo_id: str) -> Repo:
        if (repo_type, repo_id) not in self.repos:
            raise HubError(404, "RepoNotFound", "Repository not found")
        return self.repos[repo_type, repo_id]

    # -- what the API answers; `body` is the request's content, `m` the path's parts ---------------------------------

    def create(self, m: dict[str, str], body: bytes) -> Any:
        asked = json.loads(body)
        repo_id = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        repo_type = asked.get("type") or "model"
        prefix = "" if repo_type == "model" else f"{repo_type}s/"
        answer = {"url": f"{self.endpoint}/{prefix}{repo_id}", "name": repo_id}
        if (repo_type, repo_id) in self.repos:
            raise HubError(409, "RepoExists", "You already created this repository", **answer)
        self.repos[repo_type, repo_id] = Repo()
        self.privacy[repo_type, repo_id] = asked.get("private") or asked.get("visibility")
        return answer

    def branch(self, m: dict[str, str], body: bytes) -> Any:
        repo = self.repo(m["type"], m["id"])
        if m["rev"] in repo.branches:
            raise HubError(409, "RefExists", "Reference already exists")
        repo.branches[m["rev"]] = repo.at(json.loads(body or b"{}").get("startingPoint") or "main")[0]

    def whoami(self, m: dict[str, str], body: bytes) -> Any:
        return {"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}}

    def validate_yaml(self, m: dict[str, str], body: bytes) -> Any:
        found = re.match(r"---\r?\n(.*?)\r?\n---", json.loads(body)["content"], re.S)
        try:
            metadata = yaml.safe_load(found.group(1)) if found else {}
        except yaml.YAMLError as error:
            raise HubError(400, "BadRequest", f"Invalid YAML in README.md: {error}") from error
        if not isinstance(metadata, dict):
            raise HubError(400, "BadRequest", "The metadata of README.md is no mapping")
        return {"errors": [], "warnings": []}

    def preupload(self, m: dict[str, str], body: bytes) -> Any:
        self.repo(m["type"], m["id"]).at(m["rev"])

        def mode(file: dict[str, Any]) -> str:
            return "lfs" if file["size"] >= LFS_FROM or b"\0" in base64.b64decode(file["sample"]) else "regular"

        files = json.loads(body)["files"]
        return {"files": [{"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False} for f in files]}

    def lfs_batch(self, m: dict[str, str], body: bytes) -> Any:
        objects = []
        for asked in json.loads(body)["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.blobs:
                href = f"{self.endpoint}/lfs/{asked['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{self.endpoint}/lfs-verify"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, m: dict[str, str], body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != m["oid"]:
            raise HubError(400, "BadRequest", "The content does not have the announced sha256")
        self.blobs[m["oid"]] = body

    def lfs_verify(self, m: dict[str, str], body: bytes) -> Any:
        asked = json.loads(body)
        if len(self.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(400, "BadRequest", "The content does not have the announced size")

    def commit(self, m: dict[str, str], body: bytes) -> Any:
        if self.refuse_uploads:
            raise HubError(403, "Forbidden", "You don't have the rights to write here")
        repo = self.repo(m["type"], m["id"])
        parent, files = repo.at(m["rev"])
        files = dict(files)
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header" and value.get("parentCommit", parent) != parent:
                raise HubError(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"], None)
            elif key == "deletedFolder":
                files = {path: data for path, data in files.items() if not path.startswith(value["path"])}
        oid = repo.commit(files, m["rev"])
        prefix = "" if m["type"] == "model" else f"{m['type']}s/"
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.endpoint}/{prefix}{m['id']}/commit/{oid}"}

    def info(self, m: dict[str, str], body: bytes) -> Any:
        oid, files = self.repo(m["type"], m["id"]).at(m.get("rev") or "main")
        return {
            "_id": "0" * 24,
            "id": m["id"],
            "sha": oid,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": NOW,
            "createdAt": NOW,
            "siblings": [{"rfilename": path, "size": len(data)} for path, data in sorted(files.items())],
        }

    def refs(self, m: dict[str, str], body: bytes) -> Any:
        branches = self.repo(m["type"], m["id"]).branches
        named = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in branches.items()]
        return {"branches": named, "converts": [], "tags": []}

    def tree(self, m: dict[str, str], body: bytes) -> Any:
        _, files = self.repo(m["type"], m["id"]).at(m["rev"])
        folder = f"{m['path']}/" if m.get("path") else ""
        inside = {path: data for path, data in files.items() if path.startswith(folder)}
        if folder and not inside:
            raise HubError(404, "EntryNotFound", f"{m['path']} does not exist on {m['rev']}")
        listed: dict[str, Any] = {}
        for path, data in sorted(inside.items()):
            parts = path[len(folder) :].split("/")
            for depth in range(1, len(parts)):
                name = folder + "/".join(parts[:depth])
                listed.setdefault(
                    name, {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "path": name}
                )
            listed[path] = file_entry(path, data)
        recursive = m["query"].get("recursive", ["false"])[0].lower() in ("1", "true")
        return [entry for path, entry in listed.items() if recursive or "/" not in path[len(folder) :]]

    def paths_info(self, m: dict[str, str], body: bytes) -> Any:
        _, files = self.repo(m["type"], m["id"]).at(m["rev"])
        entries: list[Any] = []
        for path in (path.strip("/") for path in parse_qs(body.decode()).get("paths", [])):
            if path in files:
                entries.append(file_entry(path, files[path]))
            elif any(known.startswith(f"{path}/") for known in files):
                entries.append(folder_entry(path))
        return entries

    def resolve(self, m: dict[str, str]) -> tuple[str, bytes]:
        oid, files = self.repo(m.get("types") or "model", m["id"]).at(m["rev"])
        if m["path"] not in files:
            raise HubError(404, "EntryNotFound", "Entry not found")
        return oid, files[m["path"]]

    ROUTES = [
        ("POST", re.compile(r"/api/repos/create"), create),
        ("GET", re.compile(r"/api/whoami-v2"), whoami),
        ("POST", re.compile(r"/api/validate-yaml"), validate_yaml),
        ("POST", re.compile(rf"{API}/preupload/(?P<rev>[^/]+)"), preupload),
        ("POST", re.compile(rf"{GIT}\.git/info/lfs/objects/batch"), lfs_batch),
        ("PUT", re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})"), lfs_put),
        ("POST", re.compile(r"/lfs-verify"), lfs_verify),
        ("POST", re.compile(rf"{API}/commit/(?P<rev>[^/]+)"), commit),
        ("POST", re.compile(rf"{API}/branch/(?P<rev>[^/]+)"), branch),
        ("POST", re.compile(rf"{API}/paths-info/(?P<rev>[^/]+)"), paths_info),
        ("GET", re.compile(rf"{API}(?:/revision/(?P<rev>[^/]+))?"), info),
        ("GET", re.compile(rf"{API}/refs"), refs),
        ("GET", re.compile(rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?"), tree),
    ]
    RESOLVE = re.compile(rf"{GIT}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")


def is_lfs(data: bytes) -> bool:
    return len(data) >= LFS_FROM or b"\0" in data[:512]


def file_entry(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "oid": blob, "size": len(data), "path": path}
    if is_lfs(data):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "path": path}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *args: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_request(self) -> None:
        body = self.body()
        url = urlsplit(self.path)
        path = url.path
        try:
            with self.hub.lock:
                self.hub.requests.append(f"{self.command} {path}")
                if self.headers.get("Authorization"):
                    self.hub.with_token.append(path)
                if self.command in ("POST", "PUT") and not path.startswith("/lfs/"):
                    if not self.headers.get("Authorization", "").startswith("Bearer ") and "paths-info" not in path:
                        raise HubError(401, "Unauthorized", "Invalid username or password.")
                if self.command in ("GET", "HEAD") and (found := self.hub.RESOLVE.fullmatch(path)):
                    oid, data = self.hub.resolve(unquoted(found))
                    return self.send_file(oid, data)
                for method, pattern, function in self.hub.ROUTES:
                    if method == self.command and (found := pattern.fullmatch(path)):
                        result = function(self.hub, {**unquoted(found), "query": parse_qs(url.query)}, body)
                        content = json.dumps(result).encode()
                        return self.answer(200, content, {"Content-Type": "application/json"})
                raise HubError(404, "EntryNotFound", f"This stand-in has no {self.command} {path}")
        except HubError as error:
            content = json.dumps(error.body).encode()
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.body["error"].splitlines()[0]}
            self.answer(error.status, content, headers | {"Content-Type": "application/json"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def send_file(self, oid: str, data: bytes) -> None:
        entry = file_entry("", data)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if is_lfs(data):
            headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(data))}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, data[first : last + 1], headers)
        self.answer(200, data, headers)


def unquoted(found: re.Match[str]) -> dict[str, Any]:
    return {key: unquote(value) for key, value in found.groupdict().items() if value is not None}


@contextmanager
def local_hub(home: Path) -> Iterator[LocalHub]:
    """Serve an empty Hub on a free port of this machine; `home` becomes the HF_HOME of the processes that use it."""
    handler = type("BoundHandler", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.hub = LocalHub(f"http://127.0.0.1:{server.server_address[1]}", home)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
