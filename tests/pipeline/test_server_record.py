"""The record of the running server, and what answers at its URL."""

from __future__ import annotations

import pytest
import requests

from flywheel.pipeline.server_record import Served


@pytest.mark.parametrize("body", [b"true", b"null", b"3", b'"ok"', b"<html>", b"\xff"])
def test_what_answers_in_place_of_a_server_that_is_gone_is_none(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    response = requests.Response()
    response.status_code, response._content = 200, body
    monkeypatch.setattr(requests, "get", lambda *_, **__: response)
    served = Served("http://127.0.0.1:8000", None, "", "", "")
    assert not served.answers()
