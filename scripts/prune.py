"""List the versions that no alias, receipt or lineage needs, with their size; --yes removes them.

    python scripts/prune.py --profile demo          (make prune PROFILE=demo)
    python scripts/prune.py --profile demo --yes    (make prune PROFILE=demo ARGS=--yes)

Reads   the registry, the audit log, the receipts
Writes  nothing; with --yes removes versions from the registry
"""

from flywheel import cli
from flywheel.commands import housekeeping
from flywheel.files import human_size
from flywheel.registry import Registry


def main() -> None:
    """List the versions, or remove them."""
    parser = cli.parser(__doc__)
    parser.add_argument("--yes", action="store_true", help="remove them")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    registry = Registry(params.store)
    if arguments.yes:
        versions, freed = housekeeping.prune(params, registry)
        outcome = f"removed {len(versions)} versions, {human_size(freed)} freed"
    else:
        versions = housekeeping.unneeded(params, registry)
        outcome = f"{len(versions)} versions are not needed; ARGS=--yes removes them" if versions else "all are needed"
    for version in versions:
        print(f"{version.label:<28}{human_size(version.size):>10}  {version.created[:19].replace('T', ' ')}")
    print(f"prune: {outcome}")


if __name__ == "__main__":
    cli.main(main)
