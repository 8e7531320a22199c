"""Everything Weights & Biases: connection, runs, remote registry, mirror, sync. The only importer of wandb."""
