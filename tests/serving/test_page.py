"""The page at / shows the prediction for a chosen image and requests nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

import browser
import pytest
from served import CLASSES, Server, png


@pytest.mark.skipif(browser.BINARY is None, reason="no Chromium here (Debian: apt install chromium)")
def test_the_page_shows_the_prediction(server: Server, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png(7))
    (tmp_path / "text.png").write_bytes(b"no image")
    expected = server.predict(png(7)).json()
    with browser.chromium() as page:
        page.open(f"{server.url}/")
        page.wait(lambda: page.value("document.getElementById('model').textContent") == "model-1:v0")
        page.choose_file("#file", tmp_path / "image.png")
        page.wait(lambda: not page.value("document.getElementById('result').hidden"))
        assert page.value("document.getElementById('label').textContent").startswith(expected["label"])
        bars = page.value("[...document.querySelectorAll('.row')].map(row => row.children[0].textContent)")
        assert sorted(bars) == sorted(CLASSES)
        for name, width, dark in (("wide.png", 1400, False), ("narrow.png", 400, True)):
            page.screenshot(tmp_path / name, width, 800, dark)
            assert (tmp_path / name).stat().st_size > 5000
        assert page.console == []
        assert {url for url in page.requested if not url.startswith((f"{server.url}/", "blob:", "data:"))} == set()
        page.choose_file("#file", tmp_path / "text.png")
        page.wait(lambda: not page.value("document.getElementById('error').hidden"))
        assert "not an image" in page.value("document.getElementById('error').textContent")
