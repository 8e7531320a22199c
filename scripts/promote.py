"""Promote a model to production if it passes the gate, or by force with a reason.

    python scripts/promote.py model-1a2b3c:v0 --profile demo        (make promote MODEL=model-1a2b3c:v0 PROFILE=demo)
    python scripts/promote.py retrained-model:v2 --force --reason "the test set is wrong"
                                                    (make promote MODEL=… FORCE=1 REASON="the test set is wrong")

Reads   the section gate of params.yaml; the data set, the model, production and the best model ever there
Writes  the aliases production and previous of <data.name>-classifier, with a line in store/<profile>/audit.jsonl;
        gate.json and gate.png in reports/<profile>
"""

from flywheel import cli
from flywheel.gate import promotion
from flywheel.tracking.mirror import mirrored


def main() -> None:
    """Judge and promote."""
    parser = cli.parser(__doc__)
    parser.add_argument("model", nargs="?", default="", help="name:vN, name:alias or name@digest")
    parser.add_argument("--force", action="store_true", help="promote though the gate says no; needs --reason")
    parser.add_argument("--reason", default="", help="why, for the audit log")
    arguments = parser.parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "promote"):
        promotion.promote(params, mirrored(params), arguments.model, force=arguments.force, reason=arguments.reason)


if __name__ == "__main__":
    cli.main(main)
