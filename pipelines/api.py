"""The pipeline on a cluster: versions named by commit, runs followed to their end, runs on a schedule."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from components.contracts import InputError
from components.provenance import git_state
from pipelines.cluster import Cluster

NAME = "polyphony"
_ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
# Where a token comes from, so that it stands in no file and no list of processes.
_TOKEN = "KFP_TOKEN"  # noqa: S105


@contextmanager
def _answers(address: str) -> Iterator[None]:
    """All that a server may do wrong, as one clear message."""
    from kfp_server_api.exceptions import OpenApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except OpenApiException as error:
        told = getattr(error, "body", None) or str(error)
        raise InputError(f"{address}: {told}".strip()) from error
    except (HTTPError, TimeoutError) as error:
        raise InputError(f"{address} does not answer: {error}. Check `host` in the cluster's profile.") from error


class Api:
    """Kubeflow Pipelines' API of a cluster.

    Raises:
        InputError: from every method, if the server does not answer or refuses.
    """

    def __init__(self, cluster: Cluster) -> None:
        from kfp import Client

        self._cluster = cluster
        self._address = cluster.host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
        if not self._address:
            raise InputError("no address of Kubeflow Pipelines: set `host` in the cluster's profile, or KF_PIPELINES_ENDPOINT.")
        with _answers(self._address), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._client = Client(host=self._address, existing_token=os.environ.get(_TOKEN), verify_ssl=True)

    def pipeline_id(self, *, create: bool = False) -> str | None:
        """The id of the pipeline on the server, where it is there or is to be made."""
        exact = {"operation": "EQUALS", "key": "display_name", "stringValue": NAME}
        with _answers(self._address):
            found = self._client.list_pipelines(
                filter=json.dumps({"predicates": [exact]}), namespace=self._cluster.namespace or None
            ).pipelines
            if found:
                return str(found[0].pipeline_id)
            if not create:
                return None
            models = self._client.api_models
            new = models.V2beta1Pipeline(display_name=NAME, namespace=self._cluster.namespace or None)
            return str(self._client.pipelines.pipeline_service_create_pipeline(new).pipeline_id)

    def versions(self) -> list[Any]:
        """The latest versions, the newest first."""
        pipeline = self.pipeline_id()
        if pipeline is None:
            return []
        with _answers(self._address):
            listed = self._client.list_pipeline_versions(pipeline, page_size=50, sort_by="created_at desc")
        return list(listed.pipeline_versions or [])

    def upload(self, package: str, version: str) -> tuple[str, str]:
        """The ids of pipeline and version; a version of that name that is there already is used as it is."""
        pipeline = self.pipeline_id(create=True)
        for found in self.versions():
            if found.display_name == version:
                return str(pipeline), str(found.pipeline_version_id)
        with TemporaryDirectory() as scratch, _answers(self._address):
            path = Path(scratch) / "package.yaml"
            path.write_text(package, encoding="utf-8")
            uploaded = self._client.upload_pipeline_version(str(path), version, pipeline_id=pipeline)
        return str(pipeline), str(uploaded.pipeline_version_id)

    def start(self, pipeline: str, version: str, name: str, inputs: Mapping[str, Any]) -> str:
        """Starts a run; returns its id. Its address in the UI is printed."""
        with _answers(self._address):
            run = self._client.run_pipeline(
                self._experiment(),
                name,
                params=dict(inputs),
                pipeline_id=pipeline,
                version_id=version,
                service_account=self._cluster.service_account or None,
            )
        return str(run.run_id)

    def schedule(self, pipeline: str, version: str, name: str, cron: str, inputs: Mapping[str, Any]) -> str:
        """Starts runs by the clock, one at a time, none made up for; returns the schedule's id."""
        with _answers(self._address):
            made = self._client.create_recurring_run(
                self._experiment(),
                name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                params=dict(inputs),
                pipeline_id=pipeline,
                version_id=version,
                service_account=self._cluster.service_account or None,
            )
        return str(made.recurring_run_id)

    def follow(self, run_id: str, seconds: float) -> bool:
        """Prints a run's state and that of its tasks as they change; returns whether it succeeded.

        Args:
            seconds: time between two looks.
        """
        told: dict[tuple[str | None, str], str] = {}
        while True:
            with _answers(self._address):
                run = self._client.get_run(run_id)
            tasks = (run.run_details.task_details if run.run_details else None) or []
            for task in [*tasks, run]:
                state = str(task.state or "PENDING")
                # A loop has tasks of one name.
                key = (getattr(task, "task_id", None), task.display_name)
                if told.get(key) != state:
                    told[key] = state
                    reason = task.error.message if task.error and task.error.message else ""
                    print(f"{task.display_name}: {state} {reason}".rstrip(), flush=True)
            if run.state in _ENDED:
                return bool(run.state == "SUCCEEDED")
            time.sleep(seconds)

    def _experiment(self) -> str:
        return str(self._client.create_experiment(NAME, namespace=self._cluster.namespace or None).experiment_id)


def version_name(package: str, *, dirty: bool) -> str:
    """The commit and a hash of the package, which also depends on the cluster's profile.

    Args:
        dirty: whether code that differs from its commit may be uploaded; the name then says so.

    Raises:
        InputError: if the code differs from its commit, or has none, and that was not allowed.
    """
    state = git_state()
    if state["dirty"] != "false" and not dirty:
        raise InputError(
            "the code differs from its commit, so no version could be traced back to it. Commit first, or say --dirty."
            if state["dirty"] == "true"
            else "this is no git checkout, so no version could be traced back to its code. Use one, or say --dirty."
        )
    mark = "" if state["dirty"] == "false" else "-dirty"
    return f"{state['commit'][:12]}-{hashlib.sha256(package.encode()).hexdigest()[:6]}{mark}"
