"""Run the whole loop once: data, sweep, evaluate, serve, simulate, retrain, simulate, stop, report.

    python scripts/demo.py --profile demo       (make demo)

Reads   params.yaml
Writes  what these commands write; stops the server at the end, also after Ctrl-C
"""

import sys

from flywheel import cli


def main() -> None:
    """Run the commands and print the accuracy before and after."""
    arguments = cli.parser(__doc__).parse_args()
    params = cli.load_params(arguments)
    from flywheel.commands import demo

    with cli.logged(params, "demo"):
        demo.run(params, sys.argv[1:])


if __name__ == "__main__":
    cli.main(main)
