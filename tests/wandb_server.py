"""A W&B server on loopback for the real client: it answers what wandb-core asks of a run, and keeps what it is sent."""

import base64
import gzip
import itertools
import json
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

Fault = Callable[[str], int | None]  # of the path or the GraphQL operation: the HTTP status to answer in its place
ENTITY = {"id": "entity", "name": "me"}
FLAGS = json.dumps({"code_saving_enabled": True})  # as a person may have set it on the settings page


class WandbServer:
    """with WandbServer() as server: the client's environment is server.environment; then server.history(run_id)."""

    def __init__(self) -> None:
        self.fault: Fault = lambda _asked: None
        self.asked: list[str] = []  # paths and GraphQL operations, as they came
        self.unknown: set[str] = set()  # GraphQL operations that got an error for an answer
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}  # id -> what it was made with, the run, and `used_by`
        self.alerts: list[dict[str, Any]] = []
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.uploaded: dict[str, bytes] = {}  # path -> content
        self.stop_button = False
        self.stopped_early: Callable[[str], bool] = lambda _run_id: False  # a trial that its agent shall stop
        self._streams: dict[tuple[str, str], dict[int, str]] = {}  # (run, file) -> line number -> line
        self._ended: dict[str, int] = {}
        self._lock = threading.RLock()
        self._open_connections: set[socket.socket] = set()
        self._http = self._listen(0)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def _listen(self, port: int) -> ThreadingHTTPServer:
        http = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"server_state": self}))
        http.daemon_threads = True
        return http

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def die(self) -> None:
        """Cut every connection, and refuse new ones."""
        self.__exit__()
        for connection in list(self._open_connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Listen again where it did, with all that it had."""
        self._http = self._listen(int(self.url.rpartition(":")[2]))
        self.__enter__()

    def everything(self) -> str:
        """All that it was sent and keeps, as text."""
        with self._lock:
            kept = [self.runs, self.artifacts, self.alerts, self.uploaded, [*self._streams.items()]]
        return repr(kept)

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The logged records of a run, in order."""
        return [json.loads(line) for line in self._lines(run_id, "wandb-history.jsonl")]

    def summary(self, run_id: str) -> dict[str, Any]:
        lines = self._lines(run_id, "wandb-summary.json")
        return dict(json.loads(lines[-1])) if lines else {}

    def config(self, run_id: str) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in self.runs[run_id]["config"].items() if not key.startswith("_")}

    def exit_code(self, run_id: str) -> int | None:
        """None: the run has not ended."""
        return self._ended.get(run_id)

    def _lines(self, run_id: str, name: str) -> list[str]:
        with self._lock:
            lines = self._streams.get((run_id, name), {})
            return [lines[number] for number in sorted(lines)]

    # What the client asks

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """(HTTP status, JSON) for one request."""
        path = path.partition("?")[0]
        request = json.loads(body) if path == "/graphql" else {}
        asked = _operation(request) if request else path
        with self._lock:
            self.asked.append(asked)
        if (status := self.fault(asked)) is not None:
            return status, {"errors": [{"message": f"refused with {status}"}]}
        with self._lock:
            if request:
                return 200, self._graphql(asked, request.get("variables") or {})
            if path.endswith("/file_stream"):
                self._take_stream(path.split("/")[-2], json.loads(body))
                return 200, {"exitcode": None, "limits": {}, "stopped": self.stop_button}
            self.uploaded[path] = body
        return 200, {}

    def _graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "Viewer": _viewer,
            "GetDefaultEntity": _viewer,
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "UpsertBucket": self._upsert,
            "RunResumeStatus": self._resume_status,
            "CreateRunFiles": self._create_files,
            "Run": self._public_run,
            "Runs": self._public_runs,
            "NotifyScriptableRunAlert": self._alert,
            "OrganizationCoreWeaveOrganizationID": lambda _: {
                "entity": {"organization": {"coreWeaveOrganizationId": None}}
            },
            "ArtifactType": lambda _: {"project": {"artifact": None}},
            "CreateArtifact": self._create_artifact,
            "UseArtifact": self._use_artifact,
            "CreateArtifactManifest": self._create_manifest,
            "UpdateArtifactManifest": self._create_manifest,
            "CreateArtifactFiles": self._create_artifact_files,
            "CommitArtifact": self._commit_artifact,
            "UpsertSweep": self._upsert_sweep,
            "SweepWithRuns": self._sweep_with_runs,
            "CreateAgent": self._create_agent,
            "Heartbeat": self._heartbeat,
        }
        if operation not in answers:
            self.unknown.add(operation)
            return {"data": None, "errors": [{"message": f"this server does not answer {operation}"}]}
        return {"data": answers[operation](variables)}

    def _take_stream(self, run_id: str, body: dict[str, Any]) -> None:
        for name, part in (body.get("files") or {}).items():
            lines = self._streams.setdefault((run_id, name), {})
            lines |= {part["offset"] + number: line for number, line in enumerate(part["content"])}
        if body.get("complete"):
            self._ended[run_id] = body["exitcode"]

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["name"]
        inserted = run_id not in self.runs
        run = self.runs.setdefault(run_id, {"config": {}})
        run["config"] |= json.loads(variables.get("config") or "{}")
        run |= {key: value for key, value in variables.items() if key != "config" and value is not None}
        return {"upsertBucket": {"bucket": self._bucket(run_id), "inserted": inserted}}

    def _bucket(self, run_id: str) -> dict[str, Any]:
        run = self.runs[run_id]
        return {
            "id": base64.b64encode(run_id.encode()).decode(),
            "name": run_id,
            "displayName": run.get("displayName", run_id),
            "description": None,
            "config": json.dumps(run["config"]),
            "sweepName": None,
            "historyLineCount": len(self._lines(run_id, "wandb-history.jsonl")),
            "project": {"id": "project", "name": run.get("project"), "entity": ENTITY},
        }

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["name"]
        model = {"id": "project", "name": variables.get("project"), "entity": ENTITY, "bucket": None}
        if run_id in self.runs:
            names = {"history": "wandb-history.jsonl", "events": "wandb-events.jsonl", "log": "output.log"}
            lines = {key: self._lines(run_id, name) for key, name in names.items()}
            model["bucket"] = self._bucket(run_id) | {
                **{f"{key}LineCount": len(found) for key, found in lines.items()},
                "historyTail": json.dumps(lines["history"][-1:]),
                "eventsTail": json.dumps(lines["events"][-1:]),
                "summaryMetrics": json.dumps(self.summary(run_id)),
                "tags": self.runs[run_id].get("tags", []),
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {"model": model}

    def _create_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{run_id}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": files}}

    # The public API, alerts, artifacts

    def _public_run(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["name"]
        return {"project": {"run": self._public(run_id) if run_id in self.runs else None}}

    def _public_runs(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Those of a project whose ids are asked for, a page at a time."""
        asked = json.loads(variables["filters"])["name"]["$in"]
        there = [run_id for run_id, run in self.runs.items() if run.get("project") == variables["project"]]
        if not there:
            return {"project": None}
        found = [run_id for run_id in there if run_id in asked]
        begin = int(variables.get("cursor") or 0)
        end = begin + variables["perPage"]
        edges = [{"node": self._public(run_id), "cursor": str(end)} for run_id in found[begin:end]]
        page = {"endCursor": str(end), "hasNextPage": end < len(found)}
        runs = {"edges": edges, "pageInfo": page}
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}}

    def _public(self, run_id: str) -> dict[str, Any]:
        return self._bucket(run_id) | {
            "projectId": "1",
            "tags": self.runs[run_id].get("tags", []),
            "state": {None: "running", 0: "finished"}.get(self.exit_code(run_id), "failed"),
            "summaryMetrics": json.dumps(self.summary(run_id)),
            "systemMetrics": "{}",
            "historyKeys": {"lastStep": len(self._lines(run_id, "wandb-history.jsonl")) - 1, "keys": {}},
            "user": {"name": "me", "username": "me"},
        }

    def _alert(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append(variables)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _create_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        made = variables.get("input", variables)
        for artifact_id, there in self.artifacts.items():  # the same content is the same version
            if (there["artifactCollectionName"], there["digest"]) == (made["artifactCollectionName"], made["digest"]):
                return {"createArtifact": {"artifact": self._artifact(artifact_id)}}
        artifact_id = f"artifact{len(self.artifacts)}"
        self.artifacts[artifact_id] = {**made, "state": "PENDING", "used_by": [], "files": []}
        return {"createArtifact": {"artifact": self._artifact(artifact_id)}}

    def _artifact(self, artifact_id: str) -> dict[str, Any]:
        state = self.artifacts[artifact_id]["state"]
        return {"id": artifact_id, "state": state, "artifactSequence": {"latestArtifact": None}}

    def _use_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        used = variables.get("input", variables)
        self.artifacts[used["artifactID"]]["used_by"].append(used["runName"])
        return {"useArtifact": {"artifact": {"id": used["artifactID"]}}}

    def _create_manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact_id = variables.get("artifactID") or variables.get("artifactManifestID")
        manifest = {
            "id": artifact_id,
            "file": {
                "id": "file",
                "name": "manifest",
                "displayName": "manifest",
                "uploadUrl": f"{self.url}/manifest/{artifact_id}",
                "uploadHeaders": [],
            },
        }
        return {
            "createArtifactManifest": {"artifactManifest": manifest},
            "updateArtifactManifest": {"artifactManifest": manifest},
        }

    def _create_artifact_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        asked = variables["input"]["artifactFiles"]
        nodes = []
        for file in asked:
            self.artifacts[file["artifactID"]]["files"].append(file["name"])
            nodes.append(
                {
                    "id": f"file-{file['name']}",
                    "name": file["name"],
                    "displayName": file["name"],
                    "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{file['name']}",
                    "uploadHeaders": [],
                    "artifact": {"id": file["artifactID"]},
                    "storagePath": file["name"],
                    "uploadMultipartUrls": None,
                }
            )
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _commit_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact_id = variables["artifactID"]
        self.artifacts[artifact_id]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact_id, "digest": self.artifacts[artifact_id]["digest"]}}}

    # Sweeps: the grid alone

    def _upsert_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        name, config = f"sweep{len(self.sweeps)}", yaml.safe_load(variables["config"])
        values = [each.get("values", [each.get("value")]) for each in config["parameters"].values()]
        points = [dict(zip(config["parameters"], point, strict=True)) for point in itertools.product(*values)]
        self.sweeps[name] = {"config": config, "waiting": points, "yaml": variables["config"], "trials": {}}
        project = {"id": "project", "name": variables["projectName"], "entity": ENTITY}
        return {"upsertSweep": {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}}

    def _sweep_with_runs(self, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[variables["sweep"]]
        nothing = ("description", "heartbeatAt", "updatedAt", "bestLoss", "controller", "scheduler")
        found = {
            "id": variables["sweep"],
            "name": variables["sweep"],
            "method": sweep["config"]["method"],
            "state": "RUNNING" if sweep["waiting"] else "FINISHED",
            "config": sweep["yaml"],
            "createdAt": "2026-01-01T00:00:00",
            "earlyStopJobRunning": False,
            "runs": {"edges": []},
        }
        return {"project": {"sweep": found | dict.fromkeys(nothing)}}

    def _create_agent(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": variables["sweep"]}}}

    def _heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["id"]
        sweep = self.sweeps[name]
        running = json.loads(variables.get("runState") or "{}")
        commands = [{"type": "stop", "run_id": run_id} for run_id in running if self.stopped_early(run_id)]
        if not running:
            commands = [{"type": "exit"}]
            if sweep["waiting"]:
                point, run_id = sweep["waiting"].pop(0), f"{name}run{len(sweep['trials'])}"
                sweep["trials"][run_id] = point
                arguments = {key: {"value": value} for key, value in point.items()}
                program = sweep["config"].get("program")
                commands = [{"type": "run", "run_id": run_id, "program": program, "args": arguments}]
        return {"agentHeartbeat": {"agent": {"id": name}, "commands": json.dumps(commands)}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: WandbServer

    def _serve(self) -> None:
        status, answer = self.server_state.answer(self.path, self._body())
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def handle(self) -> None:
        self.server_state._open_connections.add(self.connection)
        with suppress(ConnectionError):  # of a client that was killed
            super().handle()
        self.server_state._open_connections.discard(self.connection)

    def log_message(self, *_: Any) -> None:
        """Say nothing on the terminal."""


def _operation(request: dict[str, Any]) -> str:
    named = request.get("operationName")
    found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
    return named or (found[1] if found else "?")


def _viewer(_: dict[str, Any]) -> dict[str, Any]:
    return {
        "viewer": ENTITY
        | {"entity": "me", "username": "me", "email": "me@example.com", "flags": FLAGS, "teams": {"edges": []}}
    }
