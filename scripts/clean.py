"""Remove files that a command can make again: the profile's reports, and leftovers of killed runs in its store.

    python scripts/clean.py --profile demo          (make clean PROFILE=demo)

Reads   params.yaml
Writes  nothing; removes reports/<profile> and leftovers in store/<profile>; artifacts, receipts and journals stay
"""

from flywheel import cli
from flywheel.commands import housekeeping


def main() -> None:
    """Remove the files and print their paths."""
    params = cli.load_params(cli.parser(__doc__).parse_args())
    removed = housekeeping.clean(params)
    for path in removed:
        print(f"clean: removed {path}")
    if not removed:
        print("clean: nothing to remove")


if __name__ == "__main__":
    cli.main(main)
