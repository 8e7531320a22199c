"""The page of a real round, parsed and in a real browser; of no round, and of hostile and damaged files."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest
from PIL import Image
from pydantic import BaseModel

from flywheel import files
from flywheel.commands.report import facts, page
from flywheel.commands.report.facts import Facts
from flywheel.params import Params
from flywheel.registry import Registry
from flywheel.tracking.run_files import RunRecord

SECTIONS = (
    "production", "stages", "sweep", "evaluation", "traffic", "failures", "monitoring", "gate", "lineage", "history",
    "runs",
)  # fmt: skip
HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror='pwned=1'>\"'&<!--"
# What is wider than the page, but for what scrolls in a box of its own.
TOO_WIDE = """[...document.querySelectorAll('main *')]
  .filter(e => !e.closest('.scroll') && !e.closest('svg') && getComputedStyle(e).position !== 'absolute')
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
DRAWN = "Number(document.documentElement.dataset.drawn)"  # how often
needs_browser = pytest.mark.skipif(browser.BINARY is None, reason="no Chromium here (Debian: apt install chromium)")


class Parsed(HTMLParser):
    """What stands in a page: its elements with their attributes, and the text that people see."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def rendered(found: Facts, params: Params) -> str:
    return page.render(found, list(params.sweep.space), params.sweep.logarithmic)


def copied(loop: Any, params: Params) -> Params:
    """Copy a round's store and reports to the paths of these params, and return them."""
    shutil.copytree(loop.params.reports, params.reports)
    shutil.copytree(loop.params.store, params.store)
    return params


def written(params: Params, registry: Registry) -> Parsed:
    return Parsed(page.write(params, registry).read_text())


# -- a whole round -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(loop: Any) -> Path:
    """The page of a whole round."""
    return page.write(loop.params, loop.registry)


def test_a_whole_round_is_told(loop: Any, whole: Path) -> None:
    shown = Parsed(whole.read_text())
    assert [attributes["id"] for attributes in shown.named("section")] == list(SECTIONS)
    assert "missing" not in {attributes.get("class") for attributes in shown.named("p")}
    reports = {name: files.read_json(loop.params.reports / f"{name}.json") for name in facts.REPORTS}
    after = reports["retrain"]["after"]["test"]
    for expected in (
        "retrained-model:v0", f"{100 * after['accuracy']:.1f} %", "of 450 test images", "The best of 4 trials",
        f"{reports['simulation']['failures']:,} of {reports['simulation']['n']:,} answers were wrong",
        *reports["gate"]["reasons"], "no model to compare with", "4 trials: a hint",
        "This is the sweep's best; in production is retrained-model:v0",
        f"{reports['retrain']['hard_examples']:,} of them failures",
        "as many random", "it is presumably wrong more often than on test", "50.0 %", "since 2026-11-23 11:00 UTC",
    ):  # fmt: skip
        assert expected in shown.text
    kinds = re.findall(r'>{"kind": "(\w+)"', (loop.params.reports / "index.html").read_text())
    assert kinds == ["history", "parallel", "reliability", "confidence", "latency", "monitor"]


def test_every_image_has_its_words_and_every_control_its_name(loop: Any, whole: Path) -> None:
    shown = Parsed(whole.read_text())
    images = shown.named("img")
    mistakes = [len(files.read_json(loop.params.reports / f"{n}.json")["worst"]) for n in ("evaluation", "simulation")]
    assert len(images) == sum(mistakes) > 0
    assert all(
        str(one["src"]).startswith("data:image/png;base64,") and "taken for" in str(one["alt"]) for one in images
    )
    named = [one for tag, one in shown.elements if one.get("role") in ("img", "region") and tag != "svg"]
    assert len(named) > 10
    assert all(one["aria-label"] for one in named)
    titled = [one for one in shown.named("svg") if one.get("role") == "img"]
    assert len(titled) == 1  # the lineage, by its <title>
    assert "retrained-model:v0 from digits_dataset:v0, digits-feedback:v0, model-trial" in shown.text
    identifiers = [one["id"] for _, one in shown.elements if one.get("id")]
    assert len(identifiers) == len(set(identifiers))
    assert {f"#{name}" for name in SECTIONS} == {one["href"] for one in shown.named("a")}


@needs_browser
def test_the_page_in_a_browser(whole: Path, tmp_path: Path) -> None:
    with browser.chromium() as tab:
        for width in (400, 1400):
            for dark in (False, True):
                tab.screenshot(tmp_path / "first.png", width, 900, dark)  # sets width and scheme
                tab.open(whole.as_uri())
                tab.wait(lambda: tab.value(DRAWN))
                drawn = tab.value(
                    "[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('svg path').length)"
                )
                assert len(drawn) == 6
                assert min(drawn) > 5
                # Nothing is wider than the page; what must be scrolls in a box of its own.
                assert tab.value("document.documentElement.scrollWidth <= innerWidth")
                wide = tab.value(TOO_WIDE)
                assert wide == []
                shot = tmp_path / f"{width}-{dark}.png"
                tab.screenshot(shot, width, 900, dark)
                background = Image.open(shot).convert("L").getpixel((2, 2))
                assert (background < 60) if dark else (background > 200)
        # The scheme changes while the page is open: the plots are drawn anew.
        before = tab.value(DRAWN)
        tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        tab.wait(lambda: tab.value(DRAWN) > before)
        assert tab.console == []
        assert {url for url in tab.requested if not url.startswith("data:")} == {whole.as_uri()}


@needs_browser
def test_nothing_in_the_page_may_ask_the_network_or_run_what_is_not_its_own(whole: Path) -> None:
    with browser.chromium() as tab:
        tab.open(whole.as_uri())
        tab.value(
            "document.head.append(Object.assign(document.createElement('script'), {textContent: 'window.ran=1'}))"
        )
        tab.value("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))")
        tab.wait(lambda: len(tab.console) >= 2)
        assert tab.value("window.ran") is None
        assert all("Content Security Policy" in said for said in tab.console)


# -- less than a round -------------------------------------------------------------------------------------


def test_with_nothing_there_each_part_says_what_to_type(params: Params, registry: Registry) -> None:
    shown = written(params, registry)
    assert [attributes["id"] for attributes in shown.named("section")] == list(SECTIONS)
    for command in ("make sweep", "make evaluate", "make serve simulate", "make monitor", "make data"):
        assert f"{command} PROFILE=demo" in shown.text
    assert re.search(r"What production taught\s+Not yet; type make retrain PROFILE=demo", shown.text)
    assert "No run is recorded" in shown.text


@pytest.mark.parametrize("name", sorted(facts.REPORTS))
def test_a_damaged_report_affects_its_own_section_only(
    loop: Any, make_params: Callable[..., Params], name: str
) -> None:
    params = copied(loop, make_params())
    for content in ("", "{", "[]", "{}", '{"trials": null, "worst": 3, "model": {}}'):
        (params.reports / f"{name}.json").write_text(content)
        assert isinstance(facts._report(params, name), facts.Absent)
    shown = written(params, Registry(params.store))
    assert ("The best of 4 trials" in shown.text) == (name != "sweep")
    assert shown.text.count("written again by") == (2 if name == "simulation" else 1)
    assert f"{facts.REPORTS[name][1]} PROFILE=demo" in shown.text


def test_images_that_are_gone_leave_their_words(loop: Any, make_params: Callable[..., Params]) -> None:
    params = copied(loop, make_params())
    shutil.rmtree(params.store / "registry" / "versions" / "digits_dataset")
    shown = written(params, Registry(params.store))
    assert shown.named("img") == []
    assert "→ " in shown.text


# -- hostile names ----------------------------------------------------------------------------------------


def poisoned(value: Any, names: set[str], key: str = "") -> Any:
    """Return a report in which every class name and every text that people choose is hostile."""
    if isinstance(value, dict):
        return {(f"{HOSTILE}{k}" if k in names else k): poisoned(v, names, k) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(one, names, key) for one in value]
    free = key in ("reasons", "label", "prediction", "model", "dataset", "candidate", "parent", "optimizer", "error")
    return f"{HOSTILE}{value}" if isinstance(value, str) and free else value


def hostile(loop: Any) -> Facts:
    found = facts.gather(loop.params, loop.registry)
    names = set(map(str, range(10)))
    reports = {name: report for name, report in found.reports.items() if isinstance(report, BaseModel)}
    assert reports.keys() == found.reports.keys()
    node = replace(found.nodes[-1], label=HOSTILE, aliases=(HOSTILE,))
    run = RunRecord(HOSTILE, "sweep", HOSTILE, HOSTILE, {}, found.at, 0, 0.0, url=f"https://x/{HOSTILE}")
    return replace(
        found,
        profile=HOSTILE,
        reports={
            name: type(report).model_validate(poisoned(report.model_dump(mode="json"), names))
            for name, report in reports.items()
        },
        labels={},
        stages=tuple((name, state, HOSTILE) for name, state, _ in found.stages),
        moves=[{**move, "who": HOSTILE, "reason": HOSTILE, "to": HOSTILE} for move in found.moves],
        importance={HOSTILE: 1.0},
        nodes=(*found.nodes[:-1], node),
        runs=(run,),
    )


def test_no_name_becomes_markup(loop: Any) -> None:
    tame = Parsed(rendered(facts.gather(loop.params, loop.registry), loop.params))
    shown = Parsed(rendered(hostile(loop), loop.params))
    assert len(shown.named("script")) == len(tame.named("script"))
    assert len(shown.named("img")) == len(tame.named("img"))
    assert not [key for _, attributes in shown.elements for key in attributes if key.startswith("on")]
    assert shown.text.count(HOSTILE) > 100


@needs_browser
def test_no_name_runs_in_a_browser(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(rendered(hostile(loop), loop.params))
    with browser.chromium() as tab:
        tab.open(path.as_uri())
        tab.wait(lambda: tab.value(DRAWN))
        # Tooltips are made from names too.
        tab.value("document.querySelectorAll('.chart').forEach(c => c.chart.dispatchAction("
                  "{type: 'showTip', seriesIndex: c.chart.getOption().series.length - 1, dataIndex: 0}))")  # fmt: skip
        assert "<img src=x" in tab.value("document.body.innerText")
        assert tab.value("window.pwned") is None
        assert tab.value("document.querySelectorAll('img[src=x]').length") == 0
        assert tab.console == []


@needs_browser
def test_a_failed_trial_is_not_the_best_so_far(loop: Any, tmp_path: Path) -> None:
    found = facts.gather(loop.params, loop.registry)
    report = found.reports["sweep"].model_dump(mode="json")
    report["trials"][0] |= {"status": "failed", "accuracy": 1.0}
    for trial in report["trials"][1:]:
        trial |= {"status": "finished", "accuracy": 0.5}
    sweep = type(found.reports["sweep"]).model_validate(report)
    path = tmp_path / "index.html"
    path.write_text(rendered(replace(found, reports={**found.reports, "sweep": sweep}), loop.params))
    with browser.chromium() as tab:
        tab.open(path.as_uri())
        tab.wait(lambda: tab.value(DRAWN))
        line = tab.value("document.querySelector('.chart').chart.getOption().series[0].data.map(one => one[1])")
    assert line == [0.5] * (len(report["trials"]) - 1)


# -- the library ------------------------------------------------------------------------------------------


def test_the_library_is_the_one_that_its_page_describes() -> None:
    folder = Path(page.__file__).parent / "vendor"
    (told,) = re.findall(r"SHA-256[^:]*: ([0-9a-f]{64})", (folder / "README.md").read_text())
    assert hashlib.sha256((folder / "echarts.min.js").read_bytes()).hexdigest() == told
    assert "Apache License" in (folder / "LICENSE").read_text()


def test_the_page_holds_no_number_that_json_has_not(whole: Path) -> None:
    text = whole.read_text()
    assert 600_000 < len(text) < 1_500_000
    islands = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert len(islands) == 6
    for island in islands:
        json.loads(island, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
