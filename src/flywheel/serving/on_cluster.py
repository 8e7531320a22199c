"""Serve on a running Ray cluster: RAY_ADDRESS=host:port make serve, on one of its nodes."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from flywheel.machine import ray_address
from flywheel.params import Params
from flywheel.pipeline import server_record
from flywheel.pipeline.server_record import Served
from flywheel.serving import ServingError, application, settings

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 30


def start(params: Params, address: str) -> Served:
    """Deploy the application to the cluster and return when it answers. Raises ServingError, RayError.

    The store must be a directory that all nodes share: the replicas read the alias `production` there.
    """
    model = settings.production(params)
    before, digest = server_record.read(params), settings.digest(params)
    if before is not None and before.address == address and before.settings == digest and before.answers():
        log.info(f"serve: nothing changed since {before.started}")
        return before
    with ray_address.connect(address):
        try:
            application.deploy(params)
        except (ServingError, KeyboardInterrupt):
            if before is None:  # else Serve goes on to replace the replicas that answer
                application.delete(params)
            raise
    now = datetime.now(UTC).isoformat(timespec="seconds")
    served = Served(settings.url(params), None, now, model.label, digest, address=address)
    server_record.write(params, served)  # so that `make stop` finds the application, also if it does not answer
    until = time.monotonic() + ANSWER_TIMEOUT_S
    while not served.answers():
        if time.monotonic() > until:
            raise ServingError(
                f"deployed, but {served.url} does not answer from here: Serve on {address} listens elsewhere; "
                "set serve.host and serve.port as it does"
            )
        time.sleep(0.2)
    return served


def stop(params: Params, served: Served) -> None:
    """Delete the application from its cluster. Raises RayError."""
    assert served.address is not None
    try:
        with ray_address.connect(served.address):
            application.delete(params)
    except ray_address.RayError as error:
        raise ray_address.RayError(f"{error}; if that cluster is gone, remove {params.store_paths.server}") from None
    server_record.remove(params)
