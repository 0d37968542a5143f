"""Captures that take a while and no processor: each batch waits for SLOW_BATCH_S seconds."""

import os
import sys
import threading
import time

SECONDS = float(os.environ.get("SLOW_BATCH_S", "0"))


def _patch() -> None:
    while "amygdala.residual" not in sys.modules:
        time.sleep(0.02)
    while not hasattr(capture := getattr(sys.modules["amygdala.residual"], "Capture", None), "each"):
        time.sleep(0.02)
    each = capture.each

    def wait_and_do(*arguments: object) -> object:
        time.sleep(SECONDS)
        return each(*arguments)

    capture.each = wait_and_do


if SECONDS:
    threading.Thread(target=_patch, daemon=True).start()
