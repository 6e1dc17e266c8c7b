"""A cluster's profile: all that differs between clusters, and nothing about the method."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from components.params import ParameterError, Section

PROFILES = Path(__file__).parent / "clusters"
# Names of variables whose values do not belong in a package that everybody may read.
SECRET = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|(ACCESS|API|PRIVATE)_?KEY", re.IGNORECASE)


class Images(Section):
    """Where the two images are, in a release by digest: `registry/name@sha256:...`."""

    light: str = Field("polyphony-light", min_length=1, description="for tasks that load no model")
    model: str = Field("polyphony-model", min_length=1, description="for tasks that load one")


class Resources(Section):
    """What a task is given, requested and limited alike, and how long it may take."""

    cpu: str = Field("2", pattern=r"^\d+(\.\d+)?m?$", description="cores")
    memory: str = Field("8G", pattern=r"^\d+[KMGT]i?$", description="main memory")
    hours: float = Field(4, gt=0, description="time after which an attempt is stopped")


class Toleration(Section):
    """As in Kubernetes."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = None


class Accelerated(Resources):
    """What training, reference, embedding and evaluation are given."""

    gpu: str = Field("", description="resource name of the GPU, such as nvidia.com/gpu; empty runs on CPU")
    gpus: int = Field(
        1, ge=1, description="GPUs of SFT and preference training unless the form says others; other tasks take one"
    )
    nodes: int = Field(
        1,
        ge=1,
        description="nodes of SFT and preference training; more than one make it a Kubeflow Trainer job, each with `gpus`",
    )
    runtime: str = Field("torch-distributed", min_length=1, description="training runtime of that job")
    shared_memory: str = Field("2Gi", pattern=r"^\d+[KMGT]i?$", description="size of /dev/shm, which counts as memory")
    node_selector: dict[str, str] = Field({}, description="labels that the node must have")
    tolerations: tuple[Toleration, ...] = Field((), description="taints of the node that are no hindrance")


class Secret(Section):
    """A Kubernetes secret, whose keys become environment variables."""

    name: str = Field(min_length=1)
    variables: dict[str, str] = Field(min_length=1, description="key in the secret -> environment variable")
    optional: bool = Field(False, description="whether tasks also start where the secret is missing")


class Volumes(Section):
    """Existing claims; empty means a task's own disk."""

    checkpoints: str = Field(
        "", description="claim that keeps checkpoints, so that a retried training goes on; with `nodes`, all of them mount it"
    )
    hub_cache: str = Field("", description="claim that keeps models of the hub")


class Retries(Section):
    """How often a task is tried again; all tasks may be, since none leaves half-written outputs."""

    attempts: int = Field(2, ge=0, description="tries after the first")
    first_wait: str = Field("60s", pattern=r"^\d+[smh]$", description="doubled each time")
    longest_wait: str = Field("1h", pattern=r"^\d+[smh]$")


class Cluster(Section):
    """A cluster on which the pipeline runs."""

    host: str = Field("", description="address of the Kubeflow Pipelines API; a token for it is read from KFP_TOKEN")
    namespace: str = Field("", description="namespace of the runs, where the cluster keeps them apart")
    service_account: str = Field("", description="service account of the runs; empty for the cluster's own")
    images: Images = Images()
    ordinary: Resources = Resources()
    accelerated: Accelerated = Accelerated(cpu="4", memory="16G", hours=24)
    environment: dict[str, str] = Field({}, description="variables of every task, such as MLFLOW_TRACKING_URI; no secrets")
    secrets: tuple[Secret, ...] = Field((), description="secrets of every task")
    volumes: Volumes = Volumes()
    retries: Retries = Retries()
    parallel: int = Field(0, ge=0, description="objectives trained, and shards embedded, at a time; 0 is all")
    run_days: float = Field(3, gt=0, description="time after which a run is stopped")
    kept_days: float = Field(7, gt=0, description="time after which a finished run's pods are removed; its record stays")

    @model_validator(mode="after")
    def _nodes_share_a_volume(self) -> Self:
        if self.accelerated.nodes > 1 and not self.volumes.checkpoints:
            raise ValueError("accelerated.nodes: more than one need volumes.checkpoints, a claim that many nodes can mount")
        return self

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        if found := [name for name in value if SECRET.search(name)]:
            raise ValueError(f"{', '.join(found)}: secrets do not belong here; name a Kubernetes secret under `secrets`")
        return value


def load_cluster(name: str) -> Cluster:
    """A profile by the path of its file, or by name from `pipelines/clusters`.

    Raises:
        ParameterError: if there is no such profile, or naming all mistakes in it.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    try:
        return Cluster.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        known = ", ".join(sorted(found.stem for found in PROFILES.glob("*.yaml")))
        raise ParameterError(f"{path}: no such cluster profile. Give a file, or one of: {known}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f"{path}: not readable as YAML: {error}") from None
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()]
        raise ParameterError("\n  ".join([f"{path}: {len(mistakes)} mistake(s):", *mistakes])) from None
