"""Serve the production model over HTTP with Ray Serve, and load a new one when the alias `production` moves.

Its modules:

    host.py         start and stop a server on this machine, and keep its parts running
    haproxy.py      the HAProxy in front of the replicas
    backend.py      a process with a Ray of its own and the replicas in it
    health.py       /healthz, and /metrics of all replicas together
    on_cluster.py   the same on a running Ray cluster
    application.py  deploy the application to Ray, delete it
    deployment.py   the Ray Serve deployment: replicas, resources, logs
    app.py          the HTTP interface of a replica
    batching.py     batches of queued requests
    replica.py      the model of a replica, and its replacement
    prometheus.py   metrics
    settings.py     address, digest and model of a server
"""

from flywheel import FlywheelError


class ServingError(FlywheelError):
    """The server cannot start or cannot answer; the message says why and what to do."""
