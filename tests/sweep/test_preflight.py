"""The checks before the first trial, as far as one machine shows them; for nodes see tests/e2e/test_cluster.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from flywheel.sweep import SweepError, preflight
from flywheel.sweep.checkpoints import CheckpointStore


def test_the_code_of_the_package_is_small() -> None:
    assert 10_000 < preflight.check_code() < 2_000_000


def test_a_package_too_large_is_refused_with_its_largest_files(tmp_path: Path) -> None:
    for name, megabytes in (("model.bin", 15), ("images.npy", 9), ("small.py", 0)):
        (tmp_path / name).write_bytes(bytes(megabytes * 1_000_000))
    with pytest.raises(SweepError) as raised:
        preflight.check_code(tmp_path)
    assert "has 24.0 MB and would be sent to every node (at most 20.0 MB)" in str(raised.value)
    assert "move files out that are not code: model.bin (15.0 MB), images.npy (9.0 MB)" in str(raised.value)


def test_the_checkpoint_store_is_tried_before_the_first_trial(tmp_path: Path) -> None:
    preflight.check_store(CheckpointStore(str(tmp_path / "shared")))
    assert list((tmp_path / "shared").iterdir()) == []
    (tmp_path / "file").write_text("")
    for uri, reason in (
        (f"{tmp_path}/file/below", "Not a directory"),
        ("/proc/nothing", "No such file or directory"),
        ("nowhere://bucket/x", "Protocol not known: nowhere"),
        ("s3://bucket/x", "Install s3fs to access S3"),  # the package is none of ours
    ):
        with pytest.raises(SweepError) as raised:
            preflight.check_store(CheckpointStore(uri))
        assert str(raised.value).startswith(f"{uri} cannot be written (")
        assert reason in str(raised.value)
        assert str(raised.value).endswith("; fix that or set paths.checkpoints")


@pytest.mark.parametrize(
    ("gpus", "line"),
    [
        (0, None),
        (1, None),
        (2, None),
        (0.5, None),
        (0.25, None),
        (0.33, None),
        (0.6, "leaves 40% of each GPU unused; 1 fills it with as many trials, 0.5 with one more"),
        (0.4, "leaves 20% of each GPU unused; 0.5 fills it with as many trials, 0.3333 with one more"),
    ],
)
def test_the_idle_share_of_a_gpu_is_reported(gpus: float, line: str | None) -> None:
    said = preflight.idle_share(gpus)
    assert said == (line and f"sweep.gpus_per_trial={gpus:g} {line}")


def test_a_node_without_room_for_its_copy_of_the_images_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.write("here", b"token")
    answer = {"seen": True, "error": None, "versions": preflight.versions(), "free": 1_000_000}
    assert preflight._faults(answer, store, "here", 0, 1_000_000) == []
    (fault,) = preflight._faults(answer, store, "here", 0, 2_500_000)
    assert fault == "1.0 MB free for temporary files and its copy of the images needs 2.5 MB; free space there"
