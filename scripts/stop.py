"""Stop the server of this profile, or what is left of it after a crash.

    python scripts/stop.py --profile demo       (make stop PROFILE=demo)

Reads   store/<profile>/serve.json
Writes  nothing; removes that file
"""

from flywheel import cli


def main() -> None:
    """Stop what `make serve` started."""
    arguments = cli.parser(__doc__).parse_args()
    params = cli.load_params(arguments)
    from flywheel.pipeline import server_record
    from flywheel.serving import host, on_cluster

    with cli.logged(params, "serve", needs_torch=False):
        served = server_record.read(params)
        if served is not None and served.address is not None:
            on_cluster.stop(params, served)
            cli.log.info(f"stop: the application was deleted from the cluster at {served.address}")
        else:
            cli.log.info("stop: stopped" if host.stop(params) else "stop: nothing was running")


if __name__ == "__main__":
    cli.main(main)
