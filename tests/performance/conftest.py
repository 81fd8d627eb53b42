"""At the end of pytest's output: each promise that was looked at, with what was measured."""

import pytest

from tests.performance.suite import FOUND


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FOUND:
        terminalreporter.section("promises")
        for line in dict.fromkeys(FOUND):
            terminalreporter.write_line(f"promise {line}")
