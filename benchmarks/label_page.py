"""How fast labels can be given on the page of `make label`: Chromium's key events, each as soon as an image is shown.

    python benchmarks/label_page.py        (make bench BENCH=label_page, under a minute)

The sample is of the digits, beside 100,000 records of a month. The time of the server is what the browser waits for the
answer to the label and for the next image, so it includes the connection.

Reads   params.yaml; needs Chromium (Debian: apt install chromium)
Writes  reports/bench.json; with --publish also benchmarks/results/label_page.json and its table in docs/traffic.md
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import numpy as np
import records
import serving

from flywheel import cli
from flywheel.data import dataset
from flywheel.registry import Registry
from flywheel.traffic.capture import Answered, Recorder
from flywheel.traffic.records import new_id

sys.path.append(str(harness.ROOT / "tests" / "support"))
WATCH = """
performance.setResourceTimingBufferSize(10000);
pressed = []; shown = [];
addEventListener('keydown', () => pressed.push(performance.now()), true);
document.getElementById('image').addEventListener('load', () => shown.push(performance.now()));
"""
SHOWN = "new Promise(done => {{ const look = () => shown.length > {} ? done() : setTimeout(look, 1); look(); }})"
WAITED = """
performance.getEntriesByType('resource').map(entry => [entry.name, entry.responseEnd - entry.requestStart])
  .filter(entry => /label$|image/.test(entry[0]))
"""


def main() -> None:
    """Measure and write the table."""
    options = harness.options(
        __doc__,
        images=(200, "images to label"),
        records=(100_000, "records of other predictions"),
        publish=harness.PUBLISH,
    )
    harness.require("chromium", importlib.import_module("browser").BINARY)
    with tempfile.TemporaryDirectory(prefix="fw-label-") as folder:
        row = measure(Path(folder), options.images, options.records)
    result = {"label_page": row, "records": options.records, **harness.stamp()}
    harness.publish("label_page", "traffic.md", result, table, commit=options.publish)


def table(result: Mapping[str, Any]) -> str:
    """Return the figures in Markdown."""
    row = result["label_page"]
    heads = ("labels", "labels a minute, without time to think", "from key to next image", "server, per image")
    waits = (f"{row[key]['median']:.1f} ms (at most {row[key]['most']:.0f})" for key in ("wait_ms", "server_ms"))
    text = f"Medians; {result['records']:,} records of other predictions lie beside the sample."
    return harness.markdown(heads, [(row["labels"], f"{row['per_minute']:,.0f}", *waits)]) + harness.note(result, text)


def measure(folder: Path, images: int, others: int) -> dict[str, Any]:
    """Label a sample with keys and return the rate and the times."""
    overrides = f"{harness.scratch(str(folder))} label.budget={images}"
    params = harness.params("demo", overrides)
    harness.script("data", "demo", overrides, quiet=True)
    serving._publish(params, folder / "model")
    registry = Registry(params.store)
    ref = registry.aliases(params.registered_model)["production"]
    opened = dataset.open_directory(registry.open(registry.resolve(params.dataset_name)))
    records.write(params.store_paths, "other", others, ref, opened.class_names, min(records.LABELS, others))
    recorder = Recorder(params.store_paths, params.traffic, "replica")
    for index in opened.indices["simulation"][:images]:
        recorder.add(Answered(new_id(), np.asarray(opened.images[index]), None, ref, "0", [0.1] * 10, 0.001))
    recorder.close(60)
    words = [sys.executable, "scripts/label.py", "--profile", "demo", "--set", overrides]
    with subprocess.Popen(words, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(line for line in server.stdout if "open http" in line).split()[-1]
            return label(url, images)
        finally:
            server.terminate()


def label(url: str, images: int) -> dict[str, Any]:
    """Press a key for every image but the last; return what the page saw."""
    with importlib.import_module("browser").chromium() as tab:
        tab.open(url)
        tab.wait(lambda: tab.value("document.getElementById('image').complete && state !== null"))
        tab.value(WATCH)
        for number in range(images - 1):
            key = str(number % 10)
            tab.ask("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
            tab.ask("Runtime.evaluate", expression=SHOWN.format(number), awaitPromise=True)
        assert tab.value("state.done") == images - 1
        pressed, shown, waited = tab.value("pressed"), tab.value("shown"), tab.value(WAITED)
    labels, sent = ([ms for name, ms in waited if ("image" in name) is kind] for kind in (False, True))
    return {
        "labels": len(shown),
        "per_minute": 60_000 * len(shown) / (shown[-1] - pressed[0]),
        "wait_ms": harness.extent(np.subtract(shown, pressed).tolist()),
        "server_ms": harness.extent([sum(each) for each in zip(labels, sent[-len(labels) :], strict=True)]),
    }


if __name__ == "__main__":
    cli.main(main)
