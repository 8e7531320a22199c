"""Ctrl-C, SIGTERM (cron's timeout, a CI's cancel) and a closed terminal end a sweep soon, whatever hangs.

What happened is in the journal and where trials stand is in their checkpoints already, so nothing need be saved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

TIDY_UP_S = 8  # W&B may wait a minute for a network that is gone
INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first signal into KeyboardInterrupt; the second, or TIDY_UP_S later, ends the process at once.

    At once: every process that this one started is killed (Ray's and W&B's among them), and it exits with 130. So it
    ends when a first signal has been dealt with, too.
    Signals that are ignored (nohup, a shell's background job) stay so.
    """
    first = threading.Event()

    def stop(*_: object) -> None:
        if first.is_set():
            end_at_once()
        first.set()
        timer = threading.Timer(TIDY_UP_S, end_at_once)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in SIGNALS}
    caught = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        if first.is_set():  # all is tidied up; Python's own end takes seconds more
            end_at_once()
        raise
    finally:
        if not first.is_set():  # else the second signal and the timer stay in force until the process is gone
            for number in caught:
                signal.signal(number, before[number])


def end_at_once() -> None:
    """Kill the processes that this one started and exit, without another word from what hangs."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
    print("interrupted: nothing was published; run the same command again", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
