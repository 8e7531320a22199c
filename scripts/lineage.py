"""Show what an artifact was made from, back to the data; by default the production model.

    python scripts/lineage.py digits-classifier:best --profile demo
                            (make lineage PROFILE=demo ARGS=digits-classifier:best)

Reads   the registry
Writes  nothing
"""

from flywheel import cli
from flywheel.commands import status
from flywheel.registry import Registry


def main() -> None:
    """Print the tree."""
    parser = cli.parser(__doc__)
    parser.add_argument("artifact", nargs="?", help="name, name:alias, name:vN or name@digest")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    print("\n".join(status.lineage(params, Registry(params.store), arguments.artifact)))


if __name__ == "__main__":
    cli.main(main)
