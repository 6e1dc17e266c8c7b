"""An MLflow server on PostgreSQL for a team that has none, from installed packages: no containers, no root.

    with platform.start(Path("platform")) as running:
        MlflowClient(running.uri)

Everything listens on 127.0.0.1. Runs and models lie in PostgreSQL, artifacts in the folder or in S3; clients see neither:
the server hands artifacts out itself.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.platform.services import Platform, start, status, stop

__all__ = ["Platform", "start", "status", "stop"]


def __getattr__(name: str) -> Any:
    """Loads what is asked for when it is: the command line lists its commands without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.platform import services

    return getattr(services, name)
