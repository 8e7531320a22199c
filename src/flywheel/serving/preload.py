"""What a process of Ray imports before it is given work, while Ray still starts: the parts of Serve.

Serve imports pandas, if there is one, only to encode data frames in answers; that takes 0.25 s in each process.
"""

from __future__ import annotations

import sys
from typing import Any

modules: dict[str, Any] = sys.modules
modules.setdefault("pandas", None)

import ray.serve._private.controller  # noqa: E402
import ray.serve._private.replica  # noqa: E402, F401
