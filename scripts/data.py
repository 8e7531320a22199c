"""Build the data set and its splits.

    python scripts/data.py --profile demo          (make data PROFILE=demo)

Reads   the section data of params.yaml; CIFAR-10's archive, data.path, or scikit-learn's digits
Writes  the artifact <data.name>_dataset; reports/<profile>/samples_<split>.png
"""

from flywheel import cli
from flywheel.data import stage as data_stage
from flywheel.tracking.mirror import mirrored


def main() -> None:
    """Run the stage; print the sizes of the splits and the duplicates."""
    arguments = cli.stage_parser(__doc__).parse_args()
    params = cli.load_params(arguments)
    with cli.logged(params, "data"):
        registry = mirrored(params)
        receipt = data_stage.run(params, registry, force=arguments.force)
        counts = ", ".join(f"{name} {count:,}" for name, count in receipt["metrics"]["splits"].items())
        cli.log.info(f"data: {registry.resolve(receipt['outputs'][0]).label}: {counts}")
        for split, count in receipt["metrics"]["duplicates"]["within"].items():
            cli.log.info(f"data: {count} images of {split} are copies of others in it; they stay")
        for pair, count in receipt["metrics"]["duplicates"]["across"].items():
            kept, dropped = pair.split("/")
            cli.log.info(f"data: {count} images of {dropped} left out: {kept} has the same")


if __name__ == "__main__":
    cli.main(main)
