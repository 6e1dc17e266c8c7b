"""Leaves no MLflow run of a pipeline run open, and writes the reason of a failure where people look for it."""

from __future__ import annotations

from components.lineage import tracking_client
from components.provenance import ENGINE_TAG

FAILURE = "failure"


def close(run_id: str, state: str, reason: str) -> list[str]:
    """Ends what containers that were killed left running, and tags every run that did not finish with the reason.

    Args:
        run_id: the engine's run, as its steps were told.
        state: how the engine's run ended, such as `SUCCEEDED` or `FAILED`.
        reason: what the engine says of it.

    Returns:
        The MLflow runs that were tagged.
    """
    client = tracking_client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    of_this_run = f"tags.`{ENGINE_TAG}` = '{run_id}' AND attributes.status != 'FINISHED'"
    runs = client.search_runs(experiments, of_this_run)
    for run in runs:
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED" if state == "SUCCEEDED" else "FAILED")
        client.set_tag(run.info.run_id, FAILURE, (reason or f"its container ended before it; the run: {state}")[:5000])
    return [run.info.run_id for run in runs]
