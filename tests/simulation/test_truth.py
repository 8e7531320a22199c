"""Where the truth comes from: known to the client, sent to the server by an application, or unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flywheel import files
from flywheel.data.dataset import Dataset
from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.simulation import SimulationError
from flywheel.simulation import stage as simulation_stage
from flywheel.traffic import collect, feedback, labels, sampling
from flywheel.traffic.feedback import Example

Make = Callable[[str], Params]
Server = Any


def listed(registry: Registry, params: Params) -> list[Example]:
    newest = feedback.latest(params, registry)
    return [] if newest is None else list(feedback.read(registry, newest))


def test_labels_by_the_api_become_the_examples_that_the_client_would_publish(
    make: Make, registry: Registry, opened: Dataset, server: Server
) -> None:
    server.fail(opened, range(30))
    server.lose_label_answers = {1}  # the client sends these labels again
    report = simulation_stage.run(make("simulate.truth=api"), registry)
    n = len(opened.indices["simulation"])
    assert report is not None
    assert (report.n, report.failures, report.feedback, report.labels) == (n, 30, None, {"duplicate": n})
    assert listed(registry, make("")) == []
    server.recorder.close()
    collected = collect.run(make(""), registry)
    assert collected.new == n
    by_api = listed(registry, make(""))
    for version in registry.versions(make("").feedback_name):
        registry.remove([version])
    simulation_stage.run(make("simulate.truth=known"), registry)
    assert [one.model_copy(update={"source": "simulation"}) for one in by_api] == listed(registry, make(""))


def test_a_fraction_of_the_labels_is_a_recorded_sample(
    make: Make, registry: Registry, opened: Dataset, server: Server
) -> None:
    params = make("simulate.truth=api simulate.label_fraction=0.4")
    report = simulation_stage.run(params, registry)
    n = len(opened.indices["simulation"])
    assert report is not None
    assert sum(report.labels.values()) == round(0.4 * n)
    (sample,) = sampling.read(params.store_paths)
    assert (sample.population, len(sample.images)) == (n, round(0.4 * n))
    assert {drawn.probability for drawn in sample.images} == {round(0.4 * n) / n}
    given = {made for _, known in labels.read(params.store_paths) for made in known}
    assert given == {drawn.prediction_id for drawn in sample.images}
    server.recorder.close()
    collect.run(params, registry)
    assert {(one.chosen, one.probability) for one in listed(registry, params)} == {("sample", round(0.4 * n) / n)}


def test_traffic_without_labels_publishes_nothing(make: Make, registry: Registry, server: Server) -> None:
    params = make("simulate.truth=none")
    assert simulation_stage.run(params, registry) is None
    assert server.requests == 150
    assert not (params.reports / "simulation.json").exists()
    assert listed(registry, params) == []
    assert list(labels.read(params.store_paths)) == []


def test_a_server_that_refuses_the_token_is_named(
    make: Make, registry: Registry, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_TOKEN", "another")
    with pytest.raises(SimulationError, match="401 labels need a token"):
        simulation_stage.run(make("simulate.truth=api"), registry)
    monkeypatch.delenv("FLYWHEEL_TOKEN")
    sent = server.requests
    make("").store_paths.token.unlink()
    with pytest.raises(SimulationError, match="set FLYWHEEL_TOKEN"):
        simulation_stage.run(make("simulate.truth=api"), registry)
    assert server.requests == sent  # it is said before the traffic, not after it
    assert not files.read_json_lines(make("").store_paths.feedback_log)
