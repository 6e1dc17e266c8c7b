"""The train task on Kubeflow: the command line, in a container."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.kubeflow import EXECUTOR_INPUT, MODEL


@dsl.container_component
def train_reward(
    params: str,
    responses: Input[Dataset],
    validation: Input[Artifact],
    model: Output[Model],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """A reward model from the votes."""
    return dsl.ContainerSpec(
        image=MODEL,
        command=["python", "-m", "components.train"],
        args=[
            f"--params={params}",
            "--objective=reward",
            f"--responses={responses.path}",
            f"--validation={validation.path}",
            f"--model={model.path}",
            f"--metrics={metrics.path}",
            EXECUTOR_INPUT,
        ],
    )


@dsl.container_component
def train_sft(
    params: str,
    responses: Input[Dataset],
    validation: Input[Artifact],
    model: Output[Model],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Supervised fine-tuning on the training responses; the reference of all that follows."""
    return dsl.ContainerSpec(
        image=MODEL,
        command=["python", "-m", "components.train"],
        args=[
            f"--params={params}",
            "--objective=sft",
            f"--responses={responses.path}",
            f"--validation={validation.path}",
            f"--model={model.path}",
            f"--metrics={metrics.path}",
            EXECUTOR_INPUT,
        ],
    )


@dsl.container_component
def train_preference(
    params: str,
    objective: str,
    gpu_limit: str,
    pairs: Input[Dataset],
    deviations: Input[Dataset],
    validation: Input[Artifact],
    reference: Input[Dataset],
    sft: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Preference training; `dpo` and `ddpo` differ in the weights alone.

    `gpu_limit` is here for the task's limit, not for the step: kfp takes into a loop only what its tasks take as inputs.
    """
    del gpu_limit
    return dsl.ContainerSpec(
        image=MODEL,
        command=["python", "-m", "components.train"],
        args=[
            f"--params={params}",
            f"--objective={objective}",
            f"--pairs={pairs.path}",
            f"--deviations={deviations.path}",
            f"--validation={validation.path}",
            f"--reference={reference.path}",
            f"--sft={sft.path}",
            f"--model={model.path}",
            f"--metrics={metrics.path}",
            EXECUTOR_INPUT,
        ],
    )
