"""A Hub on this machine: it speaks exactly the calls that em_interp makes, refuses any other, misbehaves on demand."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.state import LFS, TOKEN, Asked, Hub, Repo, entry


class Handler(BaseHTTPRequestHandler):
    """Every request is logged and looked up in ROUTES; what is not there is an error of the client."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # one packet an answer: no waits for delayed acknowledgements
    hub: Hub

    def log_message(self, *_):
        pass

    def handle_any(self):
        body = self.body()
        token = self.headers.get("Authorization")
        self.query = parse_qs(urlsplit(self.path).query)
        path = urlsplit(self.path).path
        with self.hub.lock:
            self.hub.asked.append(Asked(self.command, path, token, self.headers["Host"], body))
        self.kind, headers = self.hub.fault(path) if self.command != "HEAD" else ("", {})
        if self.kind.isdigit():
            return self.send(int(self.kind), b'{"error": "on demand"}', **headers)
        for method, pattern, answer in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                parts = [part and unquote(part) for part in match.groups()]
                return answer(self, *parts, **({"body": body} if body else {}))
        return self.refuse(f"{self.command} {self.path}")

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_any

    def refuse(self, what):
        self.hub.wrong.append(what)
        self.send(400, b'{"error": "no such call"}')

    def send(self, status, body=b"", **headers):
        if (start := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and status == 200:
            status, body = 206, body[int(start[1]) :]
        sent = body
        if status == 200 and self.kind in ("short", "long", "changed"):
            sent = {"short": body[:-7], "long": body + b"\0", "changed": b"\xff" + body[1:]}[self.kind]
        if self.kind == "html":
            sent = b"<html>please log in</html>"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.kind == "cut":
            self.wfile.write(sent[: len(sent) // 2])
            self.close_connection = True
            return
        while self.kind == "slow" and len(sent) > 1 and not self.hub.released.wait(0.05):
            self.wfile.write(sent[:1])
            self.wfile.flush()
            sent = sent[1:]
        self.wfile.write(sent)

    def json(self, value, status=200, **headers):
        self.send(status, json.dumps(value).encode(), **headers)

    def error(self, status, code="", message=""):
        self.json({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def repo(self, name, write=False, files=False):
        """The repository, where this client may see it; otherwise the answer that the Hub gives is sent."""
        token = self.headers.get("Authorization")
        repo, known = self.hub.repos.get(name), token == f"Bearer {TOKEN}"
        if token is not None and not known:
            self.error(401, message="Invalid credentials in Authorization header")
        elif repo is None and not known:
            self.error(401, "RepoNotFound", "Repository not found")
        elif repo is None or (repo.access == "private" and not known):
            self.error(404 if known else 401, "RepoNotFound", "Repository not found")
        elif repo.access == "gated" and files and not known:
            self.error(401, "GatedRepo", "Access to this model is restricted. You must have access to it.")
        elif write and not known:
            self.error(403, message="not yours")
        else:
            return repo
        return None


def info(self, name, revision):
    if repo := self.repo(name):
        sha = repo.find(revision or "main")
        if sha is None:
            return self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.json({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in repo.commits[sha]]})
    return None


def tree(self, name, sha):
    if self.query.get("recursive") != ["true"]:
        return self.refuse(f"a listing with {self.query}")
    if repo := self.repo(name):
        entries = [entry(path, held) for path, held in repo.commits[sha].items()]
        folders = {path.rpartition("/")[0] for path in repo.commits[sha]} - {""}
        entries += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        start = int(self.query.get("cursor", ["0"])[0])
        stop = start + self.hub.page_size
        more = f"{self.hub.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={stop}"
        links = {"Link": f'<{more}>; rel="next"'} if stop < len(entries) else {}
        return self.json(entries[start:stop], **links)
    return None


def resolve(self, name, sha, path):
    """A file, or where it is stored; in the headers its commit, hash and size."""
    if repo := self.repo(name, files=True):
        if path not in repo.commits[sha]:
            return self.error(404, "EntryNotFound", "Entry not found")
        held = repo.commits[sha][path]
        listed = entry(path, held)
        if "lfs" not in listed:
            return self.send(200, held, X_Repo_Commit=sha, ETag=f'"{listed["oid"]}"')
        oid, elsewhere = listed["lfs"]["oid"], self.hub.endpoint.replace("127.0.0.1", "localhost")
        self.hub.stored[oid] = held
        linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(held))}
        place = f"{elsewhere}/storage/{oid}/{path}"  # another host: the token stays behind
        return self.send(302, X_Repo_Commit=sha, Location=place, **linked)
    return None


def storage(self, oid, path):
    if self.headers.get("Authorization"):
        return self.refuse("the token was given to another host")
    return self.send(200, self.hub.stored[oid])


def create(self, body):
    asked = json.loads(body)
    name = f"{asked['organization']}/{asked['name']}"
    if self.headers.get("Authorization") != f"Bearer {TOKEN}":
        return self.error(401, message="Invalid credentials in Authorization header")
    hidden = asked.get("private") or asked.get("visibility") == "private"  # as older and newer huggingface_hub say it
    self.hub.repos[name] = Repo(access="private" if hidden else "public")
    self.hub.repos[name].commit({".gitattributes": b""})
    return self.json({"url": f"{self.hub.endpoint}/{name}", "name": name})


def validate(self, body):
    content = json.loads(body)["content"]
    assert content.startswith("---\n")
    return self.json({"errors": [], "warnings": []})


def preupload(self, name, body):
    if repo := self.repo(name, write=True):
        held = {path: entry(path, content) for path, content in repo.commits[repo.refs["main"]].items()}
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                "shouldIgnore": False,
                "oid": held[file["path"]].get("lfs", held[file["path"]])["oid"] if file["path"] in held else None,
            }
            for file in json.loads(body)["files"]
        ]
        return self.json({"files": files})
    return None


def batch(self, name, body):
    if self.repo(name, write=True):
        upload = f"{self.hub.endpoint}/storage/"
        objects = [
            {**thing, "actions": {"upload": {"href": upload + thing["oid"]}}} for thing in json.loads(body)["objects"]
        ]
        return self.json({"transfer": "basic", "objects": objects})
    return None


def store(self, oid, body=b""):
    if hashlib.sha256(body).hexdigest() != oid:
        return self.refuse("an upload with another hash than was said")
    self.hub.stored[oid] = body
    return self.send(200)


def commit(self, name, body):
    if repo := self.repo(name, write=True):
        lines = [json.loads(line) for line in body.splitlines()]
        head = repo.refs["main"]
        if lines[0]["value"].get("parentCommit", head) != head:
            return self.error(412, message="A commit has happened since")
        files = dict(repo.commits[head])
        for line in lines[1:]:
            value = line["value"]
            content = {"file": lambda v: base64.b64decode(v["content"]), "lfsFile": lambda v: self.hub.stored[v["oid"]]}
            files[value["path"]] = content[line["key"]](value)
        sha = repo.commit(files)
        return self.json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}"})
    return None


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("GET", rf"/api/models/{NAME}(?:/revision/([^/]+))?", info),
    ("GET", rf"/api/models/{NAME}/tree/([0-9a-f]{{40}})", tree),
    ("HEAD", rf"/{NAME}/resolve/([0-9a-f]{{40}})/(.+)", resolve),
    ("GET", rf"/{NAME}/resolve/([0-9a-f]{{40}})/(.+)", resolve),
    ("GET", r"/storage/([0-9a-f]{64})/(.+)", storage),
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate),
    ("POST", rf"/api/models/{NAME}/preupload/main", preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", batch),
    ("PUT", r"/storage/([0-9a-f]{64})", store),
    ("POST", rf"/api/models/{NAME}/commit/main", commit),
)


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub for the time of the block; an unknown request made to it fails the test."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert hub.wrong == []
