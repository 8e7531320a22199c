"""The Ray Serve deployment: its replicas, their resources and their logs."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler, WatchedFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve

from flywheel.params import Params
from flywheel.traffic import keys

if TYPE_CHECKING:
    from flywheel.serving.app import App

ACCESS_LOG_BYTES, ACCESS_LOGS = 10_000_000, 5
SPARE_REQUESTS = 64  # beyond the queue: health checks, the page, and requests that get 503
HEALTH_CHECK_S = 2  # Serve replaces a replica that ended as soon as it notices; the default is 10


@serve.deployment
@serve.ingress()
class Predictor:
    """A replica: load the production model, then answer requests and follow production."""

    async def __init__(  # type: ignore[misc]
        self, params: Params, threads: int, cuda: bool, token: str, backend: str | None
    ) -> None:
        # Only replicas need torch; the process that deploys them imports this module, too.
        from flywheel.serving.app import App
        from flywheel.serving.listener import Listener
        from flywheel.serving.replica import Replica

        settings = params.serve
        name = serve.get_replica_context().replica_id.unique_id
        _set_up_logs(params.store_paths.logs, name, settings.access_log)
        replica = Replica(params.store, params.registered_model, threads, cuda, settings.max_batch_size)
        replica.follow(settings.poll_s)
        self._app = App(params, name, replica, token)
        self._listener = await Listener.start(self._app, backend) if backend else None

    def __serve_build_asgi_app__(self) -> App:
        """Return the application for requests that come through Serve's proxy."""
        return self._app

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what Serve scales by, if it does not see the requests itself."""
        return {"running_requests": self._app.in_flight} if self._listener else {}

    async def __del__(self) -> None:
        """Answer what is in flight, and write what is queued. Serve calls this when a replica ends."""
        if self._listener:
            await self._listener.close()
        self._app.close()


def bind(params: Params, gpus: float, backend: str | None) -> Any:
    """Return the application that Serve deploys; each replica gets `gpus` GPUs, and listens if it has a `backend`."""
    settings = params.serve
    ongoing = settings.max_queued_images + settings.max_batch_size + SPARE_REQUESTS
    threads = max(1, int(settings.cpus_per_replica))
    scaling = {
        "min_replicas": settings.min_replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.max_batch_size,
    }
    autoscale = settings.max_replicas > settings.min_replicas
    return Predictor.options(  # type: ignore[attr-defined]
        name="predictor",
        max_ongoing_requests=ongoing,
        graceful_shutdown_timeout_s=30,
        health_check_period_s=HEALTH_CHECK_S,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": gpus},
        **({"autoscaling_config": scaling} if autoscale else {"num_replicas": settings.min_replicas}),
    ).bind(params, threads, gpus > 0, keys.token(params.store_paths), backend)


def _set_up_logs(folder: Path, replica: str, access: bool) -> None:
    """Write the replica's messages to serve.log and, if `access`, its requests to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    messages = WatchedFileHandler(folder / "serve.log", encoding="utf-8")
    messages.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {replica}: %(message)s", "%Y-%m-%d %H:%M:%S"))
    handlers: dict[str, logging.Handler] = {"flywheel.serving": messages}
    if access:
        path = folder / f"access-{replica}.jsonl"
        handlers["flywheel.access"] = RotatingFileHandler(path, maxBytes=ACCESS_LOG_BYTES, backupCount=ACCESS_LOGS)
    for name, handler in handlers.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logging.getLogger("flywheel.access").disabled = not access
