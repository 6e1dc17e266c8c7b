"""The weight task on Kubeflow: the command line, in a container."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components.kubeflow import EXECUTOR_INPUT, LIGHT


@dsl.container_component
def weight(
    params: str,
    responses: Input[Dataset],
    embeddings: Input[Dataset],
    deviations: Output[Dataset],
    pairs: Output[Dataset],
    report: Output[Artifact],
    metrics: Output[Metrics],
    weights_page: Output[HTML],
) -> dsl.ContainerSpec:
    """Deviation of each response from its prompt's others, and the preference pairs."""
    return dsl.ContainerSpec(
        image=LIGHT,
        command=["python", "-m", "components.weight"],
        args=[
            f"--params={params}",
            f"--responses={responses.path}",
            f"--embeddings={embeddings.path}",
            f"--deviations={deviations.path}",
            f"--pairs={pairs.path}",
            f"--report={report.path}",
            f"--metrics={metrics.path}",
            f"--weights-page={weights_page.path}",
            EXECUTOR_INPUT,
        ],
    )
