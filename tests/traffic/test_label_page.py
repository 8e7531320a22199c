"""The page of `make label`: who may use it, and what it stores."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import requests
import uvicorn
from made_traffic import answered, record_all
from PIL import Image
from waiting import wait_until

from flywheel.data.dataset import Dataset
from flywheel.params import StorePaths
from flywheel.traffic import labels, records, sampling
from flywheel.traffic.label_app import LabelApp, Session
from flywheel.traffic.labels import LabelLog

CLASSES = ("cat", "dog", "fox")


def dataset(class_names: tuple[str, ...]) -> Dataset:
    """Return a data set with six training images of each class but the last."""
    truth = np.repeat(np.arange(len(class_names) - 1), 6)
    images = np.repeat(truth.astype(np.uint8), 8 * 8 * 3).reshape(-1, 8, 8, 3)
    return Dataset(
        images, truth, np.zeros((len(truth), 32), np.uint8), np.arange(len(truth)),
        {"train": np.arange(len(truth))}, {"class_names": class_names},
    )  # fmt: skip


class Browser(requests.Session):
    """It sends what the page sends."""

    def __init__(self, url: str):
        super().__init__()
        self.url = url
        self.headers["Origin"] = url

    def request(self, method: str, path: str, **options: Any) -> requests.Response:  # type: ignore[override]
        return super().request(method, f"{self.url}/{path}", timeout=30, **options)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("state").json()
        return found

    def label(self, label: str | None, verdict: str = "") -> dict[str, Any]:
        """Label the image that is shown; return the next state."""
        body = {"prediction_id": self.state()["image"], "label": label, "verdict": verdict}
        found: dict[str, Any] = self.post("label", json=body).json()
        return found


@dataclass
class Served:
    """A running page."""

    url: str
    app: LabelApp
    session: Session
    paths: StorePaths
    finished: threading.Event

    def held(self) -> dict[str, tuple[str | None, str]]:
        """Return prediction_id -> (label, verdict) of what is on disk."""
        return {
            made: (given.label, given.verdict)
            for _, by_prediction in labels.read(self.paths)
            for made, of_labellers in by_prediction.items()
            for given in of_labellers.values()
            if given.said
        }

    def browser(self) -> Browser:
        """Return a browser that opened the printed URL."""
        opened = Browser(self.url)
        assert opened.get(f"?token={self.app.token}").status_code == 200
        return opened

    def open_in(self, tab: browser.Page) -> None:
        """Open the printed URL and wait for the image."""
        tab.open(f"{self.url}/?token={self.app.token}")
        tab.wait(lambda: tab.value("state?.image"))


@contextlib.contextmanager
def serving(
    paths: StorePaths, labeller: str, class_names: tuple[str, ...] = CLASSES, second_above: float | None = None
) -> Iterator[Served]:
    sample = sampling.unfinished(paths, answered().model) or sampling.draw(paths, answered().model, 200, frozenset())
    assert sample is not None
    taker = LabelLog(paths, f"page{sample.number}-{labeller}", lambda: class_names, 30.0)
    session = Session(paths, sample, taker, labeller, second_above)
    listening = socket.create_server(("127.0.0.1", 0))
    port, finished = listening.getsockname()[1], threading.Event()
    app = LabelApp(paths, session, dataset(class_names), port, finished.set)
    server = uvicorn.Server(uvicorn.Config(app.build(), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_until(lambda: server.started, "the page is served")
        yield Served(f"http://127.0.0.1:{port}", app, session, paths, finished)
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def page(paths: StorePaths) -> Iterator[Served]:
    """The page with six images."""
    record_all(paths, map(answered, range(6)))
    with serving(paths, "ann") as served:
        yield served


@pytest.fixture
def tab() -> Iterator[browser.Page]:
    """A tab of a browser."""
    if browser.BINARY is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    with browser.chromium() as opened:
        yield opened


def press(tab: browser.Page, key: str, text: str) -> None:
    """Press a key that sends a text."""
    tab.ask("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
    tab.ask("Input.dispatchKeyEvent", type="keyUp", key=key)


def test_labels_are_given_undone_and_finished(page: Served) -> None:
    client = page.browser()
    state = client.state()
    assert (state["done"], state["total"], state["classes"], state["can_undo"]) == (0, 6, list(CLASSES), False)
    first = state["image"]
    for label, verdict in (("cat", ""), (None, "not_sure"), (None, "not_ours")):
        state = client.label(label, verdict)
    assert state["done"] == 3
    assert sorted(page.held().values(), key=str) == [("cat", ""), (None, "not_ours"), (None, "not_sure")]
    page.paths.traffic_labels.rename(page.paths.root / "moved")
    page.paths.traffic_labels.write_text("in the way")
    refused = client.post("undo", json={})
    assert (refused.status_code, refused.json()) == (503, {"error": "the label cannot be stored: File exists"})
    page.paths.traffic_labels.unlink()
    (page.paths.root / "moved").rename(page.paths.traffic_labels)
    assert client.state() == state
    undone = client.post("undo", json={}).json()
    assert undone["done"] == 2
    assert len(page.held()) == 2
    assert page.held()[first] == ("cat", "")
    assert client.state() == undone  # a reload shows the same image
    ended = client.post("finish", json={}).json()
    assert (ended["finished"], ended["image"]) == (True, None)
    assert page.finished.wait(30)
    assert not any(page.paths.traffic_claims.iterdir())


def test_the_image_and_the_training_examples_are_shown(page: Served) -> None:
    client = page.browser()
    made = client.state()["image"]
    row = next(row for row in records.read(page.paths) if row["prediction_id"] == made)
    sent = client.get(f"image/{made}")
    assert sent.content == records.image_path(page.paths, row["hash"]).read_bytes()
    strip = Image.open(io.BytesIO(client.get("examples/1").content))
    assert strip.size == (5 * 8, 8)
    empty = Image.open(io.BytesIO(client.get("examples/2").content))
    assert empty.size == (1, 1)  # no training image of this class
    assert client.get("image/..%2f..%2ftoken").status_code == 404


def test_a_wrong_label_is_refused_and_the_image_stays(page: Served) -> None:
    client = page.browser()
    made = client.state()["image"]
    for body, status in (
        ({"prediction_id": made, "label": "wolf"}, 409),
        ({"prediction_id": records.new_id(), "label": "cat"}, 409),
        ({"label": "cat"}, 400),
        ([], 400),
    ):
        assert client.post("label", json=body).status_code == status
    assert client.state()["image"] == made
    assert page.held() == {}


def test_the_token_works_once_and_the_cookie_is_strict(page: Served) -> None:
    assert requests.get(f"{page.url}/", timeout=30).status_code == 403
    assert requests.get(f"{page.url}/?token=wrong", timeout=30).status_code == 403
    first = requests.get(f"{page.url}/?token={page.app.token}", timeout=30, allow_redirects=False)
    assert "httponly" in first.headers["set-cookie"].lower()
    assert "samesite=strict" in first.headers["set-cookie"].lower()
    assert requests.get(f"{page.url}/?token={page.app.token}", timeout=30).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": None}, 403),
        ({"Cookie": "other=1"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
def test_other_hosts_pages_and_browsers_are_refused(page: Served, headers: dict[str, str | None], status: int) -> None:
    client = page.browser()
    made = client.state()["image"]
    client.headers["Content-Type"] = "application/json"
    if "Cookie" in headers:
        client.cookies.clear()
    body = f'{{"prediction_id": "{made}", "label": "cat"}}'
    refused = client.post("label", data=body, headers=headers)  # type: ignore[arg-type]
    assert refused.status_code == status
    assert page.held() == {}


def test_two_people_label_different_images(page: Served) -> None:
    with serving(page.paths, "bob") as other:
        clients = [page.browser(), other.browser()]
        shown = [client.state()["image"] for client in clients]
        for turn in range(4):
            shown.append(clients[turn % 2].label("cat")["image"])
        assert len(set(shown)) == 6


def test_a_label_that_contradicts_a_confident_answer_counts_when_it_is_given_twice(page: Served) -> None:
    with serving(page.paths, "ann", second_above=0.6) as strict:  # each of the six answers: cat, 0.7
        client = strict.browser()

        def give(label: str) -> dict[str, Any]:
            return {"was": client.state()["image"], **client.label(label)}

        contradicted = give("dog")
        assert (contradicted["done"], strict.held()) == (0, {contradicted["was"]: ("dog", "unconfirmed")})
        assert sampling.estimates(page.paths) == []
        assert client.post("undo", json={}).json()["image"] == contradicted["was"]
        first = [contradicted["was"], *(give(label)["was"] for label in ("dog", "dog", "fox", "cat", "cat", "cat"))][1:]
        assert len(set(first)) == 6
        (found,) = sampling.estimates(page.paths)
        assert (found.n, found.undecided) == (3, 3)
        again = [give(label)["was"] for label in ("dog", "cat", "dog", "fox")]  # agrees, gives in, changes twice
        assert again == [*first[:3], first[2]]
        assert give("fox")["was"] == first[2]
        assert client.state()["image"] is None
    assert [strict.held()[made] for made in first[:3]] == [("dog", ""), ("cat", ""), ("fox", "")]
    assert sampling.estimates(page.paths)[0].n == 6
    assert sampling.unfinished(page.paths, answered().model) is None


def test_images_on_which_people_disagree_come_again_until_they_agree(page: Served) -> None:
    client = page.browser()
    shown = client.state()["image"]
    client.label("dog")
    api = LabelLog(page.paths, "replica1", lambda: CLASSES, 30.0)
    assert api.add([{"prediction_id": shown, "label": "fox"}])[0].status == "conflict"
    page.session.finish()
    with serving(page.paths, "bob") as other:
        assert other.session.state()["total"] == 6  # bob does not disagree with anybody
        other.session.finish()
    with serving(page.paths, "ann") as again:
        client = again.browser()
        for _ in range(5):
            state = client.label("cat")
        assert (state["image"], state["done"]) == (shown, 5)
        assert client.label("fox")["done"] == 6
    (found,) = sampling.estimates(page.paths)
    assert (found.n, found.undecided, sampling.disputed(page.paths, "ann")) == (6, 0, [])


def test_the_keyboard_alone_labels(page: Served, tab: browser.Page) -> None:
    page.open_in(tab)
    for key, count in (("2", "1 of 6"), ("n", "2 of 6"), ("u", "1 of 6"), ("1", "2 of 6")):
        press(tab, key, key)
        tab.wait(lambda count=count: tab.value("document.getElementById('count').textContent") == count)
    assert sorted(page.held().values(), key=str) == [("cat", ""), ("dog", "")]
    assert not tab.console
    assert all(url.startswith((page.url, "data:")) for url in tab.requested)
    roles = tab.ask("Accessibility.getFullAXTree")["nodes"]
    named = {(node["role"]["value"], node.get("name", {}).get("value")) for node in roles if "role" in node}
    assert ("image", "the image to label") in named
    assert any(role == "button" and name and "dog" in name for role, name in named)


def test_a_browser_with_the_cookie_sends_no_label_from_another_page(
    page: Served, tab: browser.Page, tmp_path: Path
) -> None:
    """The other page is on another port of this machine, for which SameSite=Strict sends the cookie."""
    (tmp_path / "index.html").write_text("<title>other</title>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        page.open_in(tab)
        body = json.dumps({"prediction_id": tab.value("state.image"), "label": "cat"})
        post = f"{{method: 'POST', headers: {{'Content-Type': 'TYPE'}}, body: {body!r}, credentials: 'include'}}"
        for origin in (f"http://127.0.0.1:{other.server_port}", page.url):
            tab.open(f"{origin}/")
            for kind in ("text/plain", "application/json"):
                script = f"fetch('{page.url}/label', {post.replace('TYPE', kind)}).catch(error => error)"
                tab.ask("Runtime.evaluate", expression=script, awaitPromise=True)
            assert len(page.held()) == (origin == page.url)
        other.shutdown()


@pytest.mark.parametrize(
    ("names", "keys", "label"),
    [
        pytest.param(tuple("0123456789"), [("7", "7")], "7", id="digits have their own keys"),
        pytest.param(
            tuple(f"class {number:03}" for number in range(200)), [*zip("117", "117", strict=True), ("Enter", "\r")],
            "class 117", id="many classes have a search box",
        ),
    ],
)  # fmt: skip
def test_classes_are_chosen_by_keys(
    paths: StorePaths, tab: browser.Page, names: tuple[str, ...], keys: list[tuple[str, str]], label: str
) -> None:
    record_all(paths, [answered()])
    with serving(paths, "ann", names) as page:
        page.open_in(tab)
        for key, text in keys:
            press(tab, key, text)
        tab.wait(lambda: len(page.held()) == 1)
        assert list(page.held().values()) == [(label, "")]
