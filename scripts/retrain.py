"""Continue training the production model on the original and the labelled production images; the gate judges it.

    python scripts/retrain.py --profile demo        (make retrain PROFILE=demo)

Reads   the sections retrain, gate and promotion of params.yaml; the data set, <data.name>-feedback, production
Writes  the artifact retrained-model, linked as candidate; retrain.json, gate.json, retrain.png in reports/<profile>;
        the alias production of <data.name>-classifier if the model passes the gate
"""

from flywheel import cli
from flywheel.gate import promotion
from flywheel.retraining import stage as retraining_stage
from flywheel.tracking.mirror import mirrored


def main() -> None:
    """Run the stage; print the accuracy before, after and of the other arms, and the gate's decision."""
    arguments = cli.stage_parser(__doc__).parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "retrain"):
        registry = mirrored(params)
        report = retraining_stage.run(params, registry, force=arguments.force)
        if report is None:
            return
        for name, labels, scores in report.rows():
            parts = [(part, score) for part, score in (("test", scores.test), ("holdout", scores.holdout)) if score.n]
            shown = ", ".join(f"{part} {score.accuracy:.2%} of {score.n:,}" for part, score in parts)
            last = parts[-1][1]
            flips = f" (fixed {last.fixed}, broken {last.broken})" if last.fixed is not None else ""
            cost = "" if labels is None else f" ({labels:,} labels)"
            cli.log.info(f"retrain: {f'{name}{cost}':<30}{shown}{flips}")
        candidate = registry.resolve(report.candidate)
        told = promotion.outcome(params, registry, candidate, report.decision, report.reasons, promoted=report.promoted)
        for line in told:
            cli.log.info(f"gate: {candidate.label}: {line}")
        cli.log.info(f"reports: {params.reports}")


if __name__ == "__main__":
    cli.main(main)
