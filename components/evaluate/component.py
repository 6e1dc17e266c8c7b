"""The evaluate task on Kubeflow: the command line, in a container."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.kubeflow import EXECUTOR_INPUT, MODEL


@dsl.container_component
def evaluate(
    params: str,
    objectives: list,
    responses: Input[Dataset],
    reward: Input[Model],
    sft: Input[Model],
    models: Input[list[Model]],
    generations: Output[Dataset],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    comparison: Output[HTML],
) -> dsl.ContainerSpec:
    """Stories from every trained system for the test prompts, their quality and their diversity."""
    del models
    return dsl.ContainerSpec(
        image=MODEL,
        command=["python", "-m", "components.evaluate"],
        args=[
            f"--params={params}",
            f"--responses={responses.path}",
            f"--reward={reward.path}",
            f"--system=sft={sft.path}",
            f"--system=@models:{objectives}",
            f"--generations={generations.path}",
            f"--evaluation={evaluation.path}",
            f"--metrics={metrics.path}",
            f"--comparison={comparison.path}",
            EXECUTOR_INPUT,
        ],
    )
