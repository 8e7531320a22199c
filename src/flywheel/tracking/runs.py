"""W&B runs of the stages and trials.

Results are written to local files first, and each run to a file of its own (`run_files`). A background thread uploads
to W&B. A stage waits for it at the end, and only as long as the upload makes progress (`connection`). If something
is not uploaded then, one line says why, and `make sync` uploads it.
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
from flywheel.tracking.connection import INTERRUPTED_TIMEOUT_S, Connection, WandbError
from flywheel.tracking.mirror import Mirror
from flywheel.tracking.remote import kill_wandb
from flywheel.tracking.run_files import STEP, MediaFile, RunFile, RunRecord, plain
from flywheel.tracking.verify import missing_parts

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 255}  # 255 is W&B's code for Ctrl-C
OFFLINE = "continuing offline; make sync uploads the rest"
IN_REPORTS = "results are in the reports"


class Run:
    """One W&B run; in mode disabled, all methods do nothing. No method raises; only `finish` waits for the network."""

    def __init__(self, tracker: Tracker, file: RunFile | None):
        self._tracker = tracker
        self._file = file
        self._ended = file is None
        self._run: Any = None  # wandb's run, once started
        self._broken = False
        self._used: list[Version] = []
        self._made: list[Version] = []

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics."""
        self._record("log", values=plain(metrics) if step is None else {**plain(metrics), STEP: step})
        self._send(lambda run: run.log(dict(metrics), step=step))

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        """Set final values, which W&B's tables of runs show."""
        values = plain(metrics)
        self._record("summary", values=values)
        self._send(lambda run: run.summary.update(values))

    def used(self, *versions: Version) -> None:
        """Add versions that the run reads."""
        self._used += versions
        for version in versions:
            self._record("use", ref=version.ref)

    def made(self, *versions: Version) -> None:
        """Add versions that the run published."""
        self._made += versions
        for version in versions:
            self._record("make", ref=version.ref)

    def log_pictures(self, pictures: Sequence[Path]) -> None:
        """Log picture files under their names."""
        self._log_media(lambda store: [media.save_picture(store, path) for path in pictures])

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a uint8 array (h, w, 3) in it is shown as an image. W&B keeps a copy of all of it."""
        self._log_media(lambda store: [media.save_table(store, name, columns, rows)])

    def log_confusion_matrix(
        self, labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str]
    ) -> None:
        """Log W&B's own interactive confusion matrix."""
        name = "confusion_matrix_interactive"
        self._log_media(lambda store: [media.save_confusion_matrix(store, name, labels, predictions, class_names)])

    def finish(self, failed: bool = False) -> None:
        """End a stage's run: finished, failed, or interrupted if KeyboardInterrupt is being handled.

        Waits until W&B has all of the tracker's runs, or the connection's stall budget is used up.
        """
        if self._ended:
            return
        interrupted = failed and isinstance(sys.exception(), KeyboardInterrupt)
        self.end("interrupted" if interrupted else "failed" if failed else "finished", stage=True)
        self._tracker.wait(hurry=failed)
        if self._file is not None:
            self._file.append("waited", seconds=round(self._tracker.connection.waited_s, 3))

    def end(self, how: str, *, stage: bool = False) -> None:
        """End the run as finished, failed or interrupted, without waiting. A stage's run uploads its artifacts."""
        if self._ended:
            return
        self._record("finish", how=how)
        self._ended = True

        def finish_in_thread() -> None:  # it may wait for the network, and other runs go on meanwhile
            work = self._tracker.guard(lambda: self._finish_on_wandb(how, stage))
            threading.Thread(target=work, name="W&B run", daemon=True).start()

        self._tracker.enqueue(finish_in_thread)

    # -- in the tracker's thread ------------------------------------------------------------------------

    def start_on_wandb(self, record: RunRecord) -> None:
        """Start W&B's run and record its page, unless W&B failed since this was queued."""
        if self._file is not None and self._tracker.connection.online:
            self._run = self._tracker.mirror.remote.init_run(record)
            self._file.append("online", url=self._run.url)

    def _send(self, action: Callable[[Any], object]) -> None:
        """Have the tracker's thread apply an action to W&B's run. After the first error this run sends nothing more."""

        def work() -> None:
            if self._run is None or self._broken:
                return
            try:
                action(self._run)
            except Exception as error:
                self._broken = True
                self._tracker.connection.give_up(error, f"{IN_REPORTS}, make sync uploads the rest")

        if not self._ended:
            self._tracker.enqueue(work)

    def _log_media(self, save: Callable[[Path], list[MediaFile]]) -> None:
        """Save pictures or tables in the store, then send them. A failure to save is logged: reports hold them too."""
        if self._ended:
            return
        store = self._tracker.params.store
        try:
            saved = save(store)
        except OSError as error:
            self._tracker.connection.give_up(error, IN_REPORTS)
            return
        for one in saved:
            self._record("media", **one._asdict())
        self._send(lambda run: run.log({one.name: media.wandb_object(store, one) for one in saved}))

    def _record(self, event: str, **values: Any) -> None:
        if self._file is not None and not self._ended:
            self._file.append(event, **values)

    def _finish_on_wandb(self, how: str, stage: bool) -> None:
        tracker, run = self._tracker, self._run
        online = tracker.connection.online and run is not None
        try:
            if online and stage:
                tracker.upload(run, self._used, self._made)
        finally:
            if run is not None:
                run.finish(exit_code=EXIT_CODES[how])
        if online and self._file is not None:
            tracker.confirm(self._file)


class Tracker:
    """The runs of one stage. One thread sends their events to W&B, in order."""

    def __init__(self, params: Params, registry: Registry):
        self.params = params
        self.mirror = registry.upstream if isinstance(registry.upstream, Mirror) else Mirror(params)
        self.connection: Connection = self.mirror.connection
        self.group = f"round-{registry.count(RETRAINED_NAME) + 1}"  # each retrained model begins another
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._pending = 0  # jobs that have not ended
        self._idle = threading.Event()
        self._idle.set()
        self._lock = threading.Lock()
        self._api_lock = threading.Lock()  # W&B's public API serves one thread at a time

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
        """Start a run of the tracker's group; the first one logs the mode."""
        self.connection.log_mode()
        if self.connection.mode.name == "disabled":
            return Run(self, None)
        file = RunFile(self.params.store, id or secrets.token_hex(4))
        record = file.start(job_type, name, self.group, config)
        run = Run(self, file)
        self.enqueue(lambda: run.start_on_wandb(record))
        return run

    def enqueue(self, job: Callable[[], None]) -> None:
        """Have the tracker's thread run a job, after all jobs before it."""
        self._jobs.put(self.guard(job))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="W&B", daemon=True)
            self._thread.start()

    def guard(self, job: Callable[[], None]) -> Callable[[], None]:
        """Count a job as pending until it has run; if it raises, the connection gives up."""
        self._count_pending(1)

        def guarded() -> None:
            try:
                job()
            except Exception as error:
                self.connection.give_up(error, OFFLINE)
            finally:
                self._count_pending(-1)

        return guarded

    def wait(self, hurry: bool = False) -> None:
        """Wait until no job is pending. On a timeout, W&B's process is killed."""
        connection = self.connection
        if not connection.wait(self._idle, INTERRUPTED_TIMEOUT_S if hurry else None):
            if not hurry:
                connection.give_up("it does not answer", OFFLINE)
            connection.gave_up = True  # later errors of the remaining threads are not logged
            kill_wandb()

    def upload(self, run: Any, used: Sequence[Version], made: Sequence[Version]) -> None:
        """Upload the artifacts of a W&B run in progress: outputs, inputs, and the registered model's aliases."""
        remote = self.mirror.remote
        with self._api_lock:
            for version in made:
                remote.upload(run, version, self.mirror.local)
            missing = remote.add_inputs(run.id, [version.ref for version in used])
            if missing := missing or self.mirror.push_aliases(self.params.registered_model):
                raise WandbError("; ".join(missing))

    def confirm(self, file: RunFile) -> None:
        """Compare a run on W&B with its file, and record there that it is complete. Raises WandbError."""
        record = file.read()
        assert record is not None
        with self._api_lock:
            if missing := missing_parts(self.mirror.remote, record):
                raise WandbError("; ".join(missing))
        file.append("confirmed", where=self.connection.project_url)

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def _count_pending(self, change: int) -> None:
        with self._lock:
            self._pending += change
            self._idle.clear() if self._pending else self._idle.set()
