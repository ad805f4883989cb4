"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# A machine that is busy with something else is no failure of what is tested.
settings.register_profile("qmd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qmd")


def pytest_configure() -> None:
    """A shell starts background jobs deaf to Ctrl-C, and children inherit that: the tests that press it need ears."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
