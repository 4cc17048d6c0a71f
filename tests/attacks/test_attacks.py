"""The first seeds of every fuzzer; `make test-attacks` runs all of them."""

import pytest

from tests.attacks import harness
from tests.attacks.harness import Fuzzer
from tests.attacks.worker import Worker

pytestmark = pytest.mark.deep


@pytest.fixture(scope="module")
def worker():
    with Worker() as made:
        yield made


@pytest.mark.parametrize(
    ("module", "fuzzer"), harness.everything(), ids=lambda part: getattr(part, "name", "")
)
def test_an_attack_ends_well(worker: Worker, module: str, fuzzer: Fuzzer) -> None:
    outcomes = [worker.run(module, fuzzer, seed) for seed in range(fuzzer.quick)]
    faults = [outcome for outcome in outcomes if not outcome.good]
    assert not faults, harness.report(outcomes)
