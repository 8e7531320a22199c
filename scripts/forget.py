"""Remove an image of production traffic: its pixels, its records, and every later feedback that would list it.

    python scripts/forget.py 01990c3e-… --profile demo          (make forget ID=01990c3e-… PROFILE=demo)
    python scripts/forget.py 01990c3e-… --everywhere            (make forget ID=01990c3e-… ARGS=--everywhere)

The id is a prediction_id, or the SHA-256 of the pixels as feedback.json lists it. Versions of the feedback that list
the image already are named; --everywhere deletes them, here and on W&B. The models that were trained on them are named.

Reads   store/<profile>: traffic, feedback versions
Writes  store/<profile>/traffic, with a note of the content hash in forgotten.jsonl; a new feedback version
"""

from flywheel import cli
from flywheel.tracking.mirror import mirrored
from flywheel.traffic import forget


def main() -> None:
    """Remove the images; name what still holds them."""
    parser = cli.parser(__doc__)
    parser.add_argument("ids", nargs="+", help="prediction_id or content hash")
    parser.add_argument("--everywhere", action="store_true", help="also delete feedback versions that list them")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "forget"):
        forgotten = forget.run(params, mirrored(params), arguments.ids, everywhere=arguments.everywhere)
        cli.log.info(f"forget: {len(forgotten.hashes)} images and {forgotten.records} records removed")
        for what, versions in forgotten.holders.items():
            if versions:
                cli.log.info(f"forget: {what}: {', '.join(version.label for version in versions)}")


if __name__ == "__main__":
    cli.main(main)
