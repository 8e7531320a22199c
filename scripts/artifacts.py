"""List all artifact versions of a profile with the aliases that point at them.

    python scripts/artifacts.py --profile demo              (make artifacts PROFILE=demo)
    python scripts/artifacts.py --profile demo --verify     (make artifacts PROFILE=demo ARGS=--verify)

Reads   the registry
Writes  nothing
"""

from flywheel import cli
from flywheel.commands import status
from flywheel.registry import Registry


def main() -> None:
    """Print one line per version."""
    parser = cli.parser(__doc__)
    parser.add_argument("--verify", action="store_true", help="read every byte; exit 1 if a version is damaged")
    arguments = parser.parse_args()
    registry = Registry(cli.load_params(arguments).store)
    for line in status.verify(registry) if arguments.verify else status.artifacts(registry):
        print(line, flush=True)


if __name__ == "__main__":
    cli.main(main)
