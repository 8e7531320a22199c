"""Stop the server of this profile, also after a crash, and nothing else.

    python scripts/stop.py --profile demo       (make stop PROFILE=demo)

Reads   store/<profile>/serve.json
Writes  removes it
"""

from flywheel import command


def main() -> None:
    """Stop what `make serve` started."""
    arguments = command.parser(__doc__).parse_args()
    params = command.load_params(arguments)
    from flywheel.serving import host, record, remote

    with command.logged(params, "serve") as say:
        served = record.read(params)
        if served is not None and served.address is not None:
            remote.stop(params, served)
            say(f"stop: the application was deleted from the cluster at {served.address}")
        else:
            say("stop: stopped" if host.stop(params) else "stop: nothing was running")


if __name__ == "__main__":
    command.main(main)
