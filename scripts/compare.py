"""Compare two versions: params, data, code and metrics; for models also the paired difference in accuracy.

    python scripts/compare.py model-1a2b3c:v0 retrained-model:v0 --profile demo
                            (make compare A=model-1a2b3c:v0 B=retrained-model:v0 PROFILE=demo; ARGS=--json)

Reads   the registry and, for models, the data set
Writes  nothing
"""

from flywheel import cli, files
from flywheel.commands import compare
from flywheel.registry import Registry


def main() -> None:
    """Print the table, or JSON."""
    parser = cli.parser(__doc__)
    parser.add_argument("a", nargs="?", default="", help="name:vN, name:alias or name@digest")
    parser.add_argument("b", nargs="?", default="", help="the other; differences are B minus A")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    result = compare.versions(params, Registry(params.store), arguments.a, arguments.b)
    print(files.json_text(result).rstrip() if arguments.json else "\n".join(compare.table(result)))


if __name__ == "__main__":
    cli.main(main)
