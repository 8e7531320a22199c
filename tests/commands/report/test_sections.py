"""The sections one by one, with plain data."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flywheel import files
from flywheel.commands.report import evaluation, facts, gate, lineage, overview, sweep
from flywheel.commands.report.lineage import Node
from flywheel.commands.report.markup import Html, join, points, table, tag, text
from flywheel.gate.report import GateReport
from flywheel.sweep.journal import SweepRecord, Trial
from flywheel.tracking import run_files


def test_text_is_escaped_once_and_markup_is_left() -> None:
    assert text("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
    assert text(Html("<b>")) == "<b>"
    assert tag("p", "a<b", tag("b", "c&d"), class_="x", title='"', hidden=True, id=None) == (
        '<p class="x" title="&quot;" hidden>a&lt;b<b>c&amp;d</b></p>'
    )
    assert tag("line", x1=0) == '<line x1="0"/>'  # closed, or in SVG the next would be inside
    assert join("<", None, Html("<br>")) == "&lt;<br>"


def test_a_table_aligns_numbers_and_names_its_head_and_rows() -> None:
    shown = table(("class", "n"), [("a", 1)], "Counts")
    for part in ('<caption class="hidden">Counts', '<th scope="col">class', '<th class="number" scope="col">n',
                 '<th scope="row">a', '<td class="number">1', 'aria-label="Counts"', 'tabindex="0"'):  # fmt: skip
        assert part in shown


def test_a_minus_is_a_minus() -> None:
    assert (points(-0.0123), points(0.0)) == ("−1.23", "+0.00")


# -- the confusion matrix, intervals ----------------------------------------------------------------------


def test_the_matrix_shades_by_the_part_of_the_true_class() -> None:
    shown = evaluation.matrix([[8, 2], [0, 0]], ["cat", "dog"])
    assert 'class="right dark" style="--shade:80%">8' in shown
    assert 'class="wrong dark" style="--shade:100%">2' in shown  # 20 % mistakes are the end of the scale
    assert shown.count('class="none"') == 2


def test_a_matrix_of_many_classes_is_left_to_its_file() -> None:
    names = [str(i) for i in range(31)]
    assert "31 classes" in evaluation.matrix([[0] * 31] * 31, names)


def test_an_interval_lies_where_it_should() -> None:
    shown = gate.drawn(0.0, -0.5, 0.5, (-1.0, 1.0), -0.25)
    middle = gate.WIDTH / 2
    quarter = (gate.WIDTH - 8) / 4
    assert f'x1="{middle}" x2="{middle}"' in shown  # zero
    assert f'x1="{middle - quarter}" x2="{middle + quarter}"' in shown
    assert 'class="limit"' in shown
    assert 'class="zero"' not in gate.drawn(0.5, 0.4, 0.6, (0.4, 0.6))


def test_a_gate_that_compared_nothing_says_why() -> None:
    report = GateReport(
        candidate="a@1", production=None, decision="keep", reasons=("it is in production already",),
        labels={"a@1": "a:v0"},
    )  # fmt: skip
    shown = join(*gate.gate(report, {}))
    assert "production stays" in shown
    assert "<table" not in shown
    assert "it is in production already" in shown


def test_a_failed_rule_is_said_in_words_not_by_colour_alone(loop: Any) -> None:
    report = files.read_json(loop.params.reports / "gate.json")
    report["checks"]["test"] = False
    shown = join(*gate.gate(GateReport.model_validate(report), {}))
    assert "✕ fail" in shown
    assert "✓ pass" in shown


# -- importance -------------------------------------------------------------------------------------------


def record(accuracies: list[float], **choices: list[Any]) -> SweepRecord:
    space = {"rate": {"low": 0.1, "high": 1.0, "log": True}, "kind": {"choices": ["a", "b"]}}
    trials = []
    for number, accuracy in enumerate(accuracies):
        point = {name: values[number] for name, values in choices.items()}
        trial = Trial(str(number), number, {}, False, status="finished", point=point)
        trial.record_epoch(1, {"accuracy": accuracy})
        trials.append(trial)
    return SweepRecord(trials, {"identity": {"sweep": {"space": space}}}, [], 0.0, None)


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
        SweepRecord([], {}, [], 0.0, None),
    ],
    ids=["few", "alike", "one point", "none", "empty"],
)
def test_importance_needs_enough_different_trials(whole: SweepRecord) -> None:
    assert sweep.importance(whole) is None
    assert "Not computed" in join(*sweep.importances(None, ()))


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
    shown = lineage.draw(nodes)
    assert shown.count("<rect") == len(nodes)
    assert shown.count('class="edge"') == sum(len(node.inputs) for node in nodes)
    assert lineage.draw(nodes[2:]).count('class="edge"') < shown.count('class="edge"')  # to those not there: none


def test_a_long_history_is_cut_to_the_newest_and_says_so() -> None:
    nodes = chain(20)
    shown = join(*overview.lineage(nodes[-24:], len(nodes) - 24, "make sweep PROFILE=demo"))
    assert shown.count("<rect") == 24
    assert f"{len(nodes) - 24} older versions are not drawn" in shown
    assert "make lineage PROFILE=demo" in shown


# -- history and runs -------------------------------------------------------------------------------------


def test_forced_moves_are_marked_and_many_are_cut() -> None:
    move = facts.Move("2026-11-23T10:00:00.000+00:00", "ann", "production", None, "m:v0", "why", True)
    shown = join(*overview.history([move, replace(move, forced=False)] * 20, "make evaluate"))
    assert shown.count("forced") == 15
    assert "and 10 earlier" in shown


def test_runs_come_from_the_files_that_tracking_keeps(tmp_path: Path) -> None:
    url = "https://wandb.example/ann/flywheel-demo/runs/abc"
    for key, job_type, address in (
        ("abc", "sweep", url),
        ("ghi", "trial", None),
        ("def", "evaluate", "javascript:alert(1)"),
    ):
        run = run_files.RunFile(tmp_path, key)
        run.start(job_type, key, "round-1", {})
        run.append("folder", path="offline-run", url=address)
        time.sleep(0.002)  # they are ordered by the millisecond
    run_files.RunFile(tmp_path, "abc").append("confirmed", where="there")
    run_files.RunFile(tmp_path, "torn").append("log", values={}, url="javascript:alert(1)")
    found = [*run_files.records(tmp_path)][::-1]
    assert [(run.key, bool(run.confirmed), run.url) for run in found] == [
        ("def", False, None), ("ghi", False, None), ("abc", True, url)
    ]  # fmt: skip
    shown = join(*overview.runs(found, "make sync"))
    assert "2 of 3 are in the store only; <code>make sync</code> uploads them." in shown
    assert f'<a href="{url}">abc</a>' in shown
    assert "in the store only" in shown
    assert "and 1 runs of trials" in shown
    assert "javascript" not in shown


# -- what production's accuracy is ------------------------------------------------------------------------


def test_a_rollback_shows_the_accuracy_of_what_serves(loop: Any) -> None:
    """Of a model that no report tells of, the audit log knows the accuracy and the data set the number of images."""
    reports: dict[str, Any] = {name: facts.Absent("gone", "make") for name in facts.REPORTS}
    known = files.read_json(loop.params.reports / "evaluation.json")
    accuracy, n, interval = facts._accuracy(loop.params, loop.registry, reports, known["model"])
    assert (accuracy, n) == (known["accuracy"], known["n"])
    assert interval == pytest.approx(known["interval"])
    assert facts._accuracy(loop.params, loop.registry, reports, "unknown@0") == (None, None, None)


def test_a_forced_model_is_marked() -> None:
    known = facts.Production("m:v0", None, None, None, "2026-11-23T10:00:00", "ann", "labels mended", True)
    shown = join(*overview.production(known, "digits-classifier", "make evaluate"))
    assert "forced past the gate" in shown
    assert "not recorded" in shown
