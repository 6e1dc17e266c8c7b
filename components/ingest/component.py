"""The ingest task on Kubeflow: the command line, in a container."""

from kfp import dsl
from kfp.dsl import Dataset, Metrics, Output

from components.kubeflow import EXECUTOR_INPUT, MODEL


@dsl.container_component
def ingest(
    params: str,
    source: str,
    responses: Output[Dataset],
    rejects: Output[Dataset],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Reads the source, cleans it, splits it by prompt.

    `source` says what the source is now. Nothing reads it: it keeps the cache from serving what the source was before.
    """
    del source
    return dsl.ContainerSpec(
        image=MODEL,
        command=["python", "-m", "components.ingest"],
        args=[
            f"--params={params}",
            f"--responses={responses.path}",
            f"--rejects={rejects.path}",
            f"--metrics={metrics.path}",
            EXECUTOR_INPUT,
        ],
    )
