"""Show which models were promoted, by whom, when and why; newest last, forced promotions marked.

    python scripts/history.py --profile demo                (make history PROFILE=demo)
    python scripts/history.py --profile demo --all          (make history PROFILE=demo ARGS=--all)

Reads   store/<profile>/audit.jsonl
Writes  nothing
"""

from flywheel import cli
from flywheel.commands import status
from flywheel.registry import Registry


def main() -> None:
    """Print one line per move of an alias."""
    parser = cli.parser(__doc__)
    parser.add_argument("--all", action="store_true", help="the moves of every alias, not only of production")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    print("\n".join(status.history(params, Registry(params.store), arguments.all)))


if __name__ == "__main__":
    cli.main(main)
