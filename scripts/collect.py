"""Join labels with what the server recorded, and publish what is new as feedback.

    python scripts/collect.py --profile demo                            (make collect PROFILE=demo)
    python scripts/collect.py --profile demo --labels labels.csv        (make collect ARGS="--labels labels.csv")

Reads   store/<profile>/traffic: records, images, labels, samples; the data set; with --labels, a CSV file with the
        columns prediction_id and label, and labeller if you like
Writes  the artifact <data.name>-feedback, if something is new
"""

from pathlib import Path

from flywheel import cli
from flywheel.tracking.mirror import mirrored
from flywheel.traffic import collect


def main() -> None:
    """Publish the labels; print what became of them."""
    parser = cli.parser(__doc__)
    parser.add_argument("--labels", type=Path, help="also take the labels of this CSV file")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "collect"):
        collected = collect.run(params, mirrored(params), arguments.labels)
        counts = ", ".join(f"{count:,} {what}" for what, count in collected.counts.items() if count)
        cli.log.info(f"collect: {counts or f'no labels; make label PROFILE={params.profile} asks a person for some'}")
        if collected.feedback is not None:
            total = collected.feedback.metadata["images"]
            cli.log.info(f"collect: {collected.new:,} new; {collected.feedback.label} lists {total:,}")


if __name__ == "__main__":
    cli.main(main)
