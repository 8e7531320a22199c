"""Search for the best recipe with Ray Tune and publish the best model.

    python scripts/sweep.py --profile demo                          (make sweep PROFILE=demo)
    RAY_ADDRESS=host:6379 python scripts/sweep.py                   on a cluster, from one of its nodes

Reads   the sections sweep and recipe of params.yaml; the artifact <data.name>_dataset
Writes  the artifact model-<run_id>, linked as best; sweep.json, sweep.csv and pictures in reports/<profile>;
        store/<profile>/journal/<sweep_id>.jsonl
"""

from flywheel import cli
from flywheel.files import count, human_size
from flywheel.sweep import stage as sweep_stage
from flywheel.tracking.mirror import mirrored


def main() -> None:
    """Run the stage and print the best trial."""
    arguments = cli.stage_parser(__doc__).parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "sweep"):
        registry = mirrored(params)
        receipt = sweep_stage.run(params, registry, force=arguments.force)
        metrics = receipt["metrics"]
        model = registry.resolve(receipt["outputs"][0])
        cli.log.info(
            f"sweep: best of {count(metrics['trials'], 'trial')}: {model.label}, {metrics['accuracy']:.2%} on "
            f"validation ({metrics['wall_s']:.0f} s, at most {human_size(metrics['peak_disk_bytes'])} of disk)"
        )


if __name__ == "__main__":
    cli.main(main)
