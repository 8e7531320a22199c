"""The layout of a profile's store: the only module that spells the names of its files and folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class Below:
    """An attribute whose value is a path below the store."""

    def __init__(self, path: str):
        self.path = path

    def __get__(self, paths: StorePaths, owner: type[StorePaths]) -> Path:
        return paths.root / self.path


@dataclass(frozen=True)
class StorePaths:
    """The paths of all files of one profile below `root`, which is `<paths.store>/<profile>`."""

    root: Path

    registry = Below("registry")  # the artifact registry: blobs and versions
    audit_log = Below("audit.jsonl")  # every link and alias move of the registered models, one JSON line each
    receipts = Below("receipts")  # one for each stage that ran
    locks = Below("locks")  # of stages and commands
    logs = Below("logs")  # of stages and of the server
    journals = Below("journal")  # one for each sweep
    trials = Below("trials")  # checkpoints of trials while a sweep runs, unless paths.checkpoints is set
    all_scratch = Below("scratch")  # temporary files of stages; a killed run may leave some, `make clean` removes them
    source_digest = Below("source.json")  # the content digest of data.path, with the times and sizes it is of
    server = Below("serve.json")  # what serves this profile: URL, pid, model
    serving = Below("serving")  # one folder for each running server: its code and configuration
    feedback_log = Below("feedback.jsonl")  # every answer that a simulation saw, one JSON line each
    traffic = Below("traffic")  # what the server recorded of production traffic, and the labels for it
    traffic_records = Below("traffic/records")  # for each replica and hour a file with one JSON line an image
    traffic_images = Below("traffic/images")  # the pixels of answered images, by content hash
    traffic_labels = Below("traffic/labels")  # what people and applications said: for each writer and hour a file
    traffic_samples = Below("traffic/samples")  # what was drawn for labelling, with probabilities
    traffic_claims = Below("traffic/claims")  # the images that are shown to someone on the page of `make label`
    monitor = Below("traffic/monitor")  # what `make monitor` knows, and its reference for each model
    monitor_state = Below("traffic/monitor/state.npz")  # how far it has read, and what it has counted
    monitor_metrics = Below("traffic/monitor/metrics.prom")  # its last result, which the server adds to /metrics
    forgotten = Below("traffic/forgotten.jsonl")  # content hashes of what `make forget` removed
    salt = Below("traffic/salt")  # the secret with which names of groups are hashed
    token = Below("token")  # the secret that a client needs to send labels
    wandb = Below("wandb")  # W&B's own folder, and what this package records for it
    wandb_runs = Below("wandb/runs")  # one file for each W&B run: what it should hold
    wandb_media = Below("wandb/runs/media")  # pictures and tables of W&B runs
    wandb_aliases = Below("wandb/aliases.json")  # the aliases as they were last seen on W&B

    def receipt(self, stage: str) -> Path:
        """The record of the last run of a stage, with its fingerprint."""
        return self.receipts / f"{stage}.json"

    def lock(self, name: str) -> Path:
        """The lock that one run of a stage or command holds."""
        return self.locks / f"{name}.lock"

    def log(self, stage: str) -> Path:
        """The messages of a stage, with times."""
        return self.logs / f"{stage}.log"

    def journal(self, sweep_id: str) -> Path:
        """Every event of a sweep, one JSON line each."""
        return self.journals / f"{sweep_id}.jsonl"

    def scratch(self, stage: str) -> Path:
        """Temporary files of one stage."""
        return self.all_scratch / stage
