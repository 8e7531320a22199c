"""Evaluate the sweep's best model on the test set; promote it to production if it passes the gate.

    python scripts/evaluate.py --profile demo       (make evaluate PROFILE=demo)

Reads   the sections gate and promotion of params.yaml; the data set, the model linked as best, and production
Writes  evaluation.json, gate.json, confusion_matrix.png, reliability.png, worst.png, gate.png in reports/<profile>;
        the alias production of <data.name>-classifier
"""

from flywheel import cli
from flywheel.evaluation import stage as evaluation_stage
from flywheel.gate import promotion
from flywheel.tracking.mirror import mirrored


def main() -> None:
    """Run the stage; print the accuracy and the gate's decision."""
    arguments = cli.stage_parser(__doc__).parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "evaluate"):
        registry = mirrored(params)
        receipt = evaluation_stage.run(params, registry, force=arguments.force)
        metrics = receipt["metrics"]
        model = registry.resolve(receipt["inputs"]["model"][0])
        low, high = metrics["interval"]
        cli.log.info(
            f"evaluate: {model.label}: {metrics['accuracy']:.2%} of {metrics['n']:,} test images "
            f"(95 % interval {low:.2%} to {high:.2%})"
        )
        for line in promotion.outcome(
            params, registry, model, metrics["decision"], metrics["reasons"], promoted=metrics["promoted"]
        ):
            cli.log.info(f"gate: {line}")
        cli.log.info(f"reports: {params.reports}")


if __name__ == "__main__":
    cli.main(main)
