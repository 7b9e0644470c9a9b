"""What the Hub does, as far as pushing and reading go: repositories, refs, trees, commits as NDJSON, LFS with basic
transfer, downloads. No HTTP here: a request in, an answer out.

It believes nothing: contents are hashed, a large file must have arrived before a commit may name it, and a commit's
parent must be its branch's head. Listings come in pages.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".parquet", ".safetensors", ".bin", ".arrow", ".gz")
LARGE_BYTES = 10_000_000
WRITE, READ = "hf_aSecretThatMayWrite0123456789", "hf_aSecretThatMayRead9876543210"
"""The two tokens it knows."""
OWNERS = ("org", "tester")
"""Namespaces the writing token may write in."""


@dataclass(frozen=True)
class File:
    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """As git has it; of a large file, git has a pointer."""
        text = self.content
        if self.large:
            spec = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(text)}\n"
            text = spec.encode()
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    description: str
    files: Mapping[str, File]
    """The whole tree."""


@dataclass
class Repo:
    kind: str
    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    """Of ``main``, oldest first."""
    tags: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    made: dict[str, Commit] = field(default_factory=dict)
    """All commits, by oid."""

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def add(self, title: str, description: str, files: Mapping[str, File], branch: str = "main") -> Commit:
        seed = f"{self.kind} {self.name} {len(self.made)} {title} {time.time_ns()}"
        made = Commit(hashlib.sha1(seed.encode()).hexdigest(), title, description, dict(files))
        self.made[made.oid], self.branches[branch] = made, made.oid
        if branch == "main":
            self.commits.append(made)
        return made

    def at(self, revision: str) -> Commit:
        oid = {**self.tags, **self.branches}.get(revision, revision)
        if oid not in self.made:
            raise Answer.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.made[oid]

    def texts(self, revision: str = "main") -> dict[str, bytes]:
        return {path: file.content for path, file in self.at(revision).files.items() if path != ".gitattributes"}


@dataclass
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    at: float
    """Seconds of a clock."""
    body: bytes = b""
    fault: object = None
    status: int | None = None
    """None: no answer was sent."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Answer(Exception):  # raised where one is found out deep down
    def __init__(self, status: int = 200, body: Any = b"", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = dict(headers or {})

    @classmethod
    def error(cls, status: int, code: str, says: str) -> "Answer":
        return cls(status, {"error": says}, {"X-Error-Code": code, "X-Error-Message": says})


class Hub:
    """What the Hub has. ``page_size`` entries come at a time; where ``one_namespace`` is set, a data set and a model
    cannot have the same name."""

    def __init__(self, address: str, page_size: int = 1000) -> None:
        self.address, self.page_size, self.one_namespace = address, page_size, False
        self.repos: dict[tuple[str, str], Repo] = {}
        """By kind and name."""
        self.blobs: dict[str, bytes] = {}
        """Large files that have arrived, by SHA-256."""

    def repo(self, name: str, kind: str = "dataset") -> Repo:
        return self.repos[kind, name]

    def make(self, name: str, kind: str = "dataset", private: bool = True) -> Repo:
        repo = self.repos[kind, name] = Repo(kind, name, private)
        repo.add("initial commit", "", {".gitattributes": File(b"*.parquet filter=lfs\n", large=False)})
        return repo

    def authorise(self, request: Request, owner: str | None = None) -> None:
        """May the request's token read; and where an owner is named, write there?"""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not token:
            raise Answer.error(401, "RepoNotFound", "Repository not found")
        if token not in (WRITE, READ):
            raise Answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        if owner is not None and (token == READ or owner not in OWNERS):
            raise Answer.error(403, "", f"You don't have the rights to write under the namespace {owner!r}")

    def find(self, kind: str, name: str) -> Repo:
        if (kind, name) not in self.repos:
            raise Answer.error(404, "RepoNotFound", "Repository not found")
        return self.repos[kind, name]


KINDS = {"models": "model", "datasets": "dataset"}
ROUTES: list[tuple[str, Callable[..., Answer]]] = []


def route(pattern: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """``{name}`` is a part of the path, ``{repo}`` two, ``{path}`` all the rest."""
    groups = {"kinds": "models|datasets", "repo": "[^/]+/[^/]+?", "path": ".+"}
    regex = re.sub(r"{(\w+)}", lambda each: f"(?P<{each[1]}>{groups.get(each[1], '[^/]+')})", pattern)

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.append((regex, function))
        return function

    return register


@route("GET /api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Answer:
    hub.authorise(request)
    return Answer(200, {"type": "user", "name": "tester", "orgs": [{"name": "org"}]})


@route("POST /api/repos/create")
def create(hub: Hub, request: Request) -> Answer:
    asked = json.loads(request.body)
    owner = asked["organization"] or "tester"
    hub.authorise(request, owner)
    kind, name = asked.get("type", "model"), f"{owner}/{asked['name']}"
    taken = {each for each in hub.repos if each[1] == name and (hub.one_namespace or each[0] == kind)}
    if taken:
        raise Answer.error(409, "", "You already created this repo")
    hub.make(name, kind, asked.get("visibility") == "private")  # the real Hub's default is public
    return Answer(200, {"url": f"{hub.address}/{'datasets/' if kind == 'dataset' else ''}{name}"})


@route("POST /api/validate-yaml")
def validate(hub: Hub, request: Request) -> Answer:
    card = json.loads(request.body)["content"]
    parts = card.split("---\n")
    try:
        good = not card.startswith("---\n") or isinstance(yaml.safe_load(parts[1]), dict)
    except yaml.YAMLError:
        good = False
    errors = [] if good else [{"message": "YAML metadata is no mapping"}]
    return Answer(200 if good else 400, {"errors": errors, "warnings": []})


@route("GET /api/{kinds}/{repo}(/revision/{revision})?")
def info(hub: Hub, request: Request, kinds: str, repo: str, revision: str | None = None) -> Answer:
    found = hub.find(KINDS[kinds], repo)
    commit = found.at(unquote(revision or "main"))
    siblings = [{"rfilename": path} for path in commit.files]
    return Answer(200, {"id": repo, "sha": commit.oid, "private": found.private, "siblings": siblings, "tags": []})


@route("GET /api/{kinds}/{repo}/refs")
def refs(hub: Hub, request: Request, kinds: str, repo: str) -> Answer:
    found = hub.find(KINDS[kinds], repo)
    branches = found.branches
    return Answer(200, {
        "branches": [{"name": each, "ref": f"refs/heads/{each}", "targetCommit": branches[each]} for each in branches],
        "tags": [{"name": each, "ref": f"refs/tags/{each}", "targetCommit": found.tags[each]} for each in found.tags],
        "converts": [],
    })  # fmt: skip


@route("POST /api/{kinds}/{repo}/tag/{revision}")
def tag(hub: Hub, request: Request, kinds: str, repo: str, revision: str) -> Answer:
    hub.authorise(request, repo.split("/")[0])
    found, name = hub.find(KINDS[kinds], repo), json.loads(request.body)["tag"]
    if name in found.tags:
        raise Answer.error(409, "", f"Tag {name} already exists")
    found.tags[name] = found.at(unquote(revision)).oid
    return Answer(200, {})


@route("DELETE /api/{kinds}/{repo}/tag/{name}")
def untag(hub: Hub, request: Request, kinds: str, repo: str, name: str) -> Answer:
    hub.authorise(request, repo.split("/")[0])
    if hub.find(KINDS[kinds], repo).tags.pop(unquote(name), None) is None:
        raise Answer.error(404, "RevisionNotFound", f"No tag {name}")
    return Answer(200, {})


@route("(?P<method>POST|DELETE) /api/{kinds}/{repo}/branch/{name}")
def branch(hub: Hub, request: Request, kinds: str, repo: str, name: str, method: str) -> Answer:
    hub.authorise(request, repo.split("/")[0])
    found = hub.find(KINDS[kinds], repo)
    if (name in found.branches) == (method == "POST"):
        raise Answer.error(409 if method == "POST" else 404, "", f"Reference {name} exists or does not")
    if method == "POST":
        found.branches[name] = found.at(json.loads(request.body).get("startingPoint", "main")).oid
    else:
        del found.branches[name]
    return Answer(200, {})


def described(files: Mapping[str, File]) -> list[dict[str, Any]]:
    """Files and their folders, as listings have them."""
    folders = {"/".join(path.split("/")[:end]) for path in files for end in range(1, path.count("/") + 1)}
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": each, "oid": hashlib.sha1(each.encode()).hexdigest(), "size": 0}
        for each in folders
    ]
    for path, file in files.items():
        entries.append({"type": "file", "path": path, "oid": file.oid, "size": len(file.content)})
        if file.large:
            entries[-1]["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return sorted(entries, key=lambda entry: entry["path"])


@route("GET /api/{kinds}/{repo}/tree/{revision}(/{path})?")
def tree(
    hub: Hub, request: Request, kinds: str, repo: str, revision: str, path: str | None = None
) -> Answer:  # fmt: skip
    asked = parse_qs(urlsplit(request.path).query)
    folder = f"{unquote(path)}/" if path else ""
    files = hub.find(KINDS[kinds], repo).at(unquote(revision)).files
    entries = [each for each in described(files) if each["path"].startswith(folder)]
    if folder and not entries:
        raise Answer.error(404, "EntryNotFound", f"{path} does not exist")
    if asked.get("recursive", ["false"])[0].lower() != "true":
        entries = [each for each in entries if "/" not in each["path"].removeprefix(folder)]
    start = int(asked.get("cursor", ["0"])[0])
    end, headers = start + hub.page_size, {}
    if end < len(entries):
        address = re.sub(r"&cursor=\d+", "", hub.address + request.path)
        headers = {"Link": f'<{address}&cursor={end}>; rel="next"'}
    return Answer(200, entries[start:end], headers)


@route("POST /api/{kinds}/{repo}/paths-info/{revision}")
def paths_info(hub: Hub, request: Request, kinds: str, repo: str, revision: str) -> Answer:
    paths = parse_qs(request.body.decode())["paths"]
    files = hub.find(KINDS[kinds], repo).at(unquote(revision)).files
    return Answer(200, [each for each in described(files) if each["path"] in paths])


@route("POST /api/{kinds}/{repo}/preupload/{revision}")
def preupload(hub: Hub, request: Request, kinds: str, repo: str, revision: str) -> Answer:
    hub.authorise(request, repo.split("/")[0])
    there = hub.find(KINDS[kinds], repo).at(unquote(revision)).files
    modes = []
    for each in json.loads(request.body)["files"]:
        large = each["path"].endswith(LARGE) or each["size"] > LARGE_BYTES
        modes.append({"path": each["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
        if each["path"] in there:
            modes[-1]["oid"] = there[each["path"]].etag
    return Answer(200, {"files": modes})


@route("POST /({kinds}/)?{repo}.git/info/lfs/objects/batch")
def batch(hub: Hub, request: Request, repo: str, kinds: str | None = None) -> Answer:
    hub.authorise(request, repo.split("/")[0])
    hub.find(KINDS[kinds or "models"], repo)
    objects = []
    for each in json.loads(request.body)["objects"]:
        objects.append({"oid": each["oid"], "size": each["size"]})
        if each["oid"] not in hub.blobs:
            upload = {"href": f"{hub.address}/lfs/{each['oid']}?X-Amz-Signature=signed"}
            objects[-1]["actions"] = {"upload": upload, "verify": {"href": f"{hub.address}/lfs-verify"}}
    return Answer(200, {"transfer": "basic", "objects": objects})


@route("PUT /lfs/{oid}")
def put(hub: Hub, request: Request, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Answer.error(400, "BadDigest", "The content is not what its SHA-256 says")
    hub.blobs[oid] = request.body
    return Answer(200)


@route("POST /lfs-verify")
def verify(hub: Hub, request: Request) -> Answer:
    asked = json.loads(request.body)
    if len(hub.blobs.get(asked["oid"], b"")) != asked["size"]:
        raise Answer.error(404, "", "Not uploaded")
    return Answer(200, {})


@route("POST /api/{kinds}/{repo}/commit/{revision}")
def commit(hub: Hub, request: Request, kinds: str, repo: str, revision: str) -> Answer:
    hub.authorise(request, repo.split("/")[0])
    found = hub.find(KINDS[kinds], repo)
    if revision not in found.branches:
        raise Answer.error(404, "RevisionNotFound", f"No branch {revision}")
    head = found.at(revision)
    header, *operations = [json.loads(line) for line in request.body.splitlines()]
    assert header["key"] == "header", header
    if header["value"].get("parentCommit", head.oid) != head.oid:
        raise Answer.error(412, "", "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for operation in operations:
        key, value = operation["key"], operation["value"]
        if key == "file":
            files[value["path"]] = File(base64.b64decode(value["content"], validate=True), large=False)
        elif key == "lfsFile":
            if len(hub.blobs.get(value["oid"], b"")) != value["size"]:
                raise Answer.error(400, "", f"LFS pointer of {value['path']} points to nothing")
            files[value["path"]] = File(hub.blobs[value["oid"]], large=True)
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Answer.error(404, "EntryNotFound", "A file with this name doesn't exist")
        else:
            raise Answer.error(400, "", f"unknown operation {key}")
    made = found.add(header["value"]["summary"], header["value"]["description"], files, revision)
    return Answer(200, {"commitUrl": f"{hub.address}/{repo}/commit/{made.oid}", "commitOid": made.oid, "success": True})


@route("(GET|HEAD) /({kinds}/)?{repo}/resolve/{revision}/{path}")
def resolve(
    hub: Hub, request: Request, repo: str, revision: str, path: str, kinds: str | None = None
) -> Answer:  # fmt: skip
    at = hub.find(KINDS[kinds or "models"], repo).at(unquote(revision))
    file = at.files.get(unquote(path))
    headers = {"X-Repo-Commit": at.oid}
    if file is None:
        missing = Answer.error(404, "EntryNotFound", f"{path} does not exist")
        missing.headers |= headers
        raise missing
    headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if span is None:
        return Answer(200, file.content, headers)
    start, end = int(span[1]), min(int(span[2] or len(file.content)), len(file.content) - 1)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(file.content)}"
    return Answer(206, file.content[start : end + 1], headers)


def respond(hub: Hub, request: Request) -> Answer:
    asked = f"{request.method} {urlsplit(request.path).path}"
    try:
        for pattern, function in ROUTES:
            if found := re.fullmatch(pattern, asked):
                if request.method in ("GET", "HEAD") and not asked.endswith("whoami-v2"):
                    hub.authorise(request)
                return function(hub, request, **found.groupdict())
    except Answer as answer:
        return answer
    return Answer.error(404, "EntryNotFound", f"{asked} is nothing this server knows")
