"""Captures that take a while and no processor: each batch waits for SLOW_BATCH_S seconds."""

import os
import sys
import threading
import time
from typing import Any

SECONDS = float(os.environ.get("SLOW_BATCH_S", "0"))


def _patch() -> None:
    while "amygdala.residual" not in sys.modules:
        time.sleep(0.02)
    residual = sys.modules["amygdala.residual"]
    while not hasattr(residual, "Capture"):
        time.sleep(0.02)
    capture: Any = residual.Capture
    each = capture.each

    def wait_and_do(*arguments: object) -> object:
        time.sleep(SECONDS)
        return each(*arguments)

    capture.each = wait_and_do


if SECONDS:
    threading.Thread(target=_patch, daemon=True).start()
