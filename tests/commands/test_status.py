"""What the commands that look show, of odd files."""

from __future__ import annotations

from pathlib import Path

import pytest

from flywheel.commands import status


@pytest.mark.parametrize(
    ("lines", "shown"),
    [(8, ["    one", "    t\N{REPLACEMENT CHARACTER}o"]), (1, ["    t\N{REPLACEMENT CHARACTER}o"]), (0, [])],
)
def test_the_last_lines_of_a_log_are_shown_whatever_was_printed_there(
    tmp_path: Path, lines: int, shown: list[str]
) -> None:
    log = tmp_path / "serve.log"
    log.write_bytes(b"one\nt\xffo\n")
    assert list(status.logs([log], lines)) == [str(log), *shown]
    assert list(status.logs([tmp_path / "other.log"], lines)) == [f"{tmp_path / 'other.log'} (none yet)"]
