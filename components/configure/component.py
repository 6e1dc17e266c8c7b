"""The configure task on Kubeflow: the command line, in a container."""

from kfp import dsl
from kfp.dsl import Markdown, Output

from components.kubeflow import EXECUTOR_INPUT, MODEL


@dsl.container_component
def configure(
    ingest_source: str,
    ingest_max_prompts: int,
    models_language: str,
    weight_deviation: str,
    train_sft_epochs: int,
    train_preference_epochs: int,
    train_preference_learning_rate: float,
    evaluate_max_prompts: int,
    evaluate_samples: int,
    register_name: str,
    overrides: str,
    objectives: list,
    registered: str,
    gpus: int,
    embed_shards: int,
    ingest: dsl.OutputPath(str),  # type: ignore[valid-type]
    validate: dsl.OutputPath(str),  # type: ignore[valid-type]
    embed: dsl.OutputPath(str),  # type: ignore[valid-type]
    weight: dsl.OutputPath(str),  # type: ignore[valid-type]
    reward: dsl.OutputPath(str),  # type: ignore[valid-type]
    sft: dsl.OutputPath(str),  # type: ignore[valid-type]
    reference: dsl.OutputPath(str),  # type: ignore[valid-type]
    preference: dsl.OutputPath(str),  # type: ignore[valid-type]
    evaluate: dsl.OutputPath(str),  # type: ignore[valid-type]
    register: dsl.OutputPath(str),  # type: ignore[valid-type]
    source: dsl.OutputPath(str),  # type: ignore[valid-type]
    gpu_limit: dsl.OutputPath(str),  # type: ignore[valid-type]
    compared: dsl.OutputPath(list),  # type: ignore[valid-type]
    shards: dsl.OutputPath(list),  # type: ignore[valid-type]
    configuration: Output[Markdown],
) -> dsl.ContainerSpec:
    """Merges and checks all parameters, looks whether the run has what it needs, gives each task its own parameters."""
    return dsl.ContainerSpec(
        image=MODEL,
        command=["python", "-m", "components.configure"],
        args=[
            f"--set=ingest.source={ingest_source}",
            f"--set=ingest.max_prompts={ingest_max_prompts}",
            f"--set=models.language={models_language}",
            f"--set=weight.deviation={weight_deviation}",
            f"--set=train.sft.epochs={train_sft_epochs}",
            f"--set=train.preference.epochs={train_preference_epochs}",
            f"--set=train.preference.learning_rate={train_preference_learning_rate}",
            f"--set=evaluate.max_prompts={evaluate_max_prompts}",
            f"--set=evaluate.samples={evaluate_samples}",
            f"--set=register.name={register_name}",
            f"--overrides={overrides}",
            f"--ingest={ingest}",
            f"--validate={validate}",
            f"--embed={embed}",
            f"--weight={weight}",
            f"--reward={reward}",
            f"--sft={sft}",
            f"--reference={reference}",
            f"--preference={preference}",
            f"--evaluate={evaluate}",
            f"--register={register}",
            f"--source={source}",
            f"--compare={objectives}",
            f"--candidate={registered}",
            f"--gpus={gpus}",
            f"--embed-shards={embed_shards}",
            f"--gpu-limit={gpu_limit}",
            f"--compared={compared}",
            f"--shards={shards}",
            f"--configuration={configuration.path}",
            EXECUTOR_INPUT,
        ],
    )
