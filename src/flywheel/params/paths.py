"""The layout of a profile's store: the only module that spells the names of its files and folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StorePaths:
    """The paths of all files of one profile below `root`, which is `<paths.store>/<profile>`."""

    root: Path

    @property
    def registry(self) -> Path:
        """The artifact registry: blobs and versions."""
        return self.root / "registry"

    @property
    def audit_log(self) -> Path:
        """Every link and alias move of the registered models, one JSON line each."""
        return self.root / "audit.jsonl"

    @property
    def receipts(self) -> Path:
        """One receipt for each stage that ran."""
        return self.root / "receipts"

    def receipt(self, stage: str) -> Path:
        """The record of the last run of a stage, with its fingerprint."""
        return self.receipts / f"{stage}.json"

    @property
    def locks(self) -> Path:
        """The locks of stages and commands."""
        return self.root / "locks"

    def lock(self, name: str) -> Path:
        """The lock that one run of a stage or command holds."""
        return self.locks / f"{name}.lock"

    @property
    def logs(self) -> Path:
        """The logs of stages and of the server."""
        return self.root / "logs"

    def log(self, stage: str) -> Path:
        """The messages of a stage, with times."""
        return self.logs / f"{stage}.log"

    @property
    def journals(self) -> Path:
        """One journal for each sweep."""
        return self.root / "journal"

    def journal(self, sweep_id: str) -> Path:
        """Every event of a sweep, one JSON line each."""
        return self.journals / f"{sweep_id}.jsonl"

    @property
    def trials(self) -> Path:
        """Checkpoints of trials while a sweep runs, unless paths.checkpoints is set."""
        return self.root / "trials"

    @property
    def all_scratch(self) -> Path:
        """Temporary files of stages; a killed run may leave some, `make clean` removes them."""
        return self.root / "scratch"

    def scratch(self, stage: str) -> Path:
        """Temporary files of one stage."""
        return self.all_scratch / stage

    @property
    def source_digest(self) -> Path:
        """The content digest of data.path, with the times and sizes it was computed for."""
        return self.root / "source.json"

    @property
    def server(self) -> Path:
        """What serves this profile: URL, pid, model."""
        return self.root / "serve.json"

    @property
    def feedback_log(self) -> Path:
        """Every wrong answer that a simulation saw, one JSON line each."""
        return self.root / "feedback.jsonl"

    @property
    def wandb(self) -> Path:
        """W&B's own folder, and what this package records for it."""
        return self.root / "wandb"

    @property
    def wandb_runs(self) -> Path:
        """One file for each W&B run: what it should hold."""
        return self.wandb / "runs"

    @property
    def wandb_media(self) -> Path:
        """Pictures and tables of W&B runs."""
        return self.wandb_runs / "media"

    @property
    def wandb_aliases(self) -> Path:
        """The aliases as they were last seen on W&B."""
        return self.wandb / "aliases.json"
