"""ASHA: stops the trials that fall behind at fixed epochs (Li et al., arXiv 1810.05934, its stopping variant)."""

from __future__ import annotations

import statistics

REDUCTION_FACTOR = 2  # rungs at a third and at two thirds of the epochs


class Asha:
    """The rungs of a sweep: epoch -> trial -> its accuracy there. The same epochs told again rebuild them.

    At each rung a trial goes on if it is not below the median of those that came before it. Ray's
    AsyncHyperBandScheduler decides the same (a test compares); it cannot be rebuilt after an interruption.
    """

    def __init__(self, epochs: int):
        self.rungs: dict[int, dict[str, float]] = {}
        rung = -(-epochs // 3)  # a grace of a third: warm-up and the first decay say little
        while rung < epochs:
            self.rungs[rung] = {}
            rung *= REDUCTION_FACTOR

    def stops(self, trial: str, epoch: int, accuracy: float) -> bool:
        """Take an epoch's accuracy and tell whether the trial stops there. An epoch told again decides nothing new."""
        recorded = self.rungs.get(epoch)
        if recorded is None or trial in recorded:
            return False
        stops = bool(recorded) and accuracy < statistics.median(recorded.values())
        recorded[trial] = accuracy
        return stops
