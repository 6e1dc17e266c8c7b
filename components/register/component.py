"""The register task on Kubeflow: the command line, in a container."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Metrics, Model, Output

from components.kubeflow import EXECUTOR_INPUT, LIGHT


@dsl.container_component
def register(
    params: str,
    objective: str,
    models: Input[list[Model]],
    evaluation: Input[Artifact],
    version: Output[Artifact],
    metrics: Output[Metrics],
    card: Output[Markdown],
) -> dsl.ContainerSpec:
    """A model version with its card and lineage; the gate's verdict decides its alias."""
    del models
    return dsl.ContainerSpec(
        image=LIGHT,
        command=["python", "-m", "components.register"],
        args=[
            f"--params={params}",
            f"--model=@models:{objective}",
            f"--evaluation={evaluation.path}",
            f"--version={version.path}",
            f"--metrics={metrics.path}",
            f"--card={card.path}",
            EXECUTOR_INPUT,
        ],
    )
