"""Deploy the application to the connected Ray, and delete it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from flywheel.params import Params
from flywheel.serving import ServingError

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

POLL_S = 0.2
NO_REASON = "Serve gives no reason; make logs and, on a cluster, ray status may"


def name(params: Params) -> str:
    """Return the application's name in Serve."""
    return f"flywheel-{params.profile}"


def deploy(params: Params, backend: str | None = None, ready: Callable[[], bool] | None = None) -> None:
    """Deploy and wait until Serve, or `ready`, says that all replicas are ready.

    Raises ServingError at a failure or after serve.start_timeout_s. Serve's own proxy listens on serve.host:serve.port,
    unless replicas listen themselves and tell the `backend`.
    """
    import ray
    from ray import serve

    from flywheel.serving.deployment import bind

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it tells of its own settings on stderr

    settings = params.serve
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = min(1.0, resources.get("GPU", 0.0)) if settings.gpus_per_replica == "auto" else settings.gpus_per_replica
    for kind, each in (("CPU", settings.cpus_per_replica), ("GPU", gpus)):
        if each * settings.min_replicas > resources.get(kind, 0.0):
            raise ServingError(
                f"serve: {settings.min_replicas} replicas with {each:g} {kind} each, but there are "
                f"{resources.get(kind, 0.0):g}; lower serve.{kind.lower()}s_per_replica or serve.min_replicas"
            )
    serve.start(
        proxy_location="Disabled" if backend else None,
        http_options={"host": settings.host, "port": settings.port},
        logging_config={"enable_access_log": False},
    )
    target = serve.RunTarget(bind(params, gpus, backend), name=name(params), route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    until = time.monotonic() + settings.start_timeout_s
    while not ready or not ready():
        status = serve.status().applications.get(name(params))
        if status is not None and status.status == "RUNNING":
            break
        if status is not None and status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ServingError(f"the server did not start: {_reason(status)}")
        if time.monotonic() > until:
            reason = _reason(status) if status else NO_REASON
            raise ServingError(f"not ready within serve.start_timeout_s={settings.start_timeout_s:g} s: {reason}")
        time.sleep(POLL_S)


def delete(params: Params) -> None:
    """Delete the application; its replicas finish their requests first."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.delete(name(params))


def _reason(status: ApplicationStatusOverview) -> str:
    """Return the last error line of Serve's messages, which may be tracebacks."""
    texts = [status.message, *(deployment.message for deployment in status.deployments.values())]
    lines = [line.strip() for text in texts if text for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or [NO_REASON])[-1][:300]
