"""Show whether each stage is up to date, and why.

    python scripts/status.py --profile demo         (make status PROFILE=demo)

Reads   params.yaml, the receipts and the registry
Writes  nothing
"""

from flywheel import cli
from flywheel.commands import status
from flywheel.registry import Registry


def main() -> None:
    """Print one line per stage."""
    params = cli.load_params(cli.parser(__doc__).parse_args())
    print("\n".join(status.status(params, Registry(params.store))))


if __name__ == "__main__":
    cli.main(main)
