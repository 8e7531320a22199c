"""Every artifact version of a profile, with what points at it.

    python scripts/artifacts.py --profile demo      (make artifacts PROFILE=demo)

Reads   the registry
Writes  nothing
"""

from flywheel import command, overview
from flywheel.registry import Registry


def main() -> None:
    """Print a line a version."""
    params = command.load_params(command.parser(__doc__).parse_args())
    print("\n".join(overview.artifacts(Registry(params.store))))


if __name__ == "__main__":
    command.main(main)
