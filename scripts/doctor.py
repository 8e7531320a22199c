"""Check Python, device, limits, disks, registry, Ray and W&B on this machine; print a fix for each problem.

    python scripts/doctor.py --profile demo         (make doctor PROFILE=demo)

Reads   the environment, params.yaml, the registry's manifests
Writes  nothing; exits 1 if there is a problem
"""

import sys

from flywheel import cli
from flywheel.commands import doctor
from flywheel.registry import Registry


def main() -> None:
    """Print one line per check, and the fix below each problem."""
    params = cli.load_params(cli.parser(__doc__).parse_args())
    problems = 0
    for finding in doctor.examine(params, Registry(params.store)):
        problems += bool(finding.fix)
        print(f"{'PROBLEM' if finding.fix else 'ok':<9}{finding.name:<12}{finding.text}", flush=True)
        if finding.fix:
            print(f"{'':<21}fix: {finding.fix}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    cli.main(main)
