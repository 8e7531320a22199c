"""Serve the production model with Ray Serve; the server loads a new production model by itself.

    python scripts/serve.py --profile demo                  (make serve PROFILE=demo)
    python scripts/serve.py --profile demo --foreground     (make serve PROFILE=demo FOREGROUND=1)
    RAY_ADDRESS=host:6379 python scripts/serve.py           on a cluster, from one of its nodes

Reads   the section serve of params.yaml; the model in production
Writes  store/<profile>/serve.json while it serves; store/<profile>/logs/serve.log
"""

import sys

from flywheel import cli
from flywheel.machine import ray_address


def main() -> None:
    """Start the server in the background, or run it here with --foreground."""
    parser = cli.parser(__doc__)
    parser.add_argument("--foreground", action="store_true", help="stay, for containers and systemd; SIGTERM drains")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    from flywheel.serving import host, on_cluster

    with cli.logged(params, "serve"):
        address = ray_address.wanted()
        if arguments.foreground and address is None:
            host.run(params)
            return
        if address is None:
            served = host.start(params, [sys.executable, *sys.argv, "--foreground"])
        else:
            served = on_cluster.start(params, address)
        health = served.health() or {}
        cli.log.info(
            f"serve: {health.get('model', served.model)} answers at {served.url} (a page to try it is there too)"
        )
        cli.log.info(f"  curl --data-binary @image.png {served.url}/predict")
        cli.log.info(f"  make stop PROFILE={params.profile} ends it")


if __name__ == "__main__":
    cli.main(main)
