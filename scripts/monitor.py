"""Say how production does: an alarm without labels, what changed, and the accuracy by the labels there are.

    python scripts/monitor.py --profile demo                (make monitor PROFILE=demo)
    python scripts/monitor.py --profile demo --check        (make monitor ARGS=--check)

Reads   store/<profile>/traffic: records, samples, labels; the models that answered, with their data sets
Writes  monitor.json and monitor.png in reports/<profile>; store/<profile>/traffic/monitor
Exits   with --check: 3 while the alarm of the production model is up
"""

import sys

from flywheel import cli
from flywheel.tracking.mirror import mirrored
from flywheel.traffic import monitor, monitor_text


def main() -> None:
    """Read what is new; print the result."""
    parser = cli.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 3 while production has an alarm")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "monitor"):
        report = monitor.run(params, mirrored(params))
        for line in monitor_text.lines(params, report):
            cli.log.info(f"monitor: {line}")
    if arguments.check and report is not None and report.alarm.state == "alarm":
        sys.exit(cli.ALARM)


if __name__ == "__main__":
    cli.main(main)
