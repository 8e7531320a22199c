"""The server loads a new production model under load, and keeps the old one if the new one cannot be loaded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import requests
from served import Server, png, publish
from waiting import wait_until


def served_model(server: Server) -> str:
    return str(requests.get(f"{server.url}/model", timeout=60).json()["model"])


def test_ten_swaps_under_load_fail_no_request(server: Server) -> None:
    models = [publish(server.registry, server.folder, seed) for seed in (1, 2)]
    labels = {model.label for model in models}
    done = threading.Event()

    def client(seed: int) -> list[tuple[int, str]]:
        answers = []
        with requests.Session() as session:
            while not done.is_set():
                answer = session.post(f"{server.url}/predict", data=png(seed), timeout=60)
                answers.append((answer.status_code, answer.json().get("model", answer.text)))
        return answers

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, seed) for seed in range(4)]
        try:
            for number in range(10):
                model = models[(number + 1) % 2]
                server.produce(model)
                wait_until(lambda model=model: served_model(server) == model.label)
        finally:
            done.set()
        answers = [answer for future in clients for answer in future.result()]
    assert {status for status, _ in answers} == {200}
    assert {model for _, model in answers} == labels
    assert len(answers) > 40
    assert server.predict(png()).json()["model"] == "model-1:v0"


def test_a_damaged_model_is_reported_and_the_old_one_keeps_serving(server: Server) -> None:
    damaged = publish(server.registry, server.folder, 3)
    good = server.registry.resolve("model-1")
    entry = damaged.files["model.safetensors"]
    (blob,) = [path for path in server.params.store.rglob(f"*{entry.sha256[2:]}*") if path.is_file()]
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    try:
        server.produce(damaged)
        wait_until(lambda: requests.get(f"{server.url}/model", timeout=60).json()["failed_swaps"] >= 1)
        told = requests.get(f"{server.url}/model", timeout=60).json()
        assert damaged.ref in told["swap_error"]
        assert "cannot be served" in told["swap_error"]
        assert told["model"] == good.label
        assert server.predict(png()).json()["model"] == good.label
        assert "cannot be served" in (server.params.store / "logs" / "serve.log").read_text()
        assert server.metric("flywheel_failed_swaps") >= 1
    finally:
        server.produce(good)
    wait_until(lambda: requests.get(f"{server.url}/model", timeout=60).json()["swap_error"] is None)


def test_a_model_with_another_image_size_is_loaded_too(server: Server) -> None:
    small = publish(server.registry, server.folder, 4, image_size=24)
    server.produce(small)
    wait_until(lambda: served_model(server) == small.label)
    assert server.predict(png()).json()["model"] == small.label
    server.produce(server.registry.resolve("model-1"))
    wait_until(lambda: served_model(server) == "model-1:v0")
