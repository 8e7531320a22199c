"""The first gate: a floor for the first model, and an alias that always finds a way on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from flywheel import overview, promotion
from flywheel.params import Params
from flywheel.registry import Registry, Version

Make = Callable[..., Params]
MODEL = "digits-classifier"


def publish(registry: Registry, tmp_path: Path, name: str) -> Version:
    (tmp_path / name).write_text(name)
    return registry.publish(name, "model", {"a": tmp_path / name})


def test_a_first_model_above_the_floor_goes_into_production(params: Params, registry: Registry, tmp_path: Path) -> None:
    candidate = publish(registry, tmp_path, "model-1")
    decision = promotion.judge(params, registry, candidate, 0.9)
    assert decision.decision == "first"
    assert promotion.apply(params, registry, candidate, decision)
    assert registry.resolve(f"{MODEL}:production") == candidate
    assert registry.history(MODEL)[0]["gate"]["decision"] == "first"


def test_below_the_floor_nothing_moves(params: Params, registry: Registry, tmp_path: Path) -> None:
    candidate = publish(registry, tmp_path, "model-1")
    decision = promotion.judge(params, registry, candidate, 0.8999)
    assert (decision.decision, decision.checks) == ("keep", {"floor_accuracy": False})
    assert not promotion.apply(params, registry, candidate, decision)
    assert registry.aliases(MODEL) == {}


def test_a_second_model_does_not_take_over_without_a_comparison(
    params: Params, registry: Registry, tmp_path: Path
) -> None:
    first, second = (publish(registry, tmp_path, f"model-{n}") for n in (1, 2))
    promotion.apply(params, registry, first, promotion.judge(params, registry, first, 0.95))
    for candidate, reason in ((second, "only a first model"), (first, "in production already")):
        decision = promotion.judge(params, registry, candidate, 0.99)
        assert decision.decision == "keep"
        assert reason in decision.reasons[0]
        assert not promotion.apply(params, registry, candidate, decision)


def test_with_auto_off_nothing_moves(make_params: Make, registry: Registry, tmp_path: Path) -> None:
    params = make_params("promotion.auto=false")
    candidate = publish(registry, tmp_path, "model-1")
    assert not promotion.apply(params, registry, candidate, promotion.judge(params, registry, candidate, 0.99))


def test_a_production_model_that_is_gone_is_said_and_makes_way(
    params: Params, registry: Registry, tmp_path: Path
) -> None:
    first, second = (publish(registry, tmp_path, f"model-{n}") for n in (1, 2))
    promotion.apply(params, registry, first, promotion.judge(params, registry, first, 0.95))
    shutil.rmtree(params.store / "registry" / "versions" / first.name)
    assert any(f"missing: {first.ref}" in line for line in overview.status(params, registry))
    decision = promotion.judge(params, registry, second, 0.95)
    assert decision.decision == "first"
    assert promotion.apply(params, registry, second, decision)
    assert registry.resolve(f"{MODEL}:production") == second
