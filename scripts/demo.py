"""Play the whole story: a model is found and served, production drifts, an alarm, labels, a retraining, a report.

    python scripts/demo.py --profile demo       (make demo)

Reads   params.yaml
Writes  what these commands write; stops the server at the end, also after Ctrl-C
"""

from flywheel import cli


def main() -> None:
    """Run the commands, then print the story as a table."""
    arguments = cli.parser(__doc__).parse_args()
    params = cli.load_params(arguments)
    from flywheel.commands import demo

    with cli.logged(params, "demo"):
        demo.run(params, ["--profile", params.profile, "--params", arguments.params], cli.overrides(arguments))


if __name__ == "__main__":
    cli.main(main)
