"""A double of the W&B service on loopback: what wandb 0.31 needs for our operations, and faults on demand.

There is no GraphQL parser: a request is answered by its operation's name with more fields than were requested, which
both clients (Go and pydantic) accept. State is in memory. Quotas, permissions and races between servers are missing:
tests against it show how the real SDK behaves, not the service.

    with WandbDouble() as wandb:
        environment.update(wandb.environment)
        wandb.fail("CommitArtifact", 500)
"""

# ruff: noqa: N802, N815, S324  (the operations have the service's names, the digests are its own)
from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.server
import json
import re
import socket
import threading
import traceback
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

ENTITY = "tester"
FEATURES = (
    "CLIENT_IDS", "ARTIFACT_TAGS", "LARGE_FILENAMES", "MARK_RUN_FILES_UPLOADED", "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP", "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION", "ARTIFACT_REGISTRY_SEARCH",
)  # fmt: skip
NOW = "2026-01-01T00:00:00Z"
Json = dict[str, Any]


class Refused(Exception):
    """The service answers with a GraphQL error."""


def ident(text: str) -> str:
    """Return an id as the service makes them: base64."""
    return base64.b64encode(text.encode()).decode()


def md5(data: bytes) -> str:
    """Return a digest as W&B writes those of files."""
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def edges(nodes: list[Json], **more: Any) -> Json:
    """Return nodes as a page of a connection."""
    page = {"endCursor": None, "hasNextPage": False}
    return {"totalCount": len(nodes), "pageInfo": page, "edges": [{"node": node, **more} for node in nodes]}


ORGANIZATION = {"name": "org", "orgEntity": {"name": ENTITY}}
ANSWERS: dict[str, Json] = {  # of operations that always get the same
    "Viewer": {
        "viewer": {
            "id": ident("User:1"), "entity": ENTITY, "username": ENTITY, "email": "t@example.invalid", "flags": "{}",
            "name": ENTITY, "admin": False, "teams": edges([{"name": ENTITY}]), "apiKeys": edges([]),
        }
    },
    "ServerFeaturesQuery": {"serverInfo": {"features": [{"name": name, "isEnabled": True} for name in FEATURES]}},
    "OrganizationCoreWeaveOrganizationID": {"entity": {"organization": {"coreWeaveOrganizationId": None}}},
    "FetchOrgInfoFromEntity": {"entity": {"organization": ORGANIZATION, "user": {"organizations": [ORGANIZATION]}}},
    "MarkRunFilesUploaded": {"markRunFilesUploaded": {"success": True}},
}  # fmt: skip


@dataclass(eq=False)
class Project:
    """A project: runs by id, collections of artifacts by name."""

    name: str
    number: int
    runs: dict[str, Run] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)

    def node(self) -> Json:
        return {
            "__typename": "Project", "id": ident(f"Project:{self.number}"), "internalId": str(self.number),
            "name": self.name, "entityName": ENTITY, "createdAt": NOW, "readOnly": False,
            "entity": {"id": ident("Entity:1"), "name": ENTITY},
        }  # fmt: skip


@dataclass(eq=False)
class Run:
    """A run: what was logged, what it used and made, how it ended."""

    project: Project
    name: str
    fields: Json = field(default_factory=dict)
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    history: list[Json] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    used: list[Artifact] = field(default_factory=list)
    logged: list[Artifact] = field(default_factory=list)
    state: str = "running"
    exit_code: int | None = None

    def node(self) -> Json:
        given = self.fields
        return {
            "__typename": "Run", "id": ident(f"Run:{self.project.name}:{self.name}"), "name": self.name,
            "displayName": given.get("displayName") or self.name, "description": given.get("notes"), "sweepName": None,
            "notes": given.get("notes"), "tags": [], "group": given.get("groupName"), "jobType": given.get("jobType"),
            "config": json.dumps(self.config), "summaryMetrics": json.dumps(self.summary), "state": self.state,
            "historyLineCount": len(self.history), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in self.history[-1:]]), "eventsTail": "[]",
            "historyKeys": {"lastStep": max((row["_step"] for row in self.history), default=-1), "keys": {}},
            "wandbConfig": json.dumps({"t": 1}), "createdAt": NOW, "heartbeatAt": NOW, "commit": None,
            "systemMetrics": "{}", "readOnly": False, "user": {"name": ENTITY, "username": ENTITY}, "sweep": None,
            "projectId": str(self.project.number), "project": self.project.node(), "stopped": False,
            "fileCount": len(self.files), "history": [json.dumps(row) for row in self.history],
        }  # fmt: skip


@dataclass(eq=False)
class Collection:
    """Versions of a name, or (`portfolio`) links to versions of others; `aliases` map names to indices."""

    project: Project
    name: str
    type: str
    portfolio: bool = False
    members: list[Artifact] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)

    def node(self) -> Json:
        kind = {"name": self.type}
        return {
            "__typename": "ArtifactPortfolio" if self.portfolio else "ArtifactSequence", "name": self.name,
            "id": ident(f"Collection:{self.project.name}/{self.name}"), "project": self.project.node(), "type": kind,
            "defaultArtifactType": kind, "description": None, "createdAt": NOW, "updatedAt": NOW, "tags": edges([]),
            "latestArtifact": {"id": self.members[-1].id} if self.members else None,
            "aliases": edges([self.alias(name) for name in self.aliases]),
        }  # fmt: skip

    def alias(self, name: str) -> Json:
        where = {"__typename": "ArtifactSequence", "name": self.name, "project": self.project.node()}
        return {
            "__typename": "ArtifactAlias", "id": ident(f"{self.name}:{name}"), "alias": name,
            "artifactCollection": where,
        }  # fmt: skip

    def index_of(self, alias: str) -> int | None:
        if re.fullmatch(r"v\d+", alias):
            return int(alias[1:]) if int(alias[1:]) < len(self.members) else None
        return self.aliases.get(alias)

    def add(self, artifact: Artifact) -> int:
        if artifact not in self.members:
            self.members.append(artifact)
            self.aliases["latest"] = len(self.members) - 1
        return self.members.index(artifact)

    def membership(self, index: int) -> Json:
        named = [self.alias(name) for name, at in self.aliases.items() if at == index]
        return {
            "__typename": "ArtifactCollectionMembership", "id": ident(f"{self.name}:{index}"), "versionIndex": index,
            "createdAt": NOW, "aliases": named, "artifactCollection": self.node(),
            "artifact": self.members[index].node(),
        }  # fmt: skip


@dataclass(eq=False)
class Artifact:
    """A version; `contents` is its manifest once it is committed."""

    collection: Collection
    given: Json
    number: int
    state: str = "PENDING"
    contents: dict[str, Json] = field(default_factory=dict)
    maker: Run | None = None

    @property
    def id(self) -> str:
        return ident(f"Artifact:{self.number}")

    @property
    def digest(self) -> str:
        return str(self.given["digest"])

    def node(self) -> Json:
        home = self.collection
        index = home.members.index(self) if self in home.members else None
        return {
            "__typename": "Artifact", "id": self.id, "state": self.state, "digest": self.digest,
            "digestAlgorithm": "MANIFEST_MD5", "artifactSequence": home.node(), "versionIndex": index,
            "artifactType": {"name": home.type}, "description": self.given.get("description"),
            "metadata": self.given.get("metadata"), "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [],
            "historyStep": None, "size": sum(entry.get("size", 0) for entry in self.contents.values()),
            "commitHash": f"{self.number:020d}", "fileCount": len(self.contents), "createdAt": NOW, "updatedAt": NOW,
            "aliases": [home.alias(name) for name, at in home.aliases.items() if at == index],
        }  # fmt: skip


class WandbDouble:
    """The service. `operations` counts requests; `fail`, `vanish` and `meanwhile` inject faults."""

    def __init__(self) -> None:
        self.projects: dict[str, Project] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.blobs: dict[str, bytes] = {}
        self.operations: Counter[str] = Counter()
        self.errors: list[str] = []  # of the double itself: tests assert that there are none
        self.bodies: list[bytes] = []  # of all requests
        self._faults: list[tuple[re.Pattern[str], int | str, list[int]]] = []
        self._hooks: list[tuple[re.Pattern[str], Callable[[], object]]] = []
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._httpd: http.server.ThreadingHTTPServer | None = None
        self._port = 0
        self.listen()

    # -- life cycle and faults - ------------------------------------------------------------------------

    def __enter__(self) -> WandbDouble:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.vanish()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "local-" + "0" * 40}

    def listen(self) -> None:
        """Answer, again on the same port after `vanish`."""
        self._httpd = Server(("127.0.0.1", self._port), handler(self))
        self._port = self._httpd.server_address[1]
        threading.Thread(target=self._httpd.serve_forever, args=(0.05,), daemon=True).start()

    def vanish(self) -> None:
        """Refuse connections and cut the open ones."""
        if self._httpd is not None:
            self._httpd.shutdown()
            self._httpd.server_close()
            self._httpd = None
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def fail(self, pattern: str, how: int | str, times: int = 10**9) -> None:
        """Answer requests whose name matches with a status (int), or: hang, drop, lose (an upload), corrupt (a file).

        Names: a GraphQL operation, `file_stream`, `PUT blob`, `GET blob`, `PUT manifest`, `PUT file`. `lose` makes
        CommitArtifact look away too.
        """
        self._faults.append((re.compile(pattern), how, [times]))

    def mend(self) -> None:
        """End all faults."""
        self._faults.clear()

    def meanwhile(self, pattern: str, action: Callable[[], object]) -> None:
        """Call an action once, before the first request whose name matches is answered."""
        self._hooks.append((re.compile(pattern), action))

    def fault(self, name: str) -> int | str | None:
        """Return the fault to inject into a request, after running the hooks that wait for it."""
        for hook in [hook for hook in self._hooks if hook[0].fullmatch(name)]:
            self._hooks.remove(hook)
            hook[1]()
        for pattern, how, left in self._faults:
            if left[0] > 0 and pattern.fullmatch(name):
                left[0] -= 1
                if how == "hang":
                    self._over.wait()
                return how
        return None

    # -- for assertions -------------------------------------------------------------------------------

    def texts(self) -> Iterator[str]:
        """Yield the requests that are text: weights and pictures may contain a short name by chance."""
        for body in list(self.bodies):
            with contextlib.suppress(UnicodeDecodeError):
                yield body.decode()

    def mentions(self, host: str) -> list[str]:
        """Return the context of each mention of a host, as a word or in an address: base64 may contain it by chance."""
        found = re.compile(rf"(?:(?<![\w+/])|(?<=//)){re.escape(host)}(?![\w+/=])")
        return [text[max(0, at.start() - 300) :][:600] for text in self.texts() for at in found.finditer(text)]

    def runs(self, project: str) -> list[Run]:
        return list(self.projects[project].runs.values()) if project in self.projects else []

    def run_of(self, project: str, job_type: str) -> Run:
        (found,) = [run for run in self.runs(project) if run.fields.get("jobType") == job_type]
        return found

    def collection(self, project: str, name: str) -> Collection:
        return self.projects[project].collections[name]

    def aliases(self, project: str, name: str) -> dict[str, str]:
        """Return alias -> digest."""
        home = self.collection(project, name)
        return {alias: home.members[index].digest for alias, index in home.aliases.items()}

    # -- GraphQL ---------------------------------------------------------------------------------------

    def answer(self, operation: str, given: Json) -> Json:
        self.operations[operation] += 1
        if operation in ANSWERS:
            return ANSWERS[operation]
        function = getattr(self, f"op_{operation}", None)
        if function is None:
            self.errors.append(f"unknown operation {operation}")
            raise Refused(f"the double does not know {operation}")
        return dict(function(given))

    def project(self, name: str | None, create: bool = False) -> Project | None:
        key = name or "uncategorized"
        if key not in self.projects and (create or key.startswith("wandb-registry-")):
            self.projects[key] = Project(key, len(self.projects) + 1)
        return self.projects.get(key)

    def find(self, project: Project | None, reference: str) -> tuple[Collection, int] | None:
        name, _, alias = reference.partition(":")
        home = project.collections.get(name) if project else None
        index = home.index_of(alias or "latest") if home else None
        return None if home is None or index is None else (home, index)

    def run(self, given: Json) -> Run | None:
        project = self.project(given.get("project") or given.get("projectName"))
        name = given.get("name") or given.get("run") or given.get("runName") or given.get("runId")
        return project.runs.get(str(name)) if project else None

    def address(self, key: str) -> str:
        return f"{self.url}/store/{urllib.parse.quote(key, safe='')}"

    def op_UpsertBucket(self, given: Json) -> Json:
        if given.get("name"):
            project = self.project(given.get("project"), create=True)
            assert project is not None
            fresh = given["name"] not in project.runs
            run = project.runs.setdefault(given["name"], Run(project, given["name"]))
        else:  # an update, by id
            fresh = False
            run = next(r for p in self.projects.values() for r in p.runs.values() if r.node()["id"] == given["id"])
        run.fields.update({key: value for key, value in given.items() if value is not None})
        run.config = json.loads(given["config"]) if given.get("config") else run.config
        run.summary = json.loads(given["summaryMetrics"]) if given.get("summaryMetrics") else run.summary
        return {"upsertBucket": {"bucket": run.node(), "inserted": fresh}}

    def op_RunResumeStatus(self, given: Json) -> Json:
        project, run = self.project(given.get("project")), self.run(given)
        return {"model": {**project.node(), "bucket": run.node() if run else None} if project else None}

    def op_Run(self, given: Json) -> Json:
        project, run = self.project(given.get("project")), self.run(given)
        return {"project": {**project.node(), "run": run.node() if run else None} if project else None}

    op_RunFullHistory = op_Run

    def op_CreateRunFiles(self, given: Json) -> Json:
        run = self.run(given)
        assert run is not None
        for name in given["files"]:
            run.files[name] = f"file/{run.name}/{name}"
        urls = [{"name": name, "uploadUrl": self.address(run.files[name])} for name in given["files"]]
        return {"createRunFiles": {"runID": run.node()["id"], "uploadHeaders": [], "files": urls}}

    def op_RunFiles(self, given: Json) -> Json:
        project, run = self.project(given.get("project")), self.run(given)
        if project is None or run is None:
            return {"project": None}
        wanted = given.get("fileNames") or list(run.files)
        nodes = [
            {
                "id": ident(key), "name": name, "url": self.address(key), "directUrl": self.address(key),
                "mimetype": "", "sizeBytes": len(self.blobs[key]), "updatedAt": NOW, "md5": md5(self.blobs[key]),
            }
            for name, key in run.files.items() if name in wanted and key in self.blobs
        ]  # fmt: skip
        return {"project": {**project.node(), "run": {**run.node(), "fileCount": len(nodes), "files": edges(nodes)}}}

    def op_ArtifactType(self, given: Json) -> Json:
        found = self.find(self.project(given["project"]), given["name"])
        return {"project": {"artifact": {"artifactType": {"name": found[0].type}} if found else None}}

    def op_CreateArtifact(self, given: Json) -> Json:
        given = given["input"]
        project, name = self.project(given["projectName"], create=True), given["artifactCollectionName"]
        assert project is not None
        home = project.collections.setdefault(name, Collection(project, name, given["artifactTypeName"]))
        if home.type != given["artifactTypeName"]:
            raise Refused(f"{name} is of type {home.type}")
        artifact = next((one for one in home.members if one.digest == given["digest"]), None)
        run = project.runs.get(given.get("runName") or "")
        if artifact is None:
            artifact = Artifact(home, given, len(self.artifacts) + 1, maker=run)
            self.artifacts[artifact.id] = artifact
        else:  # the same content: the same version, and the aliases move
            self.name_it(artifact, given)
        if run and artifact not in run.logged:
            run.logged.append(artifact)
        return {"createArtifact": {"artifact": artifact.node()}}

    def name_it(self, artifact: Artifact, given: Json) -> None:
        for alias in given.get("aliases") or []:
            artifact.collection.aliases[alias["alias"]] = artifact.collection.members.index(artifact)

    def op_CreateArtifactManifest(self, given: Json) -> Json:
        key = f"manifest/{given['artifactID']}"
        upload = {"id": key, "uploadUrl": self.address(key), "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": key, "file": upload}}}

    def op_CreateArtifactFiles(self, given: Json) -> Json:
        nodes = []
        for file in given["input"]["artifactFiles"]:
            key = f"blob/{file['artifactID']}/{file['md5']}"
            nodes.append(
                {
                    "id": ident(key), "name": file["name"], "storagePath": key, "uploadUrl": self.address(key),
                    "uploadHeaders": [f"Content-MD5:{file['md5']}"], "uploadMultipartUrls": None,
                    "artifact": {"id": file["artifactID"]},
                }
            )  # fmt: skip
        return {"createArtifactFiles": {"files": edges(nodes)}}

    def op_CommitArtifact(self, given: Json) -> Json:
        artifact = self.artifacts[given["artifactID"]]
        manifest = self.blobs.get(f"manifest/{artifact.id}")
        if manifest is None:
            raise Refused("there is no manifest")
        contents = json.loads(manifest)["contents"]
        lines = "".join(f"{path}:{entry['digest']}\n" for path, entry in sorted(contents.items()))
        digest = hashlib.md5(f"wandb-artifact-manifest-v1\n{lines}".encode()).hexdigest()
        missing = [path for path, entry in contents.items() if self.key(entry) not in self.blobs]
        looks_away = any(how == "lose" for _, how, _ in self._faults)
        if digest != artifact.digest or (missing and not looks_away):
            raise Refused(f"cannot commit: {missing} missing, digest {digest} of {artifact.digest}")
        artifact.contents, artifact.state = contents, "COMMITTED"
        artifact.collection.add(artifact)
        self.name_it(artifact, artifact.given)
        return {"commitArtifact": {"artifact": artifact.node()}}

    def key(self, entry: Json) -> str:
        return f"blob/{entry['birthArtifactID']}/{entry['digest']}"

    def op_ArtifactByID(self, given: Json) -> Json:
        artifact = self.artifacts.get(given["id"])
        return {"artifact": artifact.node() if artifact else None}

    def op_DeleteArtifact(self, given: Json) -> Json:
        artifact = self.artifacts.pop(given["input"]["artifactID"])
        home = artifact.collection
        index = home.members.index(artifact)
        named = [alias for alias, at in home.aliases.items() if at == index]
        if named and not given["input"]["deleteAliases"]:
            raise Refused(f"it has the aliases {named}")
        home.members.remove(artifact)
        home.aliases = {alias: at - (at > index) for alias, at in home.aliases.items() if at != index}
        return {"result": {"artifact": {"id": artifact.id}}}

    def op_ArtifactMembershipByName(self, given: Json) -> Json:
        project = self.project(given["project"])
        found = self.find(project, given["name"])
        member = found[0].membership(found[1]) if found else None
        return {"project": {**project.node(), "artifactCollectionMembership": member} if project else None}

    def op_FetchArtifactManifest(self, given: Json) -> Json:
        where = {"directUrl": self.address(f"manifest/{given['id']}")}
        return {"artifact": {"currentManifest": {"__typename": "ArtifactManifest", "id": given["id"], "file": where}}}

    def op_ArtifactMembershipFiles(self, given: Json) -> Json:
        project = self.project(given["project"])
        found = self.find(project, f"{given['collection']}:{given['alias']}")
        if project is None or found is None:
            return {"project": None}
        contents = found[0].members[found[1]].contents
        files = [
            {
                "__typename": "File", "id": ident(path), "name": path, "storagePath": path,
                "displayName": path, "mimetype": "", "updatedAt": NOW, "digest": entry["digest"],
                "directUrl": self.address(self.key(entry)),
                "url": self.address(self.key(entry)), "sizeBytes": entry["size"], "md5": entry["digest"],
            }
            for path, entry in contents.items()
        ]  # fmt: skip
        member = {"files": edges(files)}
        return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": member}}}

    def op_ProjectArtifacts(self, given: Json) -> Json:
        project = self.project(given["project"])
        home = project.collections.get(given["collection"]) if project else None
        if home is None:
            return {"project": {"artifactType": {"artifactCollection": None}} if project else None}
        nodes = [artifact.node() for artifact in reversed(home.members)]
        page = edges(nodes)
        for index, edge in zip(range(len(nodes) - 1, -1, -1), page["edges"], strict=True):
            edge["version"] = f"v{index}"
        return {"project": {"artifactType": {"artifactCollection": {**home.node(), "artifacts": page}}}}

    def op_UseArtifact(self, given: Json) -> Json:
        run, artifact = self.run(given), self.artifacts[given["artifactID"]]
        if run is None:
            raise Refused("no such run")
        if artifact not in run.used:
            run.used.append(artifact)
        return {"useArtifact": {"artifact": artifact.node()}}

    def op_LinkArtifact(self, given: Json) -> Json:
        given = given["input"]
        project, name = self.project(given["projectName"], create=True), given["artifactPortfolioName"]
        artifact = self.artifacts.get(given.get("artifactID") or "")
        if artifact is None or artifact.state != "COMMITTED":
            raise Refused("the artifact is not committed")
        assert project is not None
        home = project.collections.setdefault(name, Collection(project, name, artifact.collection.type, True))
        index = home.add(artifact)
        home.aliases.update({alias["alias"]: index for alias in given.get("aliases") or []})
        return {"result": {"versionIndex": index, "artifactMembership": home.membership(index)}}

    def op_RunInputArtifacts(self, given: Json) -> Json:
        run = self.run(given)
        return {"project": {"run": {"artifacts": edges([one.node() for one in run.used])} if run else None}}

    def op_RunOutputArtifacts(self, given: Json) -> Json:
        run = self.run(given)
        made = [one.node() for one in run.logged if one.state == "COMMITTED"] if run else []
        return {"project": {"run": {"artifacts": edges(made)} if run else None}}

    # -- the stream of a run's history ------------------------------------------------------------------

    def stream(self, project: str, run: str, body: Json) -> Json:
        found = self.run({"project": project, "name": run})
        if found is None:
            raise Refused("no such run")
        for name, chunk in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":  # a chunk says at which line it begins, so that repeating it adds nothing
                found.history[chunk["offset"] :] = [json.loads(line) for line in chunk["content"]]
            elif name == "wandb-summary.json":
                found.summary = json.loads(chunk["content"][-1])
        if body.get("complete"):
            found.exit_code = body.get("exitcode")
            found.state = "finished" if found.exit_code == 0 else "failed"
        return {"exitcode": None, "limits": {}, "stopped": False}


class Server(http.server.ThreadingHTTPServer):
    """A server whose clients may disconnect at any time."""

    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore: failures of the double itself are in its `errors`."""


def handler(double: WandbDouble) -> type[http.server.BaseHTTPRequestHandler]:
    """Return the class that answers the requests of one double."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            double._open.add(self.connection)

        def finish(self) -> None:
            double._open.discard(self.connection)
            with contextlib.suppress(OSError):
                super().finish()

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def do_POST(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            double.bodies.append(path.encode() + b" " + body)
            if path == "/graphql":
                asked = json.loads(body)
                found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
                name = asked.get("operationName") or (found.group(1) if found else "?")
                self.respond(name, lambda: {"data": double.answer(name, asked.get("variables") or {})})
            elif match := re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", path):
                self.respond("file_stream", lambda: double.stream(*match.groups(), json.loads(body)))
            elif path.startswith("/store/"):
                self.respond(f"PUT {path.split('/')[2]}", lambda: self.keep(path[len("/store/") :], body))
            else:
                self.send(404, b"{}")

        do_PUT = do_POST

        def do_GET(self) -> None:
            key = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)[len("/store/") :]
            fault = double.fault(f"GET {key.split('/')[0]}")
            if isinstance(fault, int):
                return self.send(fault, b"{}")
            if fault == "drop":
                return self.connection.shutdown(socket.SHUT_RDWR)
            data = double.blobs.get(key)
            if data is None:
                return self.send(404, b"{}")
            if fault == "corrupt":
                data = bytes([data[0] ^ 1]) + data[1:]
            if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range") or ""):
                first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
                return self.send(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})
            return self.send(200, data)

        def keep(self, key: str, body: bytes) -> Json:
            wanted = self.headers.get("content-md5")
            if wanted and wanted != md5(body):
                raise Refused("the content is not what its digest says")
            double.blobs[key] = body
            return {}

        def respond(self, name: str, action: Callable[[], Json]) -> None:
            fault = double.fault(name)
            if isinstance(fault, int):
                return self.send(fault, b'{"errors": [{"message": "injected"}]}')
            if fault == "drop":
                return self.connection.shutdown(socket.SHUT_RDWR)
            if fault == "lose":
                return self.send(200, b"{}")
            try:
                with double._lock:
                    answer = action()
            except Refused as error:
                status = 400 if name.startswith("PUT") else 200
                return self.send(status, json.dumps({"data": None, "errors": [{"message": str(error)}]}).encode())
            except Exception:
                double.errors.append(traceback.format_exc())
                return self.send(400, b'{"errors": [{"message": "the double broke"}]}')
            return self.send(200, json.dumps(answer).encode())

        def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            with contextlib.suppress(OSError):
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

    return Handler
