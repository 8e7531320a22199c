"""Show production images one by one in the browser, and store what a person says they are.

    python scripts/label.py --profile demo                      (make label PROFILE=demo)
    python scripts/label.py --profile demo --labeller ann       (make label ARGS="--labeller ann")

It continues the last sample of the production model; --new draws another one.
On another machine: ssh -L 8001:127.0.0.1:8001 <this machine>, and make label ARGS="--port 8001". The command ends when
Finish is pressed on the page, so that make label collect retrain does the rest.

Reads   store/<profile>/traffic: records and kept images (traffic.keep_images); the data set
Writes  store/<profile>/traffic: a sample, labels
"""

from flywheel import cli
from flywheel.tracking.mirror import mirrored
from flywheel.traffic import label


def main() -> None:
    """Serve the page until Finish is pressed."""
    parser = cli.parser(__doc__)
    parser.add_argument("--labeller", default="", help="who labels (default: $USER); two names check each other")
    parser.add_argument("--port", type=int, default=0, help="port of the page (default: a free one)")
    parser.add_argument("--new", action="store_true", help="draw another sample, even if images of the last one wait")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "label"):
        label.run(params, mirrored(params), arguments.labeller, arguments.port, new=arguments.new)


if __name__ == "__main__":
    cli.main(main)
