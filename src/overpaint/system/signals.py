"""Signals with which terminals and service managers stop a program."""

import signal

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)
)
"""Signals that stop a program. Windows has only the first two."""
