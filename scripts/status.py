"""Where each stage stands, and why.

    python scripts/status.py --profile demo         (make status PROFILE=demo)

Reads   params.yaml, the receipts and the registry
Writes  nothing
"""

from flywheel import command, overview
from flywheel.registry import Registry


def main() -> None:
    """Print a line a stage."""
    params = command.load_params(command.parser(__doc__).parse_args())
    print("\n".join(overview.status(params, Registry(params.store))))


if __name__ == "__main__":
    command.main(main)
