"""Weights & Biases runs. Imports wandb, as the registry's remote does; nothing else does.

W&B is a mirror: results stand in local files first, what a run should hold stands in a file of our own
(`run_record`), and a thread tells W&B. The stage does not wait for that thread until it ends, and then only while
something moves (`connection`). What W&B did not take by then is told in one line, and `make sync` uploads it.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel.params import RETRAINED_NAME, Params
from flywheel.registry import Registry, Version
from flywheel.tracking import media
from flywheel.tracking.connection import INTERRUPTED_PATIENCE_S, Connection, WandbError
from flywheel.tracking.mirror import Mirror
from flywheel.tracking.remote import abandon
from flywheel.tracking.run_files import STEP, Medium, RunFile, plain
from flywheel.tracking.verify import missing

START_TIMEOUT_S, FINISH_TIMEOUT_S = 10, 10
EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}  # 255 is what W&B gives to Ctrl-C
LATER = "going on offline, make sync uploads what is missing"


class Run:
    """One W&B run, or nothing in mode disabled. No method raises or waits for the network, but `finish` of a stage."""

    def __init__(self, tracker: Tracker, file: RunFile | None):
        self._tracker = tracker
        self._file = file
        self._ended = file is None
        self._run: Any = None  # wandb's, once started
        self._broken = False
        self._refs: dict[str, list[Version]] = {"use": [], "make": []}

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics."""
        self._keep("log", values=plain(metrics) if step is None else {**plain(metrics), STEP: step})
        self._later(lambda run: run.log(dict(metrics), step=step))

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        """Set final values, which W&B's tables of runs show."""
        values = plain(metrics)
        self._keep("summary", values=values)
        self._later(lambda run: run.summary.update(values))

    def used(self, *versions: Version) -> None:
        """Name versions that the run reads."""
        self._name("use", versions)

    def made(self, *versions: Version) -> None:
        """Name versions that the run published."""
        self._name("make", versions)

    def log_pictures(self, pictures: Sequence[Path]) -> None:
        """Log picture files under their names."""
        self._show(lambda store: [media.keep_picture(store, path) for path in pictures])

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a uint8 array (h, w, 3) in it is shown as an image. W&B keeps a copy of all of it."""
        self._show(lambda store: [media.keep_table(store, name, columns, rows)])

    def log_confusion_matrix(
        self, labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str]
    ) -> None:
        """Log W&B's own interactive confusion matrix."""
        name = "confusion_matrix_interactive"
        self._show(lambda store: [media.keep_confusion_matrix(store, name, labels, predictions, class_names)])

    def finish(self, failed: bool = False) -> None:
        """End a stage's run: finished, failed, or interrupted when that is being handled.

        Waits until W&B has all of the tracker's runs, or patience ends.
        """
        if self._ended:
            return
        interrupted = failed and isinstance(sys.exception(), KeyboardInterrupt)
        self.end("interrupted" if interrupted else "failed" if failed else "finished", stage=True)
        self._tracker.wait(hurry=failed)
        if self._file is not None:
            self._file.append("waited", seconds=round(self._tracker.connection.waited_s, 3))

    def end(self, how: str, *, stage: bool = False) -> None:
        """End the run as finished, failed or interrupted, without waiting. A stage's run gives W&B its artifacts."""
        if not self._ended:
            self._keep("finish", how=how)
            self._tracker.later(lambda: self._end(how, stage))
            self._ended = True

    # -- what the tracker's thread does -----------------------------------------------------------------

    def begin(self, start: Callable[[], tuple[Any, str]]) -> None:
        """Start W&B's run and keep where it records."""
        self._run, place = start()
        if self._run is not None and self._file is not None:
            self._file.append("folder", path=place, url=None if self._run.offline else self._run.url)

    def _later(self, action: Callable[[Any], object]) -> None:
        def work() -> None:
            if self._run is None or self._broken:
                return
            try:
                action(self._run)
            except Exception as error:
                self._broken = True
                self._tracker.connection.trouble(error, "results are in the reports, make sync uploads what is missing")

        if not self._ended:
            self._tracker.later(work)

    def _show(self, keep: Callable[[Path], list[Medium]]) -> None:
        """Keep pictures or tables, then have W&B show them. What cannot be kept is in the reports all the same."""
        if self._ended:
            return
        store = self._tracker.params.store
        try:
            kept = keep(store)
        except OSError as error:
            self._tracker.connection.trouble(error, "results are in the reports")
            return
        for medium in kept:
            self._keep("media", **medium._asdict())
        self._later(lambda run: run.log({medium.name: media.shown(store, medium) for medium in kept}))

    def _keep(self, event: str, **values: Any) -> None:
        if self._file is not None and not self._ended:
            self._file.append(event, **values)

    def _name(self, event: str, versions: Sequence[Version]) -> None:
        for version in versions:
            self._keep(event, ref=version.ref)
            self._refs[event].append(version)

    def _end(self, how: str, stage: bool) -> None:
        """Give W&B the artifacts and end its run; in a thread of its own, since it may wait for the network."""
        ended = self._tracker.ending()
        threading.Thread(target=self._end_now, args=(how, stage, ended), name="W&B run", daemon=True).start()

    def _end_now(self, how: str, stage: bool, ended: Callable[[], None]) -> None:
        tracker, run = self._tracker, self._run
        online = tracker.connection.online and run is not None and not run.offline
        try:
            try:
                if online and stage:
                    tracker.upload(run, self._refs["use"], self._refs["make"])
            finally:
                if run is not None:
                    run.finish(exit_code=EXIT_CODES[how])
            if online and self._file is not None:
                tracker.confirm(self._file)
        except Exception as error:
            tracker.connection.trouble(error, LATER)
        finally:
            ended()


class Tracker:
    """The runs of one stage: one thread tells W&B what happens, in order."""

    def __init__(self, params: Params, registry: Registry):
        self.params = params
        self.registry = registry if isinstance(registry, Mirror) else Mirror(params)
        self.connection: Connection = self.registry.connection
        self.group = f"turn-{len(registry.versions(RETRAINED_NAME)) + 1}"  # each retrained model begins another
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._pending = 0
        self._idle = threading.Event()
        self._idle.set()
        self._lock = threading.Lock()
        self._asking = threading.Lock()  # W&B's public API is asked by one thread at a time

    @contextlib.contextmanager
    def run(
        self, job_type: str, name: str, config: Mapping[str, Any], *, used: Sequence[Version] = ()
    ) -> Iterator[Run]:
        """Start the run of a stage and finish it at the end of the block: finished, failed or interrupted."""
        run = self.start(job_type, name, config)
        run.used(*used)
        try:
            yield run
        except BaseException:
            run.finish(failed=True)
            raise
        run.finish()

    def start(self, job_type: str, name: str, config: Mapping[str, Any], id: str | None = None) -> Run:
        """Start a run of the tracker's group; the mode is printed at the first."""
        mode = self.connection.mode.name
        self.connection.announce()
        if mode == "disabled":
            return Run(self, None)
        file = RunFile(self.params.store, id or secrets.token_hex(4))
        settings = plain(config)
        file.start(job_type, name, self.group, settings)
        run = Run(self, file)
        self.later(lambda: run.begin(lambda: self._init(file.path.stem, job_type, name, settings)))
        return run

    def later(self, job: Callable[[], None]) -> None:
        """Have the thread do something, after all before it."""
        ended = self.ending()

        def work() -> None:
            try:
                job()
            except Exception as error:
                self.connection.trouble(error, LATER)
            finally:
                ended()

        self._jobs.put(work)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="W&B", daemon=True)
            self._thread.start()

    def ending(self) -> Callable[[], None]:
        """Note that something is under way; what is returned notes its end."""
        with self._lock:
            self._pending += 1
            self._idle.clear()

        def ended() -> None:
            with self._lock:
                self._pending -= 1
                if not self._pending:
                    self._idle.set()

        return ended

    def wait(self, hurry: bool = False) -> None:
        """Wait until W&B has everything. When patience ends, W&B's process is ended and what it recorded stays."""
        connection = self.connection
        if not connection.wait(self._idle, INTERRUPTED_PATIENCE_S if hurry else None):
            if not hurry:
                connection.trouble("it does not answer", LATER)
            connection.lost = True  # what the threads that are left behind say is no news
            abandon()

    def upload(self, run: Any, used: Sequence[Version], made: Sequence[Version]) -> None:
        """Give W&B the artifacts of a run that is under way there: outputs, inputs, and the registered model."""
        remote, registry = self.registry.remote, self.registry
        with self._asking:
            for version in made:
                remote.log(run, version, registry.local.open(version))
            wrong = [reason for version in used if (reason := remote.use(run.id, version.ref))]
            if wrong := wrong or registry.push_aliases(self.params.registered_model):
                raise WandbError("; ".join(wrong))

    def confirm(self, file: RunFile) -> None:
        """Compare what W&B has of a run with its file. Raises WandbError."""
        record = file.read()
        assert record is not None
        with self._asking:
            if reasons := missing(self.registry.remote, record):
                raise WandbError("; ".join(reasons))
        file.append("confirmed", where=self.connection.where)

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def _init(self, key: str, job_type: str, name: str, config: Mapping[str, Any]) -> tuple[Any, str]:
        """Start W&B's run, offline when it does not start online. Returns it and its folder, below W&B's."""
        mode = self.connection.mode.name
        try:
            run = self._start(key, mode, job_type, name, config)
        except Exception as error:
            self.connection.trouble(error, LATER)
            if mode != "online":
                return None, ""
            # Another id, because wandb's process holds on to the first; `make sync` uploads it under the first.
            run = self._start(f"{key}-offline", "offline", job_type, name, config)
        return run, str(Path(run.settings.sync_dir).relative_to(self.params.store_paths.wandb))

    def _start(self, key: str, mode: str, job_type: str, name: str, config: Mapping[str, Any]) -> Any:
        import wandb

        return wandb.init(
            entity=self.connection.mode.entity or None,
            project=self.connection.project,
            job_type=job_type,
            name=name,
            group=self.group,
            mode=mode,  # type: ignore[arg-type]  # wandb reads the environment once a process
            id=key,
            config=dict(config),
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=START_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S, finish_timeout_raises=True
            ),
        )
