"""The gate task on Kubeflow: the command line, in a container."""

from kfp import dsl
from kfp.dsl import Artifact, Input

from components.kubeflow import LIGHT


@dsl.container_component
def gate(validation: Input[Artifact]) -> dsl.ContainerSpec:
    """Fails where the validation failed: its report is kept, and nothing asks for a GPU."""
    return dsl.ContainerSpec(image=LIGHT, command=["python", "-m", "components.gate"], args=[f"--validation={validation.path}"])
