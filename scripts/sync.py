"""Upload to W&B what it lacks, then read it back and compare it with the local store.

    python scripts/sync.py --profile demo                    (make sync PROFILE=demo)
    python scripts/sync.py --profile demo --keep theirs      (make sync PROFILE=demo ARGS="--keep theirs")

Reads   store/<profile>: recorded runs, artifacts, aliases
Writes  the W&B project of the profile, and in store/<profile>/wandb what was confirmed; exits 1 with a list if
        something is still missing
"""

from flywheel import cli
from flywheel.tracking import sync


def main() -> None:
    """Upload, compare, and list what is missing."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--keep", choices=("ours", "theirs"), help="which aliases to keep if they moved both here and on W&B"
    )
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "sync"):
        report = sync.sync(params, keep=arguments.keep)
        for line in report.missing:
            cli.log.info(f"sync: missing: {line}")
        if report.missing:
            raise sync.SyncError(
                f"{len(report.missing)} items above are not on W&B; make sync PROFILE={params.profile} continues"
            )
        cli.log.info(
            f"sync: all is on W&B: {len(report.uploaded)} items compared now, {report.confirmed_before} runs before"
        )


if __name__ == "__main__":
    cli.main(main)
