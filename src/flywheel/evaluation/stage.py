"""The stage `evaluate`: the sweep's best model on the test set, then the gate.

What is in production is no input: the gate decides when a best model, the data, the gate's params or the code are new,
and a model that was moved out of production by hand does not come back because somebody types `make evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.pipeline.stage import Outcome, Stage, StageError
from flywheel.registry import Registry, RegistryError


def define(params: Params, registry: Registry) -> Stage:
    """Return the stage as the params describe it. Raises StageError when there is no data set or model."""
    profile = f"PROFILE={params.profile}"
    try:
        dataset = registry.resolve(params.dataset_name)
    except RegistryError:
        raise StageError(f"there is no {params.dataset_name}; run make data {profile}") from None
    model = registry.aliases(params.registered_model).get("best")
    if model is None:
        raise StageError(
            f"{params.registered_model} has no best model; run make sweep {profile} (FORCE=1 if up to date)"
        )
    if not registry.has(model):
        raise StageError(f"the best model, {model}, is not in the store; run make sweep {profile}")
    if dataset.ref not in registry.resolve(model).inputs:
        raise StageError(f"the best model was trained on another {params.dataset_name}; run make sweep {profile}")
    return Stage(
        "evaluate",
        params,
        registry,
        {name: getattr(params, name).identity() for name in ("gate", "promotion")},
        {"dataset": dataset.ref, "model": model},
        (
            "flywheel.metrics.classification",
            "flywheel.models.classifier",
            "flywheel.gate.promotion",
        ),
    )


def run(params: Params, registry: Registry, *, force: bool = False) -> Mapping[str, Any]:
    """Evaluate unless that is done. Returns the receipt."""
    defined = define(params, registry)
    return stage.run(defined, lambda: _evaluate(defined), force=force)


def _evaluate(defined: Stage) -> Outcome:
    from flywheel.data import dataset
    from flywheel.gate import promotion
    from flywheel.metrics import classification
    from flywheel.models import classifier
    from flywheel.pipeline import plotting
    from flywheel.tracking.runs import Tracker

    params, registry = defined.params, defined.registry
    data, model = (registry.resolve(defined.inputs[role]) for role in ("dataset", "model"))
    opened = dataset.open_directory(registry.open(data))
    loaded = classifier.load(registry.open(model))
    if loaded.class_names != opened.class_names:
        raise StageError(f"{model.label} knows other classes than {data.label}; run make sweep anew")
    config = {"dataset": data.ref, "model": model.ref, "recipe": model.metadata.get("recipe")}
    tracker = Tracker(params, registry, stage.turn(registry))
    tracked = tracker.start("evaluate", f"evaluate {model.label}", config)
    tracked.used(data, model)
    try:
        test = opened.split("test")
        probabilities = loaded.predict(test.images)
        result = classification.evaluate(probabilities, test.labels, opened.class_names)
        accuracy = result["accuracy"]
        decision = promotion.judge(params, registry, model, probabilities=probabilities)
        title = f"{model.label}: {accuracy:.2%} of {result['n']:,} test images"
        folder, names = params.reports, opened.class_names
        drawn = (
            plotting.confusion_matrix(result["confusion_matrix"], names, title, folder / "confusion_matrix.png"),
            plotting.reliability(
                classification.calibration(probabilities, test.labels),
                f"{model.label}: calibration error {result['ece']:.3f}",
                folder / "reliability.png",
            ),
            plotting.worst_mistakes(
                test.images, test.labels, probabilities.argmax(axis=1), probabilities.max(axis=1), names,
                f"{model.label}: most confident mistakes (true class above, prediction below)", folder / "worst.png",
            ),
        )  # fmt: skip
        worst = classification.confident_mistakes(probabilities, test.labels, test.ids, opened.class_names)
        report = {"model": model.ref, "dataset": data.ref, **result, "worst": worst}
        files.write_json(folder / "evaluation.json", report)
        gate_reports = promotion.report(params, decision, tracked)
        moved = promotion.apply(params, registry, model, decision)
        numbers = {
            "accuracy": accuracy,
            "ece": result["ece"],
            "n": result["n"],
            "interval": result["interval"],
        }
        tracked.summarize({**numbers, "decision": decision.decision})
        tracked.log_confusion_matrix(test.labels.tolist(), probabilities.argmax(axis=1).tolist(), opened.class_names)
        tracked.log_pictures(drawn)
    except BaseException:
        tracked.finish(failed=True)
        raise
    tracked.finish()
    verdict = {"decision": decision.decision, "reasons": list(decision.reasons), "promoted": moved}
    reports = (folder / "evaluation.json", *drawn, *gate_reports)
    return Outcome((model,), reports, {**numbers, **verdict})
