"""The validate task on Kubeflow: the command line, in a container."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components.kubeflow import EXECUTOR_INPUT, LIGHT


@dsl.container_component
def validate(
    params: str,
    responses: Input[Dataset],
    validation: Output[Artifact],
    metrics: Output[Metrics],
    data_docs: Output[HTML],
) -> dsl.ContainerSpec:
    """Great Expectations on the responses; bad data is a result, and the gate fails the run."""
    return dsl.ContainerSpec(
        image=LIGHT,
        command=["python", "-m", "components.validate"],
        args=[
            f"--params={params}",
            "--suite=responses",
            f"--responses={responses.path}",
            f"--validation={validation.path}",
            f"--metrics={metrics.path}",
            f"--data-docs={data_docs.path}",
            EXECUTOR_INPUT,
        ],
    )


@dsl.container_component
def validate_weights(
    params: str,
    responses: Input[Dataset],
    deviations: Input[Dataset],
    pairs: Input[Dataset],
    validation: Output[Artifact],
    metrics: Output[Metrics],
    data_docs: Output[HTML],
) -> dsl.ContainerSpec:
    """Great Expectations on deviations and pairs."""
    return dsl.ContainerSpec(
        image=LIGHT,
        command=["python", "-m", "components.validate"],
        args=[
            f"--params={params}",
            "--suite=weights",
            f"--responses={responses.path}",
            f"--deviations={deviations.path}",
            f"--pairs={pairs.path}",
            f"--validation={validation.path}",
            f"--metrics={metrics.path}",
            f"--data-docs={data_docs.path}",
            EXECUTOR_INPUT,
        ],
    )
