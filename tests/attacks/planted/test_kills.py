"""Kills find faults that are planted in the commands: rows doubled, torn, lost, and a deaf run."""

import pytest

from tests.attacks.fuzzers import kills
from tests.attacks.harness import Fault

pytestmark = pytest.mark.deep

# Each line is written in two parts, as a slow disk does it.
SLOW = """
from resprune_jax.experiments.answer import results
from resprune_jax.experiments.streams import json_bytes

Results = results.Results
def write(self, result):
    line = json_bytes({**result, "settings": self.settings}) + b"\\n"
    with stopping.whole():
        self._file.write(line[:20])
        self._file.flush()
        time.sleep(0.03)
        self._file.write(line[20:])
        self._file.flush()
    return result
Results.write = write
read = Results._read
"""
FAULTS = {
    "the last row is asked again": SLOW + """
def forgetful(self, rows):
    done, *rest = read(self, rows)
    return dict(list(done.items())[:-1]), *rest
Results._read = forgetful
""",
    "half a row stays": SLOW + """
Results._read = lambda self, rows: (*read(self, rows)[:2], False)
""",
    "a row too many counts as answered": SLOW + """
def hopeful(self, rows):
    done, *rest = read(self, rows)
    return {**done, len(done): None} if done else done, *rest
Results._read = hopeful
""",
    "a signal is not heard": "stopping._Listener.hear = lambda *_: None",
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_a_planted_fault_is_found(what: str) -> None:
    # Only a kill tears a row; the others show after any signal, SIGTERM is the first of seed 1.
    for seed in (9, 3, 6, 0, 12, 15, 18) if "half" in what else range(1, 13):
        try:
            kills.attack(seed, "stand-in", FAULTS[what])
        except Fault as found:
            print(seed, found)
            return
    pytest.fail("no case shows it")


def test_a_slow_disk_alone_is_no_fault() -> None:
    kills.attack(0, "stand-in", SLOW)
