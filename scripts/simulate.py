"""Send the simulation images to the server and publish their labels as feedback.

    python scripts/simulate.py --profile demo       (make simulate PROFILE=demo)

Reads   the section simulate of params.yaml; the data set; store/<profile>/serve.json (or simulate.url)
Writes  the artifact <data.name>-feedback; store/<profile>/feedback.jsonl; simulation.json and pictures in
        reports/<profile>
"""

from flywheel import cli
from flywheel.simulation import stage as simulation_stage
from flywheel.tracking.mirror import mirrored


def main() -> None:
    """Send the traffic; print accuracy, speed and failures."""
    params = cli.load_params(cli.parser(__doc__).parse_args())
    with cli.logged(params, "simulate"):
        registry = mirrored(params)
        report = simulation_stage.run(params, registry)
        if report is None:
            return
        low, high = report.interval
        parts = [
            f"{accuracy:.2%} of {n:,} {part}, "
            for part, accuracy, n in (
                ("holdout", report.accuracy_holdout, report.n_holdout),
                ("unseen", report.accuracy_unseen, report.n_unseen),
            )
            if accuracy is not None
        ]
        cli.log.info(
            f"simulate: {report.accuracy:.2%} of {report.n:,} images (95 % interval {low:.2%} to {high:.2%}), "
            f"{''.join(parts)}{report.requests_per_s:,.0f} images/s, "
            f"latency p50 {report.latency_ms.p50:.0f} ms, p99 {report.latency_ms.p99:.0f} ms"
        )
        answered = ", ".join(f"{name} ({count:,})" for name, count in report.models.items())
        cli.log.info(f"simulate: answered by {answered}")
        if report.labels:
            sent = ", ".join(f"{count:,} {status}" for status, count in report.labels.items())
            cli.log.info(f"labels sent to the server: {sent}; make collect publishes them")
        elif report.feedback is None:
            cli.log.info("feedback: no answer, so no feedback yet")
        else:
            version = registry.resolve(report.feedback)
            new = f"{report.feedback_new:,} new" if report.feedback_new else "none of them new"
            total = version.metadata["images"]
            cli.log.info(
                f"feedback: {report.n:,} labelled images ({report.failures:,} failures), {new}; {version.label} lists "
                f"{total:,} of all rounds"
            )
        cli.log.info(f"reports: {params.reports}")


if __name__ == "__main__":
    cli.main(main)
