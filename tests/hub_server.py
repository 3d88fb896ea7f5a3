"""A Hugging Face Hub on this machine: what the real client calls to publish and to fetch, and ways to break it."""
import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKENS = {"hf_owner": {"acme", "bssnet-zoo"}, "hf_reader": set()}  # organisations that each token may write to


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """Branches point to commits, commits are dicts of path -> content; ``lfs`` are the paths that git LFS keeps."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        files = {**self.commits.get(self.branches.get(branch), {}), **files}
        oid = hashlib.sha1(repr([branch, len(self.commits), *files]).encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Trouble:
    """What goes wrong: set before a request.

    Attributes:
        flip: Serve large files with one bit of byte 1,000,000 flipped.
        short: Serve large files without their last bytes, as if that was all.
        cuts: Break off this many times half-way through what is left of a large file.
        status: Answer every request with this status.
    """

    flip: bool = False
    short: bool = False
    cuts: int = 0
    status: int | None = None


class Hub(ThreadingHTTPServer):
    """The server. ``requests`` has all that was asked, as (method, path)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.trouble = Trouble()
        self.lock = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}"  # another host, as the Hub's large files are elsewhere
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()  # shutdown() waits that long

    def handle_error(self, request, client_address):
        pass  # clients that went away, and connections that were cut on purpose


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def reply(self, status: int, content: dict | bytes = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def find(self, repo_id: str) -> Repo | None:
        """The repository, if there is one that the token may see; else the answer that there is none."""
        repo = self.server.repos.get(repo_id)
        if repo and not (repo.private and repo_id.partition("/")[0] not in TOKENS.get(self.token, ())):
            return repo
        self.reply(404 if self.token else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return None

    def may_write(self, organization: str) -> bool:
        if self.token not in TOKENS:
            self.reply(401, {"error": "Invalid username or password."},
                       X_Error_Message="Invalid credentials in Authorization header")
        elif organization not in TOKENS[self.token]:
            self.reply(403, {"error": "Forbidden"}, X_Error_Message="You don't have the rights to create a model here")
        else:
            return True
        return False

    def handle_method(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        body = self.body()
        if self.server.trouble.status:
            return self.reply(self.server.trouble.status, {"error": "trouble"})
        parts = path.strip("/").split("/")
        if self.command in ("GET", "HEAD") and parts[0] == "large":
            return self.get_large(parts[1])
        if self.command in ("GET", "HEAD") and parts[2:3] == ["resolve"]:
            return self.get_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        if self.command == "GET" and parts[:2] == ["api", "models"]:
            return self.get_info("/".join(parts[2:4]), parts[5] if parts[4:5] == ["revision"] else "main")
        if self.command == "PUT" and parts[0] == "large":
            return self.put_large(parts[1], body)
        if self.command == "POST":
            return self.post(parts, body)
        return self.reply(404, {"error": f"{self.command} {path}"})

    do_GET = do_HEAD = do_PUT = do_POST = handle_method

    def post(self, parts: list[str], body: bytes) -> None:
        if parts == ["api", "validate-yaml"]:
            return self.validate(json.loads(body)["content"])
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[2:] == ["info", "lfs", "objects", "batch"] and self.may_write(parts[0]):
            return self.batch(json.loads(body))
        if parts[:2] == ["api", "models"] and self.may_write(parts[2]) and (repo := self.find("/".join(parts[2:4]))):
            if parts[4] == "branch":
                return self.branch(repo, parts[5])
            if parts[4] == "preupload":
                return self.preupload(repo, parts[5], json.loads(body))
            if parts[4] == "commit":
                return self.commit(repo, "/".join(parts[2:4]), parts[5], body)
        return None

    def validate(self, content: str) -> None:
        """A small part of what the Hub demands of a card's metadata."""
        data = yaml.safe_load(content.split("---\n")[1])
        wrong = [key for key in ("library_name", "pipeline_tag", "license") if not isinstance(data.get(key), str)]
        if data.get("license") == "other" and not (data.get("license_name") and data.get("license_link")):
            wrong.append("license_name")
        for result in (result for index in data.get("model-index", []) for result in index["results"]):
            wrong += [key for key, fields in dict(task=["type"], dataset=["name", "type"]).items()
                      if not all(result[key].get(f) for f in fields)]
            wrong += ["metrics" for m in result["metrics"] if not (m.get("type") and "value" in m)]
        if wrong:
            return self.reply(400, {"errors": [{"message": f'"{key}" is wrong'} for key in wrong]})
        return self.reply(200, {"errors": [], "warnings": []})

    def create(self, request: dict) -> None:
        organization, name = request["organization"], request["name"]
        if not self.may_write(organization):
            return None
        repo_id = f"{organization}/{name}"
        with self.server.lock:
            if repo_id in self.server.repos:
                return self.reply(409, {"error": "You already created this model repo"})
            repo = self.server.repos[repo_id] = Repo(
                private=request.get("private") or request.get("visibility") == "private")
            repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.reply(200, {"url": f"{self.server.endpoint}/{repo_id}", "name": repo_id})

    def branch(self, repo: Repo, name: str) -> None:
        if name in repo.branches:
            return self.reply(409, {"error": "Reference already exists"})
        repo.branches[name] = repo.branches["main"]
        return self.reply(200, {})

    def preupload(self, repo: Repo, revision: str, request: dict) -> None:
        files = repo.commits[repo.resolve(revision)]
        answer = []
        for file in request["files"]:
            path, large = file["path"], is_large(file["path"])
            oid = None
            if path in files:
                oid = hashlib.sha256(files[path]).hexdigest() if large else git_hash(files[path])
            answer.append(dict(path=path, uploadMode="lfs" if large else "regular", shouldIgnore=False, oid=oid))
        return self.reply(200, {"files": answer})

    def batch(self, request: dict) -> None:
        objects = []
        for item in request["objects"]:
            upload = {"upload": {"href": f"{self.server.storage}/large/{item['oid']}"}}
            there = item["oid"] in self.server.large
            objects.append(dict(oid=item["oid"], size=item["size"], **({} if there else {"actions": upload})))
        return self.reply(200, {"transfer": "basic", "objects": objects})

    def put_large(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.reply(400, {"error": "wrong sha256"})
        self.server.large[oid] = body
        return self.reply(200)

    def commit(self, repo: Repo, repo_id: str, branch: str, body: bytes) -> None:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        with self.server.lock:
            oid = repo.commit(branch, files)
        return self.reply(200, {"commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{oid}", "commitOid": oid})

    def get_info(self, repo_id: str, revision: str) -> None:
        if not (repo := self.find(repo_id)):
            return None
        if not (oid := repo.resolve(revision)):
            return self.reply(404, {"error": "Invalid rev"}, X_Error_Code="RevisionNotFound")
        siblings = []
        for path, content in repo.commits[oid].items():
            lfs = dict(sha256=hashlib.sha256(content).hexdigest(), size=len(content), pointerSize=134)
            siblings.append(dict(rfilename=path, size=len(content), blobId=git_hash(content),
                                 **({"lfs": lfs} if is_large(path) else {})))
        return self.reply(200, dict(id=repo_id, sha=oid, private=repo.private, siblings=siblings, tags=[]))

    def get_file(self, repo_id: str, revision: str, path: str) -> None:
        if not (repo := self.find(repo_id)):
            return None
        if not (oid := repo.resolve(revision)):
            return self.reply(404, {"error": "Invalid rev"}, X_Error_Code="RevisionNotFound")
        content, headers = repo.commits[oid].get(path), {"X_Repo_Commit": oid}
        if content is None:
            return self.reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **headers)
        if not is_large(path):
            return self.reply(200, content, ETag=f'"{git_hash(content)}"', **headers)
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.server.trouble.short:
            headers["X_Linked_Size"] = str(len(content))
        return self.reply(302, X_Linked_ETag=f'"{sha256}"',
                          Location=f"{self.server.storage}/large/{sha256}", **headers)

    def get_large(self, oid: str) -> None:
        trouble, content = self.server.trouble, bytearray(self.server.large[oid])
        if trouble.flip:
            content[1_000_000] ^= 1
        if trouble.short:
            del content[-1000:]
        start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        total, content = len(content), content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Disposition", 'inline; filename="model.safetensors";')
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = trouble.cuts > 0
        trouble.cuts -= cut
        self.wfile.write(content[:len(content) // 2] if cut else content)
        self.close_connection = cut
