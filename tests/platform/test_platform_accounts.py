"""Accounts of the platform: who may do what, seen from outside with the credentials of each."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines import platform
from pipelines.platform import accounts

pytestmark = pytest.mark.slow
NAME = "guarded"
Act = Callable[[str], MlflowClient]


@pytest.fixture(scope="module")
def guarded(reachable: Path) -> Iterator[platform.Platform]:
    with platform.start(reachable / "guarded", with_accounts=True, workers=1) as running:
        yield running


@pytest.fixture
def act_as(guarded: platform.Platform, monkeypatch: pytest.MonkeyPatch) -> Act:
    def client(name: str) -> MlflowClient:
        for variable, value in accounts.environment(guarded.folder, name).items():
            monkeypatch.setenv(variable, value)
        return MlflowClient(guarded.uri)

    return client


def refused(call: Callable[[], object], status: int = 403) -> None:
    with pytest.raises(MlflowException) as error:
        call()
    assert error.value.get_http_status_code() == status, error.value


def test_strangers_get_nothing(guarded: platform.Platform) -> None:
    with pytest.raises(MlflowException, match="401"):
        MlflowClient(guarded.uri).search_experiments()


def test_a_trainer_registers_and_a_promoter_promotes(act_as: Act) -> None:
    trainer = act_as("trainer")
    experiment = trainer.get_experiment_by_name("polyphony")
    assert experiment is not None
    run = trainer.create_run(experiment.experiment_id)
    trainer.log_text(run.info.run_id, "weights", "model/adapter.txt")
    trainer.create_registered_model(NAME)
    for content in ("x", "y", "x", "x"):
        trainer.create_model_version(NAME, f"{run.info.artifact_uri}/model", run.info.run_id, tags={"content": content})
    trainer.set_registered_model_alias(NAME, "candidate", "2")
    assert [version.version for version in trainer.search_model_versions(f"name = '{NAME}'")] == ["4", "3", "2", "1"]

    promoter = act_as("promoter")
    promoter.set_registered_model_alias(NAME, "champion", "1")
    promoter.set_registered_model_alias(NAME, "used", "4")
    promoter.set_model_version_tag(NAME, "1", "reason", "better")

    trainer = act_as("trainer")
    refused(lambda: trainer.set_registered_model_alias(NAME, "champion", "2"))
    refused(lambda: trainer.delete_registered_model_alias(NAME, "champion"))
    # Whoever made a model may manage it, says MLflow; that does not make a trainer a promoter.
    refused(lambda: trainer.set_model_version_tag(NAME, "1", "content", "y"))
    refused(lambda: trainer.delete_model_version_tag(NAME, "1", "content"))
    refused(lambda: trainer.update_model_version(NAME, "1", "a better one"))
    refused(lambda: trainer.transition_model_version_stage(NAME, "1", "Archived"))
    refused(lambda: trainer.set_registered_model_tag(NAME, "history", "none"))
    refused(lambda: trainer.rename_registered_model(NAME, "other"))
    for version in ("1", "2", "4", "5", "no"):
        refused(lambda version=version: trainer.delete_model_version(NAME, version))
    trainer.delete_model_version(NAME, "3")
    refused(lambda: trainer.delete_registered_model(NAME))
    # A move in the history of an alias is made good by whoever comes next, so no trainer may write one.
    refused(lambda: trainer.create_registered_model(f"{NAME}@champion"))
    act_as("promoter").create_registered_model(f"{NAME}@champion")
    refused(lambda: act_as("trainer").create_model_version(f"{NAME}@champion", f"models:/{NAME}/1"))
    act_as("promoter").create_model_version(f"{NAME}@champion", f"models:/{NAME}/1")
    trainer = act_as("trainer")
    refused(lambda: trainer.delete_run(run.info.run_id))
    assert trainer.get_model_version_by_alias(NAME, "champion").version == "1"
    assert trainer.get_model_version_by_alias(NAME, "candidate").version == "2"


@pytest.mark.parametrize("body", [b"", b"[]", b'"candidate"', b'{"alias": ["candidate"]}', b'{"alias": "champion"}'])
def test_an_odd_request_moves_no_alias(guarded: platform.Platform, body: bytes) -> None:
    account = accounts.environment(guarded.folder, "trainer")
    for prefix in ("api", "ajax-api"):
        answer = requests.post(
            f"{guarded.uri}/{prefix}/2.0/mlflow/registered-models/alias",
            data=body,
            headers={"Content-Type": "application/json"},
            auth=(account["MLFLOW_TRACKING_USERNAME"], account["MLFLOW_TRACKING_PASSWORD"]),
            timeout=60,
        )
        assert answer.status_code == 403


def test_passwords_lie_in_private_files_and_nowhere_else(guarded: platform.Platform) -> None:
    secrets = guarded.folder / "secrets"
    passwords = {
        value
        for name in ("admin", "trainer", "promoter")
        for key, value in accounts.environment(guarded.folder, name).items()
        if key == "MLFLOW_TRACKING_PASSWORD"
    }
    passwords.add(guarded.password_file.read_text(encoding="utf-8").strip().rpartition(":")[2])
    assert len(passwords) == 4
    for file in secrets.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    told = [repr(guarded), *(file.read_text(errors="replace") for file in (guarded.folder / "run").iterdir())]
    assert not [password for password in passwords for text in told if re.search(re.escape(password), text)]
