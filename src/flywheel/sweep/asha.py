"""ASHA: stop trials that fall behind at fixed epochs (Li et al., arXiv 1810.05934, the stopping variant)."""

from __future__ import annotations

import statistics

REDUCTION_FACTOR = 2  # rungs at one third and two thirds of the epochs


class Asha:
    """The rungs of a sweep: epoch -> trial id -> accuracy there. Replaying the same epochs rebuilds them.

    At each rung a trial continues unless it is below the median of the trials that reached the rung before it. Ray's
    AsyncHyperBandScheduler decides the same (a test compares them), but cannot be rebuilt after an interruption.
    With 0 or 1 epochs there is no rung, so no trial stops.
    """

    def __init__(self, epochs: int):
        self.rungs: dict[int, dict[str, float]] = {}
        rung = -(-epochs // 3)  # grace period: accuracies during warm-up and the first decay predict little
        while rung < epochs:
            self.rungs[rung] = {}
            rung *= REDUCTION_FACTOR

    def should_stop(self, trial: str, epoch: int, accuracy: float) -> bool:
        """Record the accuracy of an epoch and return whether the trial stops there. A repeated epoch never stops it."""
        recorded = self.rungs.get(epoch)
        if recorded is None or trial in recorded:
            return False
        stop = bool(recorded) and accuracy < statistics.median(recorded.values())
        recorded[trial] = accuracy
        return stop
