"""What the stage `evaluate` refuses before it loads a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from flywheel.evaluation import stage as evaluation_stage
from flywheel.params import Params
from flywheel.pipeline.stage import StageError
from flywheel.registry import Registry


def test_a_best_model_of_another_data_set_is_refused(params: Params, registry: Registry, tmp_path: Path) -> None:
    def publish(name: str, type: str, text: str, **inputs: str) -> str:
        (tmp_path / "content").write_text(text)
        return registry.publish(name, type, {"a": tmp_path / "content"}, inputs=inputs).ref

    data = publish("digits_dataset", "dataset", "first")
    model = publish("model-1", "model", "weights", dataset=data)
    registry.link(registry.resolve(model), params.registered_model, ("best",), reason="x")
    assert evaluation_stage.define(params, registry).reads == {"dataset": data, "model": model}
    publish("digits_dataset", "dataset", "second")
    with pytest.raises(StageError, match="the best model was trained on another digits_dataset; run make sweep"):
        evaluation_stage.define(params, registry)
