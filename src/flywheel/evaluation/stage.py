"""The stage `evaluate`: the sweep's best model on the test set, then the gate.

It runs again if the best model, the data set, the params of gate and promotion or the code changed. A new production
model does not make it run again, so a model that you roll back or promote by hand stays in production.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel import files
from flywheel.params import Params
from flywheel.pipeline import stage
from flywheel.pipeline.stage import Outcome, Stage, StageError
from flywheel.registry import Registry


def define(params: Params, registry: Registry) -> Stage:
    """Return the stage as the params describe it. Raises StageError when there is no data set or model."""
    profile = f"PROFILE={params.profile}"
    dataset = stage.dataset_of(params, registry)
    model = registry.aliases(params.registered_model).get("best")
    if model is None:
        raise StageError(
            f"{params.registered_model} has no best model; run make sweep {profile} (FORCE=1 if up to date)"
        )
    if not registry.has(model):
        raise StageError(f"the best model, {model}, is not in the store; run make sweep {profile}")
    if registry.resolve(model).input("dataset") != dataset.ref:
        raise StageError(f"the best model was trained on another {params.dataset_name}; run make sweep {profile}")
    return Stage(
        "evaluate",
        params,
        registry,
        {name: getattr(params, name).identity() for name in ("gate", "promotion")},
        {"dataset": dataset.ref, "model": model},
        ("flywheel.metrics.classification", "flywheel.models.classifier", "flywheel.gate.promotion"),
    )


def run(params: Params, registry: Registry, *, force: bool = False) -> Mapping[str, Any]:
    """Evaluate unless that is done. Returns the receipt."""
    defined = define(params, registry)
    return stage.run(defined, lambda: _evaluate(defined), force=force)


def _evaluate(defined: Stage) -> Outcome:
    from flywheel.data import dataset
    from flywheel.evaluation import plots
    from flywheel.evaluation.report import EvaluationReport
    from flywheel.gate import promotion
    from flywheel.metrics import classification
    from flywheel.models import classifier
    from flywheel.pipeline.plotting import worst_mistakes
    from flywheel.tracking.runs import Tracker

    params, registry, folder = defined.params, defined.registry, defined.params.reports
    data, model = (registry.resolve(defined.reads[role]) for role in ("dataset", "model"))
    opened = dataset.open_directory(registry.open(data))
    loaded = classifier.load(registry.open(model))
    names = loaded.class_names
    if names != opened.class_names:
        raise StageError(f"{model.label} knows other classes than {data.label}; run make sweep anew")
    test = opened.split("test")
    config = {"dataset": data.ref, "model": model.ref, "recipe": model.metadata.get("recipe")}
    tracker = Tracker(params, registry)
    with tracker.run("evaluate", f"evaluate {model.label}", config, used=(data, model)) as run:
        probabilities = loaded.predict(test.images)
        result = classification.evaluate(probabilities, test.labels, test.ids, names)
        predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
        decision = promotion.judge(params, registry, model, dataset=data, probabilities=probabilities)
        title = f"{model.label}: {result['accuracy']:.2%} of {result['n']:,} test images"
        about = f"{model.label}: calibration error {result['ece']:.3f}"
        pictures = (
            plots.confusion_matrix(result["confusion_matrix"], names, title, folder / "confusion_matrix.png"),
            plots.reliability(result["calibration"], about, folder / "reliability.png"),
            worst_mistakes(
                test.images, test.labels, predicted, confidence, names,
                f"{model.label}: most confident mistakes (true class above, prediction below)", folder / "worst.png",
            ),
        )  # fmt: skip
        report = EvaluationReport.model_validate({"model": model.ref, "dataset": data.ref, **result})
        files.write_json(folder / "evaluation.json", report.model_dump(mode="json"))
        gate_reports = promotion.report(params, decision, run)
        promoted = promotion.apply(params, registry, model, decision)
        figures = {key: result[key] for key in ("accuracy", "ece", "n", "interval")}
        run.summarize({**figures, "decision": decision.decision})
        run.log_confusion_matrix(test.labels.tolist(), predicted.tolist(), names)
        run.log_pictures(pictures)
    verdict = {"decision": decision.decision, "reasons": list(decision.reasons), "promoted": promoted}
    return Outcome((model,), (folder / "evaluation.json", *pictures, *gate_reports), {**figures, **verdict})
