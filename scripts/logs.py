"""Where the log of each stage is, and its last lines.

    python scripts/logs.py --profile demo           (make logs PROFILE=demo)

Reads   store/<profile>/logs
Writes  nothing
"""

from flywheel import command, overview


def main() -> None:
    """Print the end of each log."""
    parser = command.parser(__doc__)
    parser.add_argument("--lines", type=int, default=8, help="lines of each log (default: 8)")
    arguments = parser.parse_args()
    params = command.load_params(arguments)
    print("\n".join(overview.logs([command.log_path(params, name) for name in overview.LOGS], arguments.lines)))


if __name__ == "__main__":
    command.main(main)
