"""Upload to W&B all that is missing there, then read it back and compare it with the local store.

    python scripts/sync.py --profile demo                    (make sync PROFILE=demo)
    python scripts/sync.py --profile demo --keep theirs      (make sync PROFILE=demo ARGS="--keep theirs")

Reads   store/<profile>: recorded runs, artifacts, aliases
Writes  the W&B project of the profile; records in store/<profile>/wandb what was found there;
        exits 1 with a list if something is still missing
"""

from flywheel import cli
from flywheel.tracking import sync


def main() -> None:
    """Upload, compare, and list what is missing."""
    parser = cli.parser(__doc__)
    parser.add_argument("--keep", choices=("ours", "theirs"), help="which aliases count where both moved them")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "sync"):
        report = sync.sync(params, keep=arguments.keep)
        for line in report.missing:
            cli.log.info(f"sync: missing: {line}")
        if report.missing:
            raise sync.SyncError(
                f"{len(report.missing)} things are not on W&B, listed above; make sync PROFILE={params.profile} goes on"
            )
        cli.log.info(f"sync: all is on W&B: {len(report.brought)} compared now, {report.there} runs before")


if __name__ == "__main__":
    cli.main(main)
