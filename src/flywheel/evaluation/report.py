"""What evaluation.json holds. Imports neither numpy nor torch."""

from __future__ import annotations

from typing import Literal

from flywheel.metrics.report import Figures


class EvaluationReport(Figures, frozen=True):
    """A model on the test images of a data set; both are refs, name@digest."""

    version: Literal[1] = 1
    model: str
    dataset: str
