# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""A local stand-in for the Hub, with the calls that its client and Transformers use to create, upload and download.

    with HubServer() as hub:
        hub.commit("org/name", {"config.json": b"{}"})
        ...  # a client with HF_ENDPOINT=hub.url and HF_HUB_DISABLE_XET=1

Files that end in LFS_SUFFIXES are stored as large files: uploaded by their SHA-256, and downloaded from another host
name (`localhost`), like the Hub's content delivery network. All others are stored in the repository. Writing needs a
token.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".model")


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """SHA-256 of a large file, or git's SHA-1 of a small one."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    def entry(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.oid, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class Repo:
    commits: dict[str, dict[str, File]] = field(default_factory=dict)  # commit hash -> path -> file
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit hash
    gated: bool = False

    def add(self, branch: str, files: dict[str, File]) -> str:
        listing = {path: files[path].oid for path in sorted(files)}
        commit = hashlib.sha1(json.dumps([len(self.commits), listing]).encode()).hexdigest()
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit


@dataclass(frozen=True)
class Fault:
    """An error in one download after `after` bytes.

    `close` ends the connection normally, `reset` abruptly; `short` ends the file there; `wrong` continues with inverted
    bytes.
    """

    kind: str
    after: int


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    status: int


class Refusal(Exception):
    """An error response of the Hub. Its client distinguishes errors by `code`."""

    def __init__(self, status: int, code: str | None, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class HubServer(ThreadingHTTPServer):
    """Runs in threads of this process between `__enter__` and `__exit__`; records all `requests`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # SHA-256 -> large file, uploaded or committed
        self.faults: dict[str, list[Fault]] = {}  # path -> faults of its next downloads
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []  # errors of the stand-in itself
        self.lock = threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds a commit with new or changed `files`, without a client; returns its hash."""
        repo = self.repos.setdefault(name, Repo())
        before = repo.commits.get(repo.refs.get(branch), {})
        added = {path: File(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
        self.objects |= {file.oid: file.content for file in added.values() if file.lfs}
        return repo.add(branch, before | added)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return {path: file.content for path, file in repo.commits[repo.refs.get(revision, revision)].items()}

    def downloads(self, path: str) -> list[str | None]:
        """Returns the `Range` of every GET of a file, oldest first; None for the whole file."""
        return [
            request.range
            for request in self.requests
            if request.method == "GET" and request.status in (200, 206) and request.path.endswith(f"/{path}")
        ]

    def handle_error(self, request, client_address):
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # a client may disconnect
            self.errors.append(error)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    # -- common parts of all answers ---------------------------------------------------------------------------------

    def answer(self):
        url = urlsplit(self.path)
        self.query, self.body = parse_qs(url.query), self.read_body()
        try:
            for pattern, handle in ROUTES.items():
                if match := re.fullmatch(pattern, f"{self.command} {url.path}"):
                    return handle(self, **{name: value and unquote(value) for name, value in match.groupdict().items()})
            raise Refusal(404, None, f"the stand-in does not know {self.command} {self.path}")
        except Refusal as refusal:
            headers = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self.send_json({"error": str(refusal)}, refusal.status, headers)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, status: int, headers: dict[str, str], body: bytes = b"", sent: bytes | None = None):
        """Sends `body`, or only `sent` if it is given, with the headers of `body`."""
        self.server.requests.append(Request(self.command, unquote(self.path), self.headers.get("Range"), status))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else sent)

    def send_json(self, content, status: int = 200, headers: dict[str, str] | None = None):
        self.send(status, {"Content-Type": "application/json"} | (headers or {}), json.dumps(content).encode())

    def check_token(self):
        if not self.headers.get("Authorization", "").startswith("Bearer hf_"):
            raise Refusal(401, None, "Invalid username or password.")

    def find_repo(self, name: str, write: bool = False) -> Repo:
        if write:
            self.check_token()
        if name not in self.server.repos:
            raise Refusal(401, "RepoNotFound", "Repository not found")
        return self.server.repos[name]

    def find_commit(self, repo: Repo, revision: str) -> tuple[str, dict[str, File]]:
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repo.commits[commit]

    # -- repositories ------------------------------------------------------------------------------------------------

    def create(self):
        self.check_token()
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        exists = name in self.server.repos
        if not exists:
            self.server.repos[name] = Repo()
            self.server.repos[name].add("main", {})
        answer = {"url": f"{self.server.url}/{name}"} | ({"error": "You already created this repo"} if exists else {})
        self.send_json(answer, 409 if exists else 200)

    def create_ref(self, name: str, revision: str, kind: str):
        repo, asked = self.find_repo(name, write=True), json.loads(self.body)
        new = revision if kind == "branch" else asked["tag"]
        if new in repo.refs:
            raise Refusal(409, None, f"Reference already exists: {new}")
        start = asked.get("startingPoint", "main") if kind == "branch" else revision
        repo.refs[new] = self.find_commit(repo, start)[0]
        self.send_json({})

    def info(self, name: str, revision: str | None):
        commit, files = self.find_commit(self.find_repo(name), revision or "main")
        self.send_json({"id": name, "sha": commit, "tags": [], "siblings": [{"rfilename": path} for path in files]})

    def tree(self, name: str, revision: str, folder: str | None):
        _, files = self.find_commit(self.find_repo(name), revision)
        prefix = f"{folder}/" if folder else ""
        entries = {}
        for path, file in files.items():
            if path.startswith(prefix):
                head, _, rest = path.removeprefix(prefix).partition("/")
                if rest and self.query.get("recursive", ["false"])[0].lower() != "true":
                    entries[prefix + head] = {"type": "directory", "path": prefix + head, "size": 0, "oid": "0" * 40}
                else:
                    entries[path] = file.entry(path)
        if folder and not entries:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        self.send_json(list(entries.values()))

    # -- upload ------------------------------------------------------------------------------------------------------

    def validate_yaml(self):
        block = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            valid = block is None or isinstance(yaml.safe_load(block[1]), dict)
        except yaml.YAMLError:
            valid = False
        errors = [] if valid else [{"message": "The metadata is not valid YAML"}]
        warnings = [] if block else [{"message": "empty or missing yaml metadata in repo card"}]
        self.send_json({"errors": errors, "warnings": warnings}, 200 if valid else 400)

    def preupload(self, name: str, revision: str):
        _, files = self.find_commit(self.find_repo(name, write=True), revision)
        self.send_json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                        "oid": files[file["path"]].oid if file["path"] in files else None,
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    def lfs_batch(self, name: str):
        self.find_repo(name, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}
            objects.append(asked | ({} if asked["oid"] in self.server.objects else {"actions": upload}))
        self.send_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, None, "The content has another SHA-256 than its address")
        self.server.objects[oid] = self.body
        self.send(200, {})

    def make_commit(self, name: str, revision: str):
        repo = self.find_repo(name, write=True)
        with self.server.lock:
            files = dict(self.find_commit(repo, revision)[1])
            for line in self.body.splitlines():
                operation = json.loads(line)
                value = operation["value"]
                match operation["key"]:
                    case "header":
                        pass
                    case "file":
                        files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
                    case "lfsFile":
                        if value["oid"] not in self.server.objects:
                            raise Refusal(400, None, f"{value['path']} was not uploaded")
                        files[value["path"]] = File(self.server.objects[value["oid"]], lfs=True)
                    case "deletedFile":
                        del files[value["path"]]
                    case unknown:
                        raise Refusal(400, None, f"the stand-in cannot {unknown}")
            commit = repo.add(revision, files)
        self.send_json({"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"})

    # -- download ----------------------------------------------------------------------------------------------------

    def resolve(self, name: str, revision: str, path: str):
        repo = self.find_repo(name)
        if repo.gated:
            raise Refusal(403, "GatedRepo", f"Access to model {name} is restricted")
        commit, files = self.find_commit(repo, revision)
        if path not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        file = files[path]
        headers = {"X-Repo-Commit": commit}
        if not file.lfs:
            return self.send_content(path, file.content, headers | {"ETag": f'"{file.oid}"'})
        headers |= {"X-Linked-ETag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
        location = f"http://localhost:{self.server.server_port}/cdn/{file.oid}/{quote(path)}"
        self.send(302, headers | {"Location": location})

    def cdn(self, oid: str, path: str):
        if "Authorization" in self.headers:
            raise Refusal(400, None, "a token was sent to another host")
        self.send_content(path, self.server.objects[oid], {"ETag": f'"{oid}"'})

    def send_content(self, path: str, content: bytes, headers: dict[str, str]):
        start, status, headers = 0, 200, headers | {"Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        faults = self.server.faults.get(path) if self.command == "GET" else None
        if not faults:
            return self.send(status, headers, body)
        fault = faults.pop(0)
        rest = body[fault.after :]
        if fault.kind == "short":
            return self.send(status, headers, body[: fault.after])
        if fault.kind == "wrong":
            return self.send(status, headers, body[: fault.after] + bytes(255 - byte for byte in rest))
        self.send(status, headers, body, sent=body[: fault.after])
        self.close_connection = True
        if fault.kind == "reset":  # closing without lingering sends a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


NAME, REVISION = r"(?P<name>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
ROUTES = {
    "POST /api/repos/create": Handler.create,
    f"POST /api/models/{NAME}/(?P<kind>branch|tag)/{REVISION}": Handler.create_ref,
    f"GET /api/models/{NAME}(/revision/{REVISION})?": Handler.info,
    f"GET /api/models/{NAME}/tree/{REVISION}(/(?P<folder>.+))?": Handler.tree,
    "POST /api/validate-yaml": Handler.validate_yaml,
    f"POST /api/models/{NAME}/preupload/{REVISION}": Handler.preupload,
    f"POST /{NAME}[.]git/info/lfs/objects/batch": Handler.lfs_batch,
    "PUT /lfs/(?P<oid>[0-9a-f]{64})": Handler.lfs_upload,
    f"POST /api/models/{NAME}/commit/{REVISION}": Handler.make_commit,
    f"(GET|HEAD) /{NAME}/resolve/{REVISION}/(?P<path>.+)": Handler.resolve,
    "(GET|HEAD) /cdn/(?P<oid>[0-9a-f]{64})/(?P<path>.+)": Handler.cdn,
}
