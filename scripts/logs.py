"""Show the path and the last lines of each stage's log.

    python scripts/logs.py --profile demo           (make logs PROFILE=demo)

Reads   store/<profile>/logs
Writes  nothing
"""

from flywheel import cli
from flywheel.commands import status


def main() -> None:
    """Print the last lines of each log."""
    parser = cli.parser(__doc__)
    parser.add_argument("--lines", type=int, default=8, help="lines of each log (default: 8)")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    print("\n".join(status.logs([params.store_paths.log(name) for name in status.LOGS], arguments.lines)))


if __name__ == "__main__":
    cli.main(main)
