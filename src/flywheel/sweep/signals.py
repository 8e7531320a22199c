"""End a sweep soon after Ctrl-C, SIGTERM (cron's timeout, a CI's cancel) or a closed terminal, whatever hangs.

The journal and the checkpoints are on disk already, so nothing has to be saved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

GRACE_S = 8  # W&B may wait a minute for a lost network
INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first signal into KeyboardInterrupt; the second, or GRACE_S later, ends the process at once.

    The end kills every process that this one started (also Ray's and W&B's) and exits with 130, also after the first
    signal was handled. Ignored signals (nohup, a shell's background job) stay ignored.
    """
    first = threading.Event()

    def stop(*_: object) -> None:
        if first.is_set():
            end_at_once()
        first.set()
        timer = threading.Timer(GRACE_S, end_at_once)
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
        if first.is_set():  # everything is closed; Python's own exit would take seconds more
            end_at_once()
        raise
    finally:
        if not first.is_set():  # otherwise the handler and the timer stay until the process has ended
            for number in caught:
                signal.signal(number, before[number])


def end_at_once() -> None:
    """Kill the processes that this one started, and exit."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
    print("interrupted: finished work is kept; run the same command again", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
