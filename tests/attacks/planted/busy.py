"""A fuzzer whose cases each take most of the CPU time that they may."""

import dataclasses
import time

from tests.attacks.planted import outcomes as planted


def _run(seed: int) -> None:
    begin = time.process_time()
    while time.process_time() - begin < 0.6:
        pass


FUZZERS = [dataclasses.replace(planted.FUZZERS[0], name="busy", run=_run)]
