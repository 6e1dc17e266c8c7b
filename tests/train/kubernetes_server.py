"""A Kubernetes API on loopback with a Trainer: pods are processes here, told of each other as the torch runtime tells them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.json_server import Handler, serving

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
RUNTIME = "torch-distributed"
SINCE = "2026-01-02T03:04:05Z"


class Job:
    """A TrainJob and its pods."""

    def __init__(self, manifest: dict[str, Any], command: list[str] | None) -> None:
        trainer = manifest["spec"]["trainer"]
        self.manifest = manifest
        self.deleted = False
        self._logs = Path(tempfile.mkdtemp())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [sys.executable if word == "python" else word for word in command or trainer["command"]]
        given = {variable["name"]: variable["value"] for variable in trainer.get("env", [])}
        given |= {"PET_NNODES": str(trainer["numNodes"]), "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
        self.pods = []
        for node in range(trainer["numNodes"]):
            with (self._logs / str(node)).open("w") as file:
                env = os.environ | given | {"PET_NODE_RANK": str(node), "PET_NPROC_PER_NODE": "auto"}
                self.pods.append(
                    subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
                )

    def said(self, node: int) -> str:
        return (self._logs / str(node)).read_text(encoding="utf-8")

    def phase(self, node: int) -> str:
        return {None: "Running", 0: "Succeeded"}.get(self.pods[node].poll(), "Failed")

    def status(self) -> dict[str, Any]:
        phases = [self.phase(node) for node in range(len(self.pods))]
        if "Failed" in phases:
            # As JobSet does: a job that failed takes the others with it.
            self.stop()
            ended = "Failed"
        elif set(phases) == {"Succeeded"}:
            ended = "Complete"
        else:
            return {}
        condition = {"type": ended, "status": "True", "reason": "x", "message": "x", "lastTransitionTime": SINCE}
        return {"conditions": [condition]}

    def stop(self) -> None:
        for pod in self.pods:
            if pod.poll() is None:
                pod.send_signal(signal.SIGTERM)


class Kubernetes(ThreadingHTTPServer):
    """What jobs there are and were; `command` stands in for theirs, and `refusal` answers whoever makes one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: dict[str, Job] = {}
        self.made: list[Job] = []
        self.command: list[str] | None = None
        self.refusal = ""

    def configuration(self, folder: Path) -> Path:
        """A kubeconfig for it."""
        name = [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team"}}]
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": name,
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{"name": "me", "user": {}}],
        }
        path = folder / "kubeconfig"
        path.write_text(json.dumps(document), encoding="utf-8")
        return path


class _Handler(Handler):
    server: Kubernetes

    def do_GET(self) -> None:  # noqa: N802
        parts = urlsplit(self.path)
        path, asked = parts.path, parse_qs(parts.query)
        jobs = self.server.jobs
        if path == f"{TRAINER}/clustertrainingruntimes/{RUNTIME}":
            self.answer(_runtime())
        elif (found := re.fullmatch(rf"{TRAINER}/namespaces/team/trainjobs/([\w-]+)", path)) and found[1] in jobs:
            job = jobs[found[1]]
            self.answer(job.manifest | {"status": job.status()})
            if job.deleted and all(pod.poll() is not None for pod in job.pods):
                del jobs[found[1]]
        elif path == "/api/v1/namespaces/team/pods":
            name = asked["labelSelector"][0].partition("jobset-name=")[2].partition(",")[0]
            self.answer({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": _pods(name, jobs.get(name))})
        elif found := re.fullmatch(r"/api/v1/namespaces/team/pods/([\w-]+)-node-(\d+)/log", path):
            self.tell(jobs[found[1]], int(found[2]), follow="follow" in asked)
        else:
            self.answer({"kind": "Status", "message": f"no such path: {path}", "code": 404}, 404)

    def do_POST(self) -> None:  # noqa: N802
        manifest = json.loads(self.body())
        if self.server.refusal:
            self.answer({"kind": "Status", "message": self.server.refusal, "code": 403}, 403)
            return
        manifest["metadata"] |= {"namespace": "team", "creationTimestamp": SINCE, "uid": "x"}
        job = Job(manifest, self.server.command)
        self.server.jobs[manifest["metadata"]["name"]] = job
        self.server.made.append(job)
        self.answer(manifest, 201)

    def do_DELETE(self) -> None:  # noqa: N802
        name = urlsplit(self.path).path.rpartition("/")[2]
        job = self.server.jobs.get(name)
        if job is None:
            self.answer({"kind": "Status", "message": "not found", "code": 404}, 404)
            return
        job.deleted = True
        job.stop()
        self.answer({"kind": "Status", "status": "Success"})

    def tell(self, job: Job, node: int, *, follow: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        told = 0
        while True:
            job.status()
            ended = job.pods[node].poll() is not None
            text = job.said(node)
            self.wfile.write(text[told:].encode())
            self.wfile.flush()
            told = len(text)
            if ended or not follow:
                return
            threading.Event().wait(0.05)


def _runtime() -> dict[str, Any]:
    labels = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = {"spec": {"containers": [{"name": "node", "image": "torch"}], "restartPolicy": "Never"}}
    node = {"name": "node", "replicas": 1, "template": {"metadata": {"labels": labels}, "spec": {"template": pod}}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": RUNTIME, "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": {"replicatedJobs": [node]}}},
    }


def _pods(name: str, job: Job | None) -> list[dict[str, Any]]:
    labels = {"jobset.sigs.k8s.io/jobset-name": name, "jobset.sigs.k8s.io/replicatedjob-name": "node"}
    return [
        {
            "metadata": {
                "name": f"{name}-node-{node}",
                "creationTimestamp": SINCE,
                "labels": labels | {"batch.kubernetes.io/job-completion-index": str(node)},
            },
            "spec": {"containers": [{"name": "node", "image": "x"}]},
            "status": {"phase": job.phase(node)},
        }
        for node in (range(len(job.pods)) if job else ())
    ]


@contextmanager
def serve() -> Iterator[Kubernetes]:
    server = Kubernetes()
    with serving(server):
        try:
            yield server
        finally:
            for job in server.made:
                for pod in job.pods:
                    pod.kill()
                    pod.wait()
