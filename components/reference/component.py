"""The reference task on Kubeflow: the command line, in a container."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.kubeflow import EXECUTOR_INPUT, MODEL


@dsl.container_component
def reference(
    params: str,
    pairs: Input[Dataset],
    sft: Input[Model],
    reference: Output[Dataset],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Log-probabilities of every pair under the SFT model, once for all objectives."""
    return dsl.ContainerSpec(
        image=MODEL,
        command=["python", "-m", "components.reference"],
        args=[
            f"--params={params}",
            f"--pairs={pairs.path}",
            f"--sft={sft.path}",
            f"--reference={reference.path}",
            f"--metrics={metrics.path}",
            EXECUTOR_INPUT,
        ],
    )
