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
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    from flywheel.params import reference

    page = Path("docs/params.md")
    files.write_text(page, reference.page(Path("params.yaml")))
    print(f"docs: {page}")


if __name__ == "__main__":
    cli.main(main)
