"""Write the reference of all params, docs/params.md, from the code that checks them.

    python scripts/docs.py                          (make docs)

Reads   params.yaml and the models in src/flywheel/params
Writes  docs/params.md
"""

import argparse
from pathlib import Path

from flywheel import cli, files


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the params file")
    parser.add_argument("--out", type=Path, default=Path("docs/params.md"), help="the page")
    arguments = parser.parse_args()
    from flywheel.params import reference

    files.write_text(arguments.out, reference.page(arguments.params))
    print(f"docs: {arguments.out}")


if __name__ == "__main__":
    cli.main(main)
