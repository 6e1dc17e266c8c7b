"""The embed tasks on Kubeflow: the command lines, in containers."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components.kubeflow import EXECUTOR_INPUT, LIGHT, MODEL


@dsl.container_component
def embed(
    params: str,
    shard: str,
    of: int,
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
            f"--shard={shard}",
            f"--of={of}",
            f"--responses={responses.path}",
            f"--validation={validation.path}",
            f"--embeddings={embeddings.path}",
            f"--metrics={metrics.path}",
            EXECUTOR_INPUT,
        ],
    )


@dsl.container_component
def gather(responses: Input[Dataset], parts: Input[list[Dataset]], embeddings: Output[Dataset]) -> dsl.ContainerSpec:
    """Puts the shards together."""
    del parts
    return dsl.ContainerSpec(
        image=LIGHT,
        command=["python", "-m", "components.embed.gather"],
        args=[
            f"--responses={responses.path}",
            "--part=@parts",
            f"--embeddings={embeddings.path}",
            EXECUTOR_INPUT,
        ],
    )
