"""The embed task on Kubeflow: the command line, in a container."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components.kubeflow import EXECUTOR_INPUT, MODEL


@dsl.container_component
def embed(
    params: str,
    responses: Input[Dataset],
    validation: Input[Artifact],
    embeddings: Output[Dataset],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """What each story is about, and how it is written."""
    return dsl.ContainerSpec(
        image=MODEL,
        command=["python", "-m", "components.embed"],
        args=[
            f"--params={params}",
            f"--responses={responses.path}",
            f"--validation={validation.path}",
            f"--embeddings={embeddings.path}",
            f"--metrics={metrics.path}",
            EXECUTOR_INPUT,
        ],
    )
