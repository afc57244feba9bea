# SPDX-License-Identifier: BSD-3-Clause
"""Run one of CPython's test modules case by case and write down what happens as it happens.

    python driver.py MODULE EVENTS [CASES]

EVENTS is a file that gets one JSON object a line: first the names of all cases, then the start and
the end of each.  When this process hangs or dies, the last line tells in which case.  CASES is a
file with the names of those to run; without it nothing is run and only the names are written.

Runs inside the scratch interpreter of tools/conformance.py, and imports unittest alone: what else
is imported before a test decides what the test sees.
"""

import faulthandler
import json
import os
import signal
import sys
import time
import unittest


class Result(unittest.TestResult):
    """Writes what the cases do."""

    def __init__(self, fd):
        super().__init__()
        self._fd = fd
        self._outcome = None
        self._started = 0.0

    def say(self, **event):
        # One write a line, unbuffered: nothing is left in a buffer that a fork could copy.
        os.write(self._fd, (json.dumps(event) + "\n").encode())

    def startTest(self, test):
        super().startTest(test)
        self._outcome = None
        self._started = time.monotonic()
        self.say(start=test.id())
        print(f"\n== {test.id()}", flush=True)

    def stopTest(self, test):
        super().stopTest(test)
        outcome, text = self._outcome or ("fail", "ended without an outcome")
        self.say(end=test.id(), outcome=outcome, text=text)
        print(f"-- {outcome} after {time.monotonic() - self._started:.1f} s {text}", flush=True)

    def _note(self, test, outcome, text=""):
        if type(test).__name__ == "_ErrorHolder":  # the fixture of a class or a module
            self.say(fixture=test.id(), outcome=outcome, text=text)
            print(f"-- {test.id()}: {outcome} {text}", flush=True)
        elif self._outcome is None or outcome == "fail":
            self._outcome = (outcome, text)

    def addSuccess(self, test):
        super().addSuccess(test)
        self._note(test, "pass")

    def addError(self, test, err):
        super().addError(test, err)
        self._note(test, "fail", self.errors[-1][1])

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._note(test, "fail", self.failures[-1][1])

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(test, "fail", "".join(str(self._exc_info_to_string(err, subtest))))

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._note(test, "skip", reason)

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self._note(test, "pass")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self._note(test, "fail", "unexpected success")


def flat(suite):
    """The cases of *suite*, in order."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flat(item)
        else:
            yield item


def main():
    """See the module's docstring."""
    module, events = sys.argv[1:3]
    # A shell starts what runs in the background with SIGINT ignored; several cases send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    result = Result(os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    cases = list(flat(unittest.defaultTestLoader.loadTestsFromName(module)))
    result.say(cases=[case.id() for case in cases])
    if len(sys.argv) > 3:
        with open(sys.argv[3]) as file:
            wanted = set(file.read().split())
        faulthandler.enable()
        unittest.TestSuite(case for case in cases if case.id() in wanted).run(result)
    result.say(over=True)


if __name__ == "__main__":
    main()
