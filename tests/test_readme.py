"""The commands in README.md and docs/ exist, and those of the README run in a fresh clone."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import checkouts
import numpy as np
import pytest
import yaml
from PIL import Image
from served import free_port

from flywheel.params import file as params_file
from flywheel.registry import Registry

if TYPE_CHECKING:
    from wandb_double import WandbDouble

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"cat", "cd", "curl", "du", "git", "head", "sed", "systemctl", "tar"}  # programs that are not ours
ARTIFACT = re.compile(r"[\w.-]+(:v\d+|:[a-z]+|@\w+)?")
CRON = re.compile(r"^(?:[\d*/,-]+\s+){5}(.*)$", re.M)


@dataclass(frozen=True)
class Command:
    """A simple shell command: its environment variables, the program, the arguments."""

    settings: Mapping[str, str]
    program: str
    arguments: tuple[str, ...]


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    return [block for found, block in fenced if found == language]


def lines_of(text: str) -> list[str]:
    """Return the shell commands of a page: in sh blocks, crontabs, workflows and in the text."""
    found = [line for block in blocks(text, "sh") for line in block.splitlines()]
    for block in (block for block in blocks(text, "yaml") if "jobs:" in block):
        found += [line for step in steps(block) for line in step.get("run", "").splitlines()]
    found += [line for block in blocks(text, "") for line in CRON.findall(block)]
    found += re.findall(r"`((?:[A-Z_]+=\S+ )*(?:make|\.venv/bin/\w+)(?: [^`]*)?)`", text)
    return [line for line in found if line.strip() and not line.lstrip().startswith("#")]


def steps(workflow: str) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(workflow)["jobs"].values() for step in job["steps"]]


def commands_of(line: str) -> Iterator[Command]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = [*lexer, "&&"]
    while words:
        end = next(index for index, word in enumerate(words) if word in ("&&", "||", "|", ">", ";"))
        part, words = words[:end], words[end + 1 :] if words[end] != ">" else words[end + 2 :]
        settings = {}
        while part and re.match(r"\w+=", part[0]):
            name, _, settings[name] = part.pop(0).partition("=")
        if part:
            yield Command(settings, part[0], tuple(part[1:]))


@functools.cache
def makefile() -> tuple[frozenset[str], frozenset[str]]:
    """Return the Makefile's targets and variables."""
    text = (ROOT / "Makefile").read_text()
    return frozenset(re.findall(r"^([a-z-]+):", text, re.M)), frozenset(re.findall(r"\b([A-Z_]+)\b", text))


def benchmarks() -> dict[str, list[str]]:
    """Return the values that `make bench BENCH=` and `make bench-long BENCH_LONG=` accept."""
    text = (ROOT / "Makefile").read_text()
    lists = {"BENCH": "BENCHES", "BENCH_LONG": "STUDIES"}
    return {name: re.findall(rf"^{kept} := (.*)$", text, re.M)[0].split() for name, kept in lists.items()}


@functools.cache
def help_of(script: str) -> str:
    return subprocess.run(
        [sys.executable, f"scripts/{script}.py", "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def mistakes(command: Command) -> Iterator[str]:
    """Yield the mistakes in a command; a value that contains … stands for any value."""
    if command.program.startswith(".venv/bin/"):
        if not Path(sys.prefix, "bin", Path(command.program).name).exists():
            yield f"{command.program} is not there"
        if command.arguments[:1] and command.arguments[0].startswith("scripts/"):
            yield from wrong_flags(Path(command.arguments[0]).stem, command.arguments[1:])
        return
    if command.program != "make":
        if command.program not in OTHERS and not re.fullmatch(r"python[\d.]*", command.program):
            yield f"{command.program}: unknown program"
        return
    targets, variables = makefile()
    values = dict(word.split("=", 1) for word in command.arguments if "=" in word)
    goals = [word for word in command.arguments if "=" not in word and "…" not in word]
    yield from (f"no target {goal}" for goal in goals if goal not in targets)
    yield from (f"no variable {name}" for name in values if name not in variables)
    for name in ("MODEL", "A", "B"):
        if name in values and "…" not in values[name] and not ARTIFACT.fullmatch(values[name]):
            yield f"{name}={values[name]} is no artifact"
    profile, overrides = values.get("PROFILE", "cifar10"), values.get("SET", "")
    if "…" not in profile + overrides:
        try:
            params_file.load(ROOT / "params.yaml", profile, overrides)
        except params_file.ParamsError as error:
            yield str(error)
    for name, kept in benchmarks().items():
        yield from (f"no benchmark {word}" for word in values.get(name, "").split() if word not in kept)
    for goal in goals:
        if (ROOT / "scripts" / f"{goal}.py").exists() and "ARGS" in values:
            yield from wrong_flags(goal, shlex.split(values["ARGS"]))


def wrong_flags(script: str, arguments: tuple[str, ...] | list[str]) -> Iterator[str]:
    if not (ROOT / "scripts" / f"{script}.py").exists():
        yield f"no script {script}"
        return
    for flag in (word for word in arguments if word.startswith("-")):
        if not re.search(rf"(?<!\S){flag}(?![\w-])", help_of(script)):
            yield f"{script} has no {flag}"


def test_make_bench_runs_the_named_benchmarks_in_order() -> None:
    def shown(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(["make", "-n", "READY=", *words], cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    kept = benchmarks()
    for name in (*kept["BENCH"], *kept["BENCH_LONG"]):
        assert (ROOT / "benchmarks" / f"{name}.py").exists()
    whole = "".join(f"exec .venv/bin/python benchmarks/{name}.py \n" for name in kept["BENCH"])
    assert shown("bench") == (0, whole, "")
    two = ("bench-long", "BENCH_LONG=loop compact", "ARGS=--seeds 2")
    assert shown(*two)[1].splitlines() == [
        f"exec .venv/bin/python benchmarks/{name}.py --seeds 2" for name in ("loop", "compact")
    ]
    for wrong in ("BENCH=", "BENCH=serving srving"):
        done = subprocess.run(["make", "bench", "READY=", wrong], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {wrong}: choose of {' '.join(kept['BENCH'])}\n")
        assert done.stdout == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_on_a_page_exists(page: Path) -> None:
    wrong = {
        line: found
        for line in lines_of(page.read_text())
        if (found := [fault for command in commands_of(line) for fault in mistakes(command)])
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("make swep", "no target swep"),
        ("make sweep PROFIL=demo", "no variable PROFIL"),
        ("make sweep PROFILE=dem", "PROFILE=dem: unknown profile; choose one of cifar10, laptop, demo"),
        ('make data SET="sweep.trails=4"', "SET: sweep.trails: unknown key; did you mean sweep.trials?"),
        ("make artifacts ARGS=--verfy", "artifacts has no --verfy"),
        ("make bench BENCH=srving", "no benchmark srving"),
        ('make bench BENCH="training compact"', "no benchmark compact"),
        ("cd /srv && make promote MODEL=a/b > /dev/null", "MODEL=a/b is no artifact"),
        (".venv/bin/wnadb login", ".venv/bin/wnadb is not there"),
        ("RAY_ADDRESS=host:6379 mke sweep", "mke: unknown program"),
    ],
)
def test_mistakes_in_commands_are_found(line: str, wrong: str) -> None:
    assert [fault for command in commands_of(line) for fault in mistakes(command)] == [wrong]


def test_the_systemd_service_and_the_workflow_are_valid() -> None:
    text = (ROOT / "docs" / "operate.md").read_text()
    (started,) = re.findall(r"^ExecStart=/srv/flywheel/(.*)$", text, re.M)
    (command,) = commands_of(started)
    assert list(mistakes(command)) == []
    (workflow,) = blocks(text, "yaml")
    settings = yaml.safe_load(workflow)["env"]
    assert params_file.load(ROOT / "params.yaml", settings["PROFILE"], settings["SET"]).tracking.wandb == "online"
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in steps(workflow) if "uses" in step)


def test_a_profile_of_your_own_needs_the_lines_of_the_page_only(tmp_path: Path) -> None:
    (lines,) = blocks((ROOT / "docs" / "own-images.md").read_text(), "yaml")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text() + lines)
    assert params_file.load(tmp_path / "params.yaml", "flowers", "").registered_model == "flowers-classifier"


def test_versions_named_on_the_pages_are_those_of_the_lock() -> None:
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    named = [pin for page in PAGES for pin in re.findall(r"\b(torch(?:vision)?==[\d.]+\d)", page.read_text())]
    assert len(named) >= 5
    for pin in named:
        assert any(line.partition("+")[0] == pin for line in locked), pin


# -- the commands of the README, run -------------------------------------------------------------------

NOT_RUN = {
    "make test": "it would run this test again",
    "make data sweep evaluate PROFILE=laptop": "fetches CIFAR-10 from the internet",
    'RAY_ADDRESS=host:6379 make sweep SET="paths.checkpoints=/shared/checkpoints sweep.gpus_per_trial=0.5"': (
        "needs a cluster; tests/e2e/test_cluster.py has one"
    ),
    ".venv/bin/wandb login": "asks for an account",
    "make label collect retrain": "waits for a person; tests/traffic/test_label_page.py plays one",
}
SMALL: dict[str, dict[str, Any]] = {
    "data": {"image_size": 16},
    "sweep": {"trials": 2, "epochs": 1},
    "gate": {"floor_accuracy": 0.0, "allow_unlearned_classes": True, "margin": 1, "class_margin": 1},
    "retrain": {"epochs": 1, "min_failures": 1, "control": False},
}


def commands_in(text: str) -> list[str]:
    """Return the lines of a page's sh blocks without comments, then the commands of the table of commands."""
    found = [re.sub(r"\s+#.*", "", line) for block in blocks(text, "sh") for line in block.splitlines()]
    asked = text[text.index("| command | what it tells |") :]
    return found + re.findall(r"^\| `(make [^`]+)` \|", asked[: asked.index("\n\n")], re.M)


def test_commands_that_are_not_run_are_in_the_readme() -> None:
    assert set(NOT_RUN) <= set(commands_in((ROOT / "README.md").read_text()))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone with small profiles and a free port for its server."""
    folder = checkouts.clone(tmp_path_factory.mktemp("readme"))
    path = folder / "params.yaml"
    shipped = yaml.safe_load(path.read_text())
    for profile in shipped["profiles"].values():
        for section, values in SMALL.items():
            profile[section] = {**profile.get(section, {}), **values}
        profile["serve"] = {"port": free_port()}
    # The gate asks that a model of one's own images is better than guessing: enough steps for two shades.
    laptop = shipped["profiles"]["laptop"]
    laptop["sweep"] |= {"trials": 1, "epochs": 12, "initial_trials": [{}]}
    laptop["sweep"]["space"]["batch_size"] = laptop["recipe"]["batch_size"] = 16
    path.write_text(yaml.safe_dump(shipped, sort_keys=False))
    return folder


def flowers(path: Path) -> Path:
    """Write an archive of two classes that a network can tell apart; return its path."""
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 20)):
        for number, kind in enumerate(("rose", "tulip")):
            folder = path / part / kind
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 100, (40, 50, 3), dtype=np.uint8) + np.uint8(120 * number)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return Path(shutil.make_archive(str(path), "zip", path))


@pytest.mark.long
def test_the_commands_of_the_readme_run_in_a_fresh_clone(checkout: Path, tmp_path: Path, double: WandbDouble) -> None:
    environment = {
        "HOME": str(tmp_path), "PATH": os.environ["PATH"], "PROFILE": "demo", "OMP_NUM_THREADS": "1",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
    }  # fmt: skip
    said: dict[str, str] = {}

    def run(line: str, **more: str) -> None:
        done = subprocess.run(
            ["sh", "-c", line], cwd=checkout, env={**environment, **more}, text=True, timeout=900,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        refused = "make promote" in line and "is not promoted: " in done.stdout  # small models: the gate may say no
        assert done.returncode == (2 if refused else 0), f"$ {line}\n{done.stdout}"
        assert "Traceback" not in done.stdout, f"$ {line}\n{done.stdout}"
        said[line] = said.get(line, "") + done.stdout

    def model() -> str:
        return Registry(checkout / "store" / "demo").resolve("digits-classifier:best").label

    readme = (checkout / "README.md").read_text()
    images, photo = flowers(tmp_path / "flowers"), tmp_path / "flowers" / "test" / "rose" / "0.png"
    profiles = yaml.safe_load((checkout / "params.yaml").read_text())["profiles"]
    ports = {name: profile["serve"]["port"] for name, profile in profiles.items()}
    try:
        for line in commands_in(readme):
            if line in NOT_RUN:
                continue
            if "model-1a2b3c" in line or "name:v" in line:
                line = re.sub(r"(?:model-1a2b3c|name):v\d", model(), line)
            for written, here in (
                ("path/to/pets.zip", str(images)), ("sweep.trials=40", "sweep.trials=3"), ("@photo.jpg", f"@{photo}"),
                ("http://127.0.0.1:8000/", f"http://127.0.0.1:{ports['laptop']}/"),
            ):  # fmt: skip
                line = line.replace(written, here)
            run(line, **(double.environment if line == "make sync" else {}))
            if line.startswith("curl"):
                run("make stop PROFILE=laptop")
        (cron,) = (line for block in blocks(readme, "") for line in CRON.findall(block))
        cron = cron.replace("cd /srv/flywheel", f"cd '{checkout}'").replace("PROFILE=cifar10", "PROFILE=demo")
        run(cron, PATH="/usr/bin:/bin")
    finally:
        run("make stop")
        run("make stop PROFILE=laptop")
    assert "drifted, after retraining" in said["make demo"]
    assert said["make data sweep evaluate"].count("up to date") >= 3
    assert "answers at http://127.0.0.1:" in said["make serve simulate"]
    assert "retrain: " in said["make retrain"]
    (answer,) = re.findall(r"{.*}", next(text for line, text in said.items() if line.startswith("curl")))
    assert json.loads(answer)["label"] in ("rose", "tulip")
    assert "sync: all is on W&B" in said["make sync"]
    assert said[cron] == ""
    for profile in ("demo", "laptop"):
        assert (checkout / "store" / profile / "registry" / "versions").is_dir()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True).stdout
    assert status == " M params.yaml\n"  # nothing lands outside what git ignores
