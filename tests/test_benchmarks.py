"""The benchmarks without their trainings: replayed sweeps, drawn images, tables, and the origin of figures."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import compact
import concurrency
import harness
import idle
import kills
import label_page
import labelling
import made_models
import monitor
import numpy as np
import precision
import pytest
import records
import samples
import searcher_table
import serving
import sweep_overhead
import torch
import traffic
import workers
from ray import cloudpickle
from scipy import stats
from shades import two_shades

from flywheel import files
from flywheel.machine import ray_address
from flywheel.params import Params, StorePaths
from flywheel.traffic import labels
from flywheel.traffic import records as traffic_records
from flywheel.traffic.feedback import Example


@pytest.fixture
def measured() -> dict[str, Any]:
    """Curves whose accuracy depends on the recipe alone: compact, sgd, batch size 64 and the third rate are best."""
    rows = []
    for point in itertools.product(*searcher_table.GRID.values()):
        recipe = dict(zip(searcher_table.GRID, point, strict=True))
        index = [choices.index(recipe[name]) for name, choices in searcher_table.GRID.items()]
        best = 0.9 - 0.1 * index[0] - 0.05 * index[1] - 0.02 * index[2] - 0.1 * abs(index[3] - 2)
        accuracy = [best * epoch / searcher_table.EPOCHS for epoch in range(1, searcher_table.EPOCHS + 1)]
        rows.append({**recipe, "accuracy": accuracy, "epoch_s": 1.0 + index[0]})
    return {"rows": rows, "epochs": searcher_table.EPOCHS, "images": 2000}


def test_the_table_of_an_idle_server_has_its_processes_and_their_sum() -> None:
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # not reaped: a process without a command line
        found = idle.cpu_seconds(os.getpid())
    assert found[next(key for key in found if key[1] == os.getpid())] > 0
    rows = [{"process": "a", "percent": 0.5}, {"process": "b", "percent": 2.0}]
    start = {"seconds": [8.0, 9.0, 7.0], "cpu_seconds": [8.5]}
    text = idle.table({"idle": rows, "start": start, "n": 3, "command": "c", "versions": {}})
    assert text.splitlines()[2:5] == ["| b | 2.0 |", "| a | 0.5 |", "| all 2 | 2.5 |"]
    assert "first answer: 8.0 (7.0 to 9.0) s, 8.5 (8.5 to 8.5) CPU seconds" in text


def test_curves_between_two_rates_are_their_mean_weighted_by_the_logarithm(measured: dict[str, Any]) -> None:
    curves = searcher_table.Curves(measured)
    recipe = {"architecture": "standard", "optimizer": "sgd", "batch_size": 64}
    low, high = searcher_table.RATES[1:3]
    ends = [curves.trial({**recipe, "learning_rate": rate})[0] for rate in (low, high)]
    between, seconds = curves.trial({**recipe, "learning_rate": math.sqrt(low * high)})
    assert [end[-1] for end in ends] == pytest.approx([0.7, 0.8])
    np.testing.assert_allclose(between, (ends[0] + ends[1]) / 2)
    assert seconds == 2.0
    assert curves.trial({**recipe, "learning_rate": searcher_table.RATES[-1]})[0][-1] == pytest.approx(0.6)


def test_a_replayed_sweep_trains_all_epochs_unless_asha_stops_trials(measured: dict[str, Any]) -> None:
    curves = searcher_table.Curves(measured)
    complete, stopped = (searcher_table.sweep(curves, "random", stopping, seed=0) for stopping in (False, True))
    assert len(complete) == searcher_table.TRIALS * searcher_table.EPOCHS
    assert len(stopped) < len(complete)
    times = [at for at, _ in complete]
    assert times == sorted(times)
    assert 16 * 6 / 2 <= times[-1] <= 16 * 6 * 2  # two at a time, epochs of one or two seconds
    found = [searcher_table.best_at(complete, at) for at in (0.5, times[len(times) // 2], math.inf)]
    assert 0.0 == found[0] < found[1] <= found[2] <= curves.best


def test_replayed_sweeps_are_compared_with_tpe_with_asha(measured: dict[str, Any]) -> None:
    rows = searcher_table.replay(measured, seeds=2)["rows"]
    assert rows[0]["worse_than_tpe_with_asha_points"] == [0, 0, 0]
    assert rows[0]["lost_points"] == rows[0]["lost_at_equal_time_points"]
    assert {(row["searcher"], row["asha"]) for row in rows} == set(searcher_table.KINDS)
    assert all(row["lost_points"] <= row["lost_at_equal_time_points"] for row in rows if not row["asha"])


@pytest.mark.long
def test_the_overhead_is_measured_with_a_real_sweep() -> None:
    cloudpickle.register_pickle_by_value(sweep_overhead)  # run as a script it is, too; workers cannot import it
    with ray_address.connect(None, num_cpus=2):
        row = sweep_overhead.measure(3)
    assert row["trials"] == 3
    assert 0 < row["first_trial_s"] < row["wall_s"]
    assert row["wall_s"] > row["propose_s"] + row["journal_s"]
    assert row["journal_bytes"] > 3 * 3 * 100
    lines = sweep_overhead.table({"rows": [row], "command": "c", "machine": "m", "versions": {"ray": "2"}})
    assert lines.splitlines()[2].startswith(f"| 3 | {row['wall_s']} s | {row['first_trial_s']} s | ")


def test_images_are_drawn_from_all_classes_and_always_the_same(random: np.random.Generator) -> None:
    data = two_shades(random, 32)
    order = np.argsort(data.labels, kind="stable")  # as a folder's are
    data = replace(data, images=data.images[order], labels=data.labels[order])
    first, again = samples.draw(data, 16, 4), samples.draw(data, 16, 4)
    assert len(first.labels) == 16
    assert len(first.validation_images) == 4
    assert set(first.labels) == set(data.labels)
    assert np.array_equal(first.images, again.images)


@pytest.mark.long
def test_parallel_trainings_give_the_results_of_sequential_ones(random: np.random.Generator, params: Params) -> None:
    noise = random.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)
    data = replace(two_shades(random, 16), validation_images=noise, validation_labels=random.integers(0, 2, 200))
    tasks = [
        (params.complete_recipe({"batch_size": 16, "seed": seed}, epochs=1),) for seed in range(workers.count() + 1)
    ]
    rows = {row["seed"]: row["accuracy"] for row in workers.in_parallel(precision.train, data, tasks)}
    assert rows == {recipe.seed: precision.train(data, recipe)["accuracy"] for (recipe,) in tasks}
    assert len(set(rows.values())) > 1


def test_the_first_layer_of_airbench94_whitens(random: np.random.Generator) -> None:
    noise = random.normal(128, 40, (600, 32, 32, 3)) + random.normal(0, 40, (600, 32, 32, 1))  # correlated colours
    images = noise.clip(0, 255).astype(np.uint8)
    model = compact.Airbench94(replace(two_shades(random, 32), images=images))
    with torch.no_grad():
        out = model.whitening(compact.normalize(torch.from_numpy(images)))[:, :12].transpose(0, 1).flatten(1)
    covariance = out @ out.T / out.shape[1]
    np.testing.assert_allclose(covariance.numpy(), np.eye(12), atol=0.1)


def test_the_table_of_precisions_pairs_seeds_in_any_order() -> None:
    rows = [
        {"architecture": "compact", "seed": seed, "precision": kind, "accuracy": accuracy, "images_per_s": rate}
        for seed, kind, accuracy, rate in (
            (1, "float32", 0.69, 10), (0, "bfloat16", 0.60, 40), (1, "bfloat16", 0.71, 30), (0, "float32", 0.61, 20),
        )
    ]  # fmt: skip
    result = {
        "rows": rows, "images": 5000, "test_images": 8000, "epochs": 8, "command": "c", "machine": "m",
        "versions": {"torch": "2"},
    }  # fmt: skip
    expected = "| compact | 65.50 (60.00 to 71.00) | 65.00 (61.00 to 69.00) | +0.50 (-1.00 to +2.00) | 2.50x |"
    assert precision.table(result).splitlines()[2] == expected


def test_flops_of_a_convolution_count_forward_and_backward() -> None:
    layer = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    forward = 2 * 4 * 32 * 32 * 3 * 8 * 9
    assert compact.step_flops(layer, 32, 4) == 2 * forward  # images need no gradient


def test_the_study_of_the_alarm_tells_harmful_from_harmless_drift(
    make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CORRUPTIONS": ("blur", "noise"), "QUIET_LENGTH": 1000, "LENGTH": 1000}.items():
        monkeypatch.setattr(monitor, name, value)
    params = make_params("data.image_size=8")
    images = made_models.dataset(params, test=200, simulation=100)
    row = {"seed": 0, "epochs": 1, **monitor.watch(made_models.model(wrong=(1,)), images, params, 0)}
    text = monitor.table({"rows": [row], "command": "c", "machine": "m", "versions": {"torch": "2"}})
    assert row["false_alarms"] == 0
    assert row["harmless"]["blur 1"] == 0  # changes neither a prediction nor the confidence
    assert row["delays"]["0.2"]["noise"] < row["delays"]["0.1"]["noise"] < 100  # the same images, fewer of them
    assert "blur" not in row["delays"]["0.2"]
    assert f"| median at most 300 | {row['delays']['0.2']['noise']:.0f} (" in text


def test_the_interval_of_a_mean_is_students_t(random: np.random.Generator) -> None:
    values = random.normal(0.3, 1, 20).tolist()
    low, mean, high = harness.interval(values)
    known = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((known.low, known.high))
    assert mean == pytest.approx(np.mean(values))
    assert harness.interval([0.3]) == (-math.inf, 0.3, math.inf)


def test_a_spread_is_the_middle_the_lowest_and_the_highest() -> None:
    assert harness.spread([3, 1, 10]) == "3 (1 to 10)"
    assert harness.spread(harness.extent([3, 1, 10]).values()) == "3 (1 to 10)"
    assert harness.spread([0.1, 0.2, 0.6], "+.1f", np.mean) == "+0.3 (+0.1 to +0.6)"


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (serving, [], "error: wrk is missing; apt install wrk"),
        (traffic, [], "error: wrk is missing; apt install wrk"),
        (label_page, [], "error: chromium is missing; apt install chromium"),
        (
            sweep_overhead,
            ["--trials", "50", "1"],
            "error: --trials: the time of a trial after the first needs at least 2",
        ),
    ],
)
def test_what_a_benchmark_needs_is_asked_before_anything_starts(
    benchmark: Any, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(browser, "BINARY", None)
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("it measures"))
    monkeypatch.setattr("sys.argv", ["it", *arguments])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert str(ended.value) == message


def test_a_server_is_stopped_when_its_start_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def script(name: str, *_: object, **__: object) -> None:
        ran.append(name)
        if name == "serve":
            raise KeyboardInterrupt

    monkeypatch.setattr(harness, "script", script)
    with pytest.raises(KeyboardInterrupt), harness.serving("demo", ""):
        pytest.fail("it serves")
    assert ran == ["serve", "stop"]


def test_a_server_whose_replicas_do_not_come_back_ends_the_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills, "LONGEST_S", 0)
    monkeypatch.setattr(kills.requests, "get", lambda *_, **__: SimpleNamespace(text="flywheel_replicas 1\n"))
    with pytest.raises(SystemExit, match="fewer than 2 replicas answer"):
        kills.kill("http://nowhere", tmp_path, "replica", replicas=2)


@pytest.mark.parametrize("count", [30, 5])
def test_records_of_a_benchmark_are_read_with_their_labels(tmp_path: Path, count: int) -> None:
    paths = StorePaths(tmp_path)
    records.write(paths, "replica", count, "model@0", ("a", "b"), labels=5)
    assert len(list(traffic_records.read(paths))) == count
    found, unknown = labels.join(paths)
    assert (len(found), unknown) == (5, 0)


def test_a_study_starts_over_with_other_params_code_or_machine(
    tmp_path: Path, make_params: Callable[..., Params]
) -> None:
    def origin(overrides: str = "", module: str = "flywheel.training.loop", machine: str = "m") -> dict[str, Any]:
        return harness.origin(make_params(overrides), ["data", "recipe"], [module], machine)

    path = tmp_path / "result.json"
    assert harness.resumed(path, origin()) == {}
    files.write_json(path, {**origin(), "rows": [1]})
    assert harness.resumed(path, origin("sweep.trials=3"))["rows"] == [1]  # a section that this study does not read
    for other in (
        origin("data.seed=1"), origin("recipe.batch_size=16"), origin(module="flywheel.files"), origin(machine="n"),
    ):  # fmt: skip
        assert harness.resumed(path, other) == {}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--set", "data.path=/home/me/c.tar.gz a.b=1"], "--set data.path=path/to/c.tar.gz a.b=1"),
        (["--set=data.path=~/new images/c.zip"], "--set=data.path=path/to/c.zip"),
        (["--set", "data.path='/home/me/new images/' a.b=1"], "--set data.path=path/to/new images a.b=1"),
        (["/home/me/c.tar", "a/b", "--train", "7"], "path/to/c.tar a/b --train 7"),
    ],
)
def test_an_absolute_path_never_reaches_the_table(
    arguments: list[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/concurrency.py", *arguments])
    rows = [{"at_a_time": 2, "threads": 1, "wall_s": [1.0]}]
    table = concurrency.table({**harness.stamp(), "trials": 1, "epochs": 1, "rows": rows})
    assert f"Measured by `benchmarks/concurrency.py {shown}` on " in table


def test_committed_results_name_no_directory_of_a_machine() -> None:
    for path in (harness.ROOT / "benchmarks" / "results").glob("*.json"):
        assert not re.search(r"[\"= ][/~]\w*/", path.read_text()), path


def test_studies_of_two_files_of_the_same_name_are_kept_apart(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    origins = []
    for folder in ("a", "b"):
        monkeypatch.setattr("sys.argv", ["benchmarks/compact.py", "--set", f"data.path=/{folder}/c.tar"])
        origins.append(harness.origin(params, [], ["flywheel.files"], "m"))
    assert origins[0]["command"] == origins[1]["command"]
    assert origins[0] != origins[1]


def test_few_labels_are_compared_with_the_truth_and_with_random_images() -> None:
    random = np.random.default_rng(0)
    confidence = random.beta(8, 0.8, 2000).clip(0.1, 1)
    found = labelling.estimates(confidence, random.random(2000) < confidence, draws=300, seed=0)
    assert found["rmse"] < 0.9 * found["uniform_rmse"]
    assert abs(found["bias"]) < 0.4
    assert found["covered"] > 0.92
    least = labelling.choose("least sure first", confidence, 50, seed=0)
    assert confidence[least].max() == np.sort(confidence)[49]
    row = {"estimate": {"none": found, "data": found}, "before": 0.5, "all": 0.9}
    row |= {"training": {"40": {"as make label": 0.6, "at random": 0.7, "least sure first": 0.7}}}
    look = {"holdout": 0.81, "labels": 4, "asked_twice": 3, "correct": 2, "correct_held_back": 1}
    row |= {"null": 0.8, "second": {"0.9": look | {"wrong": 2, "wrong_kept": 1}}}
    result = {"rows": [row, row], "command": "it", "versions": {}}
    text = labelling.table(result)
    assert "| 40 | as make label | 60.0 | 25% | -10.0 (-10.0 to -10.0) |" in text
    assert "| 0.9 | +1.0 (+1.0 to +1.0) | 75.0% | 50.0% | 2 of 4 |" in text


def test_a_second_label_accepts_or_holds_back_the_first() -> None:
    def examples(*labels: str) -> list[Example]:
        answers = zip(labels, (0.99, 0.99, 0.99, 0.5, 0.99), strict=True)
        return [
            Example(hash=f"{i:064x}", label=label, side="train", prediction="a", confidence=confidence)
            for i, (label, confidence) in enumerate(answers)
        ]

    look = labelling.SecondLook(0.9, truth=examples("b", "a", "b", "b", "a"), second=examples("b", "a", "c", "c", "c"))
    kept = look(examples("b", "b", "b", "c", "a"))
    assert [(int(one.hash, 16), one.label) for one in kept] == [(0, "b"), (1, "a"), (3, "c"), (4, "a")]
    assert look.counts == {
        "labels": 5, "asked_twice": 3, "correct": 3, "correct_held_back": 1, "wrong": 2, "wrong_kept": 1,
    }  # fmt: skip
