"""What the commands that look show, of odd files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flywheel.commands import status
from flywheel.registry import Registry, RegistryError


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


def test_verifying_tells_what_is_damaged_from_what_was_never_downloaded(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    elsewhere, here = Registry(tmp_path / "elsewhere"), Registry(tmp_path / "here")
    here.publish("thing", "test", {"a": tmp_path / "a"})
    here.add_manifest(elsewhere.publish("other", "test", {"b": tmp_path / "b"}))
    assert [line.split()[3:] for line in status.verify(here)] == [["not", "in", "this", "store"], ["intact"]]
    shutil.rmtree(tmp_path / "here" / "registry" / "versions" / "thing" / "v0" / "files")
    with pytest.raises(RegistryError, match=r"^damaged: thing:v0$"):
        list(status.verify(here))
