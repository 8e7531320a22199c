"""Put the previous production model back into production; a second rollback undoes the first.

    python scripts/rollback.py --profile demo --reason "too slow"   (make rollback PROFILE=demo REASON="too slow")

Reads   the aliases of <data.name>-classifier; the files of the previous model, verified by digest
Writes  the aliases production and previous, with a line in store/<profile>/audit.jsonl
"""

from flywheel import cli
from flywheel.gate import promotion
from flywheel.tracking.mirror import mirrored


def main() -> None:
    """Roll back and print the two models."""
    parser = cli.parser(__doc__)
    parser.add_argument("--reason", default="", help="why, for the audit log")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "rollback"):
        registry = mirrored(params)
        cli.log.info(promotion.rollback(params, registry, reason=arguments.reason))


if __name__ == "__main__":
    cli.main(main)
