"""Write one HTML page with all results: production, sweep, evaluation, traffic, gate, lineage.

    python scripts/report.py --profile demo         (make report PROFILE=demo)

Reads   the reports of the stages, their receipts, the registry and the sweep's journal; all of them may be missing
Writes  reports/<profile>/index.html, which needs no network
"""

from flywheel import cli
from flywheel.commands.report import page
from flywheel.registry import Registry


def main() -> None:
    """Write the page and print where it is."""
    params = cli.load_params(cli.parser(__doc__).parse_args())
    print(f"report: {page.write(params, Registry(params.store))}")


if __name__ == "__main__":
    cli.main(main)
