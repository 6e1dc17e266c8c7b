"""Metrics of a run as they happen: sent from the background, kept while MLflow is out of reach, delivered later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger("polyphony")
# What one call of MLflow takes at most.
_BATCH = 1000
# Seconds between attempts: the first pause, doubled up to the last.
_PAUSES = (1.0, 60.0)


class Live:
    """Sends metrics to one run, in order, without keeping whoever adds them waiting."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._waiting: list[Metric] = []
        self._condition = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None

    def add(self, values: Mapping[str, float], step: int, when: float) -> None:
        """Has `values` sent as of step `step` and of the time `when`, in seconds since 1970."""
        from mlflow.entities import Metric

        with self._condition:
            self._waiting += [Metric(name, float(value), int(when * 1000), step) for name, value in values.items()]
            if self._thread is None:
                # A daemon: it never holds up the end of the process.
                self._thread = threading.Thread(target=self._send, name="live metrics", daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def close(self, seconds: float | None = None) -> int:
        """Delivers what still waits, with one last attempt where MLflow is out of reach; returns how many are left.

        Args:
            seconds: how long to wait for that at most; None for as long as it takes.
        """
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
        return len(self._waiting)

    def _send(self) -> None:
        pause = _PAUSES[0]
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._closing)
                batch, last = self._waiting[:_BATCH], self._closing
            if not batch:
                return
            try:
                self._client.log_batch(self._run_id, metrics=batch)
            except Exception as error:
                known, self.error = self.error, error
                if known is None:
                    log.warning("MLflow takes no metrics now (%s); work goes on, they are kept and sent later", short(error))
                if last:
                    return
                with self._condition:
                    self._condition.wait_for(lambda: self._closing, pause)
                pause = min(2 * pause, _PAUSES[1])
            else:
                with self._condition:
                    del self._waiting[: len(batch)]
                if self.error is not None:
                    log.info("MLflow takes metrics again")
                self.error, pause = None, _PAUSES[0]


def short(error: Exception) -> str:
    """The first line: databases add statements and values."""
    return (str(error).splitlines() or [type(error).__name__])[0]
