"""A tracking server that can be killed: enough of MLflow's REST interface to count points. Standard library alone.

python tracking_server.py PORT FILE [slow=SECONDS] [drop=N]

Keeps every row it accepts as one line of FILE, never looking whether it has it already, so that a point sent twice
is counted twice. ``slow`` answers late; ``drop`` accepts every Nth batch of metrics and run, and hangs up unanswered.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from time import sleep
from typing import Any
from urllib.parse import parse_qs, urlsplit

PORT, FILE = int(sys.argv[1]), sys.argv[2]
OPTIONS = dict(word.split("=") for word in sys.argv[3:])
LOCK = Lock()
COUNT = [0]


def rows(kind: str) -> list[dict[str, Any]]:
    if not os.path.exists(FILE):
        return []
    with open(FILE) as file:
        found = [json.loads(line) for line in file if line.endswith("\n")]
    return [row for row in found if row["kind"] == kind]


def keep(*new: dict[str, Any]) -> None:
    with open(FILE, "a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in new))  # one write: a kill leaves all of it or nothing


def run_info(run: dict[str, Any]) -> dict[str, Any]:
    info = {"run_id": run["id"], "run_uuid": run["id"], "experiment_id": "1", "status": "RUNNING", "start_time": 0}
    info |= {"artifact_uri": f"mlflow-artifacts:/1/{run['id']}", "lifecycle_stage": "active"}
    return {"info": info, "data": {}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, value: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_call(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        call = address.path.partition("/mlflow/")[2]
        sleep(float(OPTIONS.get("slow", 0)))
        with LOCK:
            if "mlflow-artifacts" in address.path and self.command == "PUT":
                keep({"kind": "file", "path": address.path})
                return self.answer({})
            given = json.loads(body) if body[:1] == b"{" else query
            if call in ("runs/log-batch", "runs/create"):
                self.accept(call, given)
                COUNT[0] += 1
                if COUNT[0] % int(OPTIONS.get("drop", 10**9)) == 0:
                    self.close_connection = True
                    return self.connection.close()
            self.answer(*self.reply(call, given))

    def accept(self, call: str, given: dict[str, Any]) -> None:
        if call == "runs/create":
            keep({"kind": "run", "id": uuid.uuid4().hex, "tags": given.get("tags", [])})
        else:
            points = [{"kind": "point", "run": given["run_id"], **metric} for metric in given.get("metrics", [])]
            params = [{"kind": "param", **param} for param in given.get("params", [])]
            keep(*points, *params, *({"kind": "tag", **tag} for tag in given.get("tags", [])))

    def reply(self, call: str, given: dict[str, Any]) -> tuple[dict[str, Any], int]:
        runs = rows("run")
        if call == "experiments/get-by-name":
            return {"experiment": {"experiment_id": "1", "name": "x", "lifecycle_stage": "active"}}, 200
        if call == "runs/create":
            return {"run": run_info(runs[-1])}, 200
        if call == "runs/get":
            return {"run": run_info(next(run for run in runs if run["id"] == given["run_id"]))}, 200
        if call == "runs/search":
            found = [
                run
                for run in runs
                if any(tag["key"] == "dp.session" and tag["value"] in given["filter"] for tag in run["tags"])
            ]
            return {"runs": [run_info(run) for run in found]}, 200
        if call == "metrics/get-history":
            points = [row for row in rows("point") if row["run"] == given["run_id"]]
            return {"metrics": [row for row in points if row["key"] == given["metric_key"]]}, 200
        if call == "runs/update":
            keep({"kind": "status", "status": given["status"]})
            return {"run_info": {}}, 200
        if call == "runs/log-batch":
            return {}, 200
        return {"error_code": "ENDPOINT_NOT_FOUND", "message": call}, 404

    def log_message(self, format: str, *args: Any) -> None:
        return


for verb in ("GET", "POST", "PUT", "PATCH"):
    setattr(Handler, f"do_{verb}", Handler.handle_call)
ThreadingHTTPServer.allow_reuse_address = True
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
