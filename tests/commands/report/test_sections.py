"""The sections one by one, with plain data."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flywheel import files
from flywheel.commands.report import facts, formats, lineage, page, sweep
from flywheel.commands.report.facts import Facts
from flywheel.commands.report.lineage import Node
from flywheel.gate.report import GateReport
from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.retraining.report import Score
from flywheel.sweep.journal import SweepRecord, Trial
from flywheel.tracking import run_files


@pytest.fixture
def empty(params: Params, registry: Registry) -> Facts:
    """What is known of a profile in which nothing ran."""
    return facts.gather(params, registry)


def macro(name: str, *arguments: Any, **options: Any) -> str:
    return str(getattr(page.environment().get_template("macros.html").module, name)(*arguments, **options))


def shown(found: Facts) -> str:
    return page.render(found, (), ())


def test_a_table_aligns_numbers_and_names_its_head_and_rows(loop: Any) -> None:
    text = shown(facts.gather(loop.params, loop.registry))
    for part in (
        '<caption class="hidden">Traffic by class', '<th scope="col">class', '<th class="number" scope="col">images',
        '<th scope="row">0</th><td class="number">', 'aria-label="Traffic by class" tabindex="0"',
    ):  # fmt: skip
        assert part in text


def test_a_minus_is_a_minus() -> None:
    assert (formats.points(-0.0123), formats.points(0.0)) == ("−1.23", "+0.00")


# -- the confusion matrix, intervals ----------------------------------------------------------------------


def test_the_matrix_shades_by_the_part_of_the_true_class() -> None:
    shown = macro("matrix", [[8, 2], [0, 0]], ["cat", "dog"])
    assert 'class="right dark" style="--shade:80%">8' in shown
    assert 'class="wrong dark" style="--shade:100%">2' in shown  # 20 % mistakes are the end of the scale
    assert shown.count('class="none"') == 2


def test_a_matrix_of_many_classes_is_left_to_its_file() -> None:
    names = [str(i) for i in range(31)]
    assert "31 classes" in macro("matrix", [[0] * 31] * 31, names)


def test_an_interval_lies_where_it_should() -> None:
    shown = macro("drawn", 0.0, -0.5, 0.5, (-1.0, 1.0), -0.25)
    middle = formats.WIDTH / 2
    quarter = (formats.WIDTH - 8) / 4
    assert f'x1="{middle}" x2="{middle}"' in shown  # zero
    assert f'x1="{middle - quarter}" x2="{middle + quarter}"' in shown
    assert 'class="limit"' in shown
    assert 'class="zero"' not in macro("drawn", 0.5, 0.4, 0.6, (0.4, 0.6))


def test_a_gate_that_compared_nothing_says_why(empty: Facts) -> None:
    report = GateReport(
        candidate="a@1", production=None, decision="keep", reasons=("it is in production already",),
        labels={"a@1": "a:v0"},
    )  # fmt: skip
    text = shown(replace(empty, reports={**empty.reports, "gate": report}))
    assert "production stays" in text
    assert "<table" not in text
    assert "it is in production already" in text


def test_a_failed_rule_is_said_in_words_not_by_colour_alone(loop: Any, empty: Facts) -> None:
    report = files.read_json(loop.params.reports / "gate.json")
    report["checks"]["test"] = False
    text = shown(replace(empty, reports={**empty.reports, "gate": GateReport.model_validate(report)}))
    assert "✕ fail" in text
    assert "✓ pass" in text


def test_real_traffic_is_told_and_not_judged_with_few_labels(loop: Any, empty: Facts) -> None:
    report = files.read_json(loop.params.reports / "gate.json")
    report["traffic"] = {**report["holdout"], "effective_n": 31.4, "disputed": 2}
    report["replay"] = {"images": 40, "compared": 40, "agreed": 39}
    text = shown(replace(empty, reports={**empty.reports, "gate": GateReport.model_validate(report)}))
    assert "not judged" in text
    assert "worth 31 of equal weight; judged from 50; 2 are disputed." in text
    assert "replay: 40 captured images; the same class for 97.5%." in text


# -- importance -------------------------------------------------------------------------------------------


def record(accuracies: list[float], **choices: list[Any]) -> SweepRecord:
    space = {"rate": {"low": 0.1, "high": 1.0, "log": True}, "kind": {"choices": ["a", "b"]}}
    trials = []
    for number, accuracy in enumerate(accuracies):
        point = {name: values[number] for name, values in choices.items()}
        trial = Trial(str(number), number, {}, False, status="finished", point=point)
        trial.record_epoch(1, {"accuracy": accuracy})
        trials.append(trial)
    return SweepRecord(trials, {"identity": {"sweep": {"space": space}}}, [], 0.0, False)


def test_the_param_that_decides_is_found() -> None:
    rates = [i / 19 for i in range(20)]
    kinds = ["a", "b"] * 10
    found = sweep.importance(record([0.5 + 0.4 * rate for rate in rates], rate=rates, kind=kinds))
    assert found is not None
    assert next(iter(found)) == "rate"
    assert found["rate"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    found = sweep.importance(record([0.9 if kind == "a" else 0.4 for kind in kinds], rate=rates, kind=kinds))
    assert found is not None
    assert next(iter(found)) == "kind"


def test_importance_is_the_same_each_time() -> None:
    whole = record([0.1, 0.5, 0.4, 0.9, 0.7], rate=[0.1, 0.4, 0.5, 0.9, 0.8], kind=["a", "b", "a", "b", "b"])
    assert sweep.importance(whole) == sweep.importance(whole)


@pytest.mark.parametrize(
    "whole",
    [
        record([0.1, 0.5, 0.9], rate=[0.1, 0.2, 0.3], kind=["a", "b", "a"]),
        record([0.5] * 8, rate=[i / 8 for i in range(8)], kind=["a", "b"] * 4),
        record([0.1, 0.2, 0.3, 0.4], rate=[0.5] * 4, kind=["a"] * 4),
        record([]),
        SweepRecord([], {}, [], 0.0, False),
    ],
    ids=["few", "alike", "one point", "none", "empty"],
)
def test_importance_needs_enough_different_trials(whole: SweepRecord) -> None:
    assert sweep.importance(whole) is None


def test_importance_that_is_not_known_is_not_shown(loop: Any) -> None:
    found = facts.gather(loop.params, loop.registry)
    assert "Not computed" in shown(replace(found, importance=None))
    assert "Not computed" not in shown(found)


# -- lineage ----------------------------------------------------------------------------------------------


def chain(rounds: int) -> list[Node]:
    nodes = [Node("d", "digits_dataset:v0", "dataset", "2026-01-01", ())]
    model = "m0"
    nodes.append(Node("m0", "model-1:v0", "model", "2026-01-02", ("d",)))
    for n in range(rounds):
        nodes.append(Node(f"f{n}", f"digits-feedback:v{n}", "feedback", f"2026-02-{n + 1:02}", ("d", model)))
        inputs = ("d", f"f{n}", model)
        model = f"r{n}"
        nodes.append(Node(model, f"retrained-model:v{n}", "model", f"2026-02-{n + 1:02}T12", inputs))
    return nodes


def test_parents_stand_above_their_children() -> None:
    nodes = chain(5)
    found = lineage.ordered(list(reversed(nodes)))
    place = {node.ref: i for i, node in enumerate(found)}
    assert len(found) == len(nodes)
    assert all(place[ref] < place[node.ref] for node in nodes for ref in node.inputs)


def test_a_drawing_has_a_box_a_version_and_a_line_an_input() -> None:
    nodes = chain(3)
    text = macro("lineage", lineage.graph(nodes))
    assert text.count("<rect") == len(nodes)
    assert text.count('class="edge"') == sum(len(node.inputs) for node in nodes)
    assert len(lineage.graph(nodes[2:])["edges"]) < text.count('class="edge"')  # to those not there: none


def test_a_long_history_is_cut_to_the_newest_and_says_so(empty: Facts) -> None:
    nodes = chain(20)
    text = shown(replace(empty, nodes=tuple(nodes[-24:]), older=len(nodes) - 24))
    assert text.count("<rect") == 24
    assert f"{len(nodes) - 24} older versions are not drawn" in text
    assert "make lineage PROFILE=demo" in text


# -- history and runs -------------------------------------------------------------------------------------


def test_forced_moves_are_marked_and_many_are_cut(empty: Facts) -> None:
    move = {"at": "2026-11-23T10:00:00.000+00:00", "who": "ann", "from": None, "to": "m@0", "reason": "why"}
    text = shown(replace(empty, moves=[{**move, "forced": True}, {**move, "forced": False}] * 20))
    assert text.count("forced</span>") == 15
    assert "and 10 earlier" in text


def test_runs_come_from_the_files_that_tracking_keeps(empty: Facts, tmp_path: Path) -> None:
    url = "https://wandb.example/ann/flywheel-demo/runs/abc"
    for key, job_type, event, address in (
        ("abc", "sweep", "folder", url),  # as earlier code wrote it
        ("ghi", "trial", "folder", None),
        ("jkl", "retrain", "online", f"{url}d"),
        ("def", "evaluate", "online", "javascript:alert(1)"),
    ):
        run = run_files.RunFile(tmp_path, key)
        run.start(job_type, key, "round-1", {})
        run.append(event, url=address)
        time.sleep(0.002)  # they are ordered by the millisecond
    run_files.RunFile(tmp_path, "abc").append("confirmed", where="there")
    run_files.RunFile(tmp_path, "torn").append("log", values={}, url="javascript:alert(1)")
    found = [*run_files.records(tmp_path)][::-1]
    assert [(run.key, bool(run.confirmed), run.url) for run in found] == [
        ("def", False, None), ("jkl", False, f"{url}d"), ("ghi", False, None), ("abc", True, url)
    ]  # fmt: skip
    text = shown(replace(empty, runs=tuple(found)))
    assert "3 of 4 are in the store only; <code>make sync PROFILE=demo</code> uploads them." in text
    assert f'<a href="{url}">abc</a>' in text
    assert "and 1 runs of trials" in text
    assert "javascript:" not in text


# -- what production's accuracy is ------------------------------------------------------------------------


def test_a_rollback_shows_the_accuracy_of_what_serves(loop: Any) -> None:
    """Of a model that no report tells of, the audit log knows the accuracy and the data set the number of images."""
    reports: dict[str, Any] = {name: facts.Absent("gone", "make") for name in facts.REPORTS}
    known = files.read_json(loop.params.reports / "evaluation.json")
    score = facts._score(loop.params, loop.registry, reports, known["model"])
    assert (score.accuracy, score.n) == (known["accuracy"], known["n"])
    assert score.interval == pytest.approx(known["interval"])
    assert facts._score(loop.params, loop.registry, reports, "unknown@0").accuracy is None


def test_a_forced_model_is_marked(empty: Facts) -> None:
    move = {"at": "2026-11-23T10:00:00", "who": "ann", "from": None, "to": "m@0", "reason": "why", "forced": True}
    text = shown(replace(empty, production=Score(n=0, accuracy=None, interval=None), moves=[move]))
    assert "forced past the gate" in text
    assert "not recorded" in text
