"""The closing task on Kubeflow: the command line, in a container."""

from kfp import dsl

from components.kubeflow import LIGHT


@dsl.container_component
def closing(status: dsl.PipelineTaskFinalStatus) -> dsl.ContainerSpec:
    """Runs last, however the run went: ends what is open in MLflow and notes the reason of a failure there."""
    return dsl.ContainerSpec(image=LIGHT, command=["python", "-m", "components.closing"], args=[f"--status={status}"])
