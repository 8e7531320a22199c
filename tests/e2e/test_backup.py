"""A backup that is made while a stage writes, restored under another path, has everything that was finished."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import made_models
import scripts

from flywheel.registry import Registry

SETTINGS = "data.image_size=8 tracking.wandb=disabled"
# Publishes model after model and promotes each, until it is killed.
WRITER = """
import itertools, sys
from pathlib import Path
import numpy as np
from flywheel.registry import Registry

registry, made = Registry(Path(sys.argv[1])), Path(sys.argv[2])
for number in itertools.count():
    made.mkdir(exist_ok=True)
    (made / "model.bin").write_bytes(np.random.default_rng(number).bytes(300_000))
    version = registry.publish(f"model-{number}", "model", made, metadata={}, inputs={"dataset": [sys.argv[3]]})
    registry.link(version, "digits-classifier", ("candidate", "production"), reason="a test")
    print(number, flush=True)
"""


def backup_command(store: Path, archive: Path) -> list[str]:
    """Return the command of docs/operate.md for a profile's store."""
    page = (scripts.ROOT / "docs" / "operate.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("tar ") and "-czf" in line).partition("#")[0]
    return [{"store": str(store.parent), "backup.tar.gz": str(archive)}.get(word, word) for word in line.split()]


def test_a_store_that_is_copied_while_it_is_written_is_sound_under_another_path(tmp_path: Path) -> None:
    params = scripts.load(tmp_path, SETTINGS)
    data = made_models.publish_dataset(Registry(params.store), params, made_models.dataset(params))
    arguments = [sys.executable, "-c", WRITER, str(params.store), str(tmp_path / "made"), data.ref]
    with subprocess.Popen(arguments, text=True, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 20:
                break
        packed = subprocess.run(
            backup_command(params.store, tmp_path / "backup.tar.gz"), capture_output=True, text=True
        )
        writer.kill()
    assert packed.returncode in (0, 1), packed.stderr  # 1: a file changed meanwhile

    other = tmp_path / "another machine"
    (other / "store").mkdir(parents=True)
    subprocess.run(["tar", "-C", other / "store", "-xzf", tmp_path / "backup.tar.gz"], check=True)
    registry = Registry(scripts.load(other, SETTINGS).store)
    production = registry.resolve("digits-classifier:production")
    assert int(production.name.partition("-")[2]) >= 20
    assert [one.version.label for one in registry.lineage(production)][1:] == ["digits_dataset:v0"]
    done = subprocess.run(
        scripts.command(other, "artifacts", SETTINGS, "--verify"), cwd=scripts.ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    verified = {line.split()[0] for line in done.stdout.splitlines()}
    moved = {entry["to"].partition("@")[0] for entry in registry.history("digits-classifier")}
    assert {f"{name}:v0" for name in moved} <= verified
