"""All attacks in full: `make test-attacks`, or `python -m tests.attacks [NAME ...]`.

Each outcome is appended to a file of JSON lines as it comes. A second call goes on where the first
one ended, after it has tried again what failed; a fuzzer whose source changed starts anew.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

from tests.attacks.harness import Fuzzer, Outcome, everything, report, revision
from tests.attacks.worker import Worker

RECORDS = Path("attacks") / "outcomes.jsonl"


def read(path: Path, revisions: dict[str, str]) -> dict[tuple[str, int], Outcome]:
    """The last outcome of each case in a file, of fuzzers as they are now."""
    found: dict[tuple[str, int], Outcome] = {}
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a call that was killed
        if row.pop("revision") == revisions.get(row["fuzzer"]):
            outcome = Outcome(**row)
            found[outcome.fuzzer, outcome.seed] = outcome
    return found


def work(
    todo: list[tuple[str, Fuzzer, int]], revisions: dict[str, str], file: TextIO, workers: int
) -> Iterator[Outcome]:
    """Run cases on several children and append each outcome to a file."""
    free: SimpleQueue[Worker] = SimpleQueue()
    made = [Worker() for _ in range(workers)]
    for worker in made:
        free.put(worker)

    def one(case: tuple[str, Fuzzer, int]) -> Outcome:
        worker = free.get()
        try:
            return worker.run(*case)
        finally:
            free.put(worker)

    try:
        with ThreadPool(workers) as pool:
            for outcome in pool.imap_unordered(one, todo):
                row = outcome.row() | {"revision": revisions[outcome.fuzzer]}
                file.write(json.dumps(row) + "\n")
                file.flush()
                yield outcome
    finally:
        for worker in made:
            worker.__exit__()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("names", nargs="*", help="fuzzers to run; default all")
    parser.add_argument("--cases", type=int, help="at most so many of each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--file", type=Path, default=RECORDS, help="where outcomes are kept")
    parser.add_argument("--fresh", action="store_true", help="forget the outcomes of that file")
    options = parser.parse_args(arguments)
    fuzzers = everything()
    known = [fuzzer.name for _, fuzzer in fuzzers]
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"unknown {', '.join(unknown)}: choose from {', '.join(known)}")
    chosen = [(m, f) for m, f in fuzzers if not options.names or f.name in options.names]
    revisions = {fuzzer.name: revision(module) for module, fuzzer in chosen}
    options.file.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        options.file.unlink(missing_ok=True)
    done = read(options.file, revisions)
    faults = 0
    with options.file.open("a", encoding="utf-8") as file:
        file.write("\n")  # ends a line that a killed call left open
        for module, fuzzer in chosen:
            seeds = range(min(fuzzer.cases, options.cases or fuzzer.cases))
            own = {seed: done.get((fuzzer.name, seed)) for seed in seeds}
            failed = [seed for seed, outcome in own.items() if outcome and not outcome.good]
            new = [seed for seed, outcome in own.items() if outcome is None]
            outcomes = [outcome for outcome in own.values() if outcome and outcome.good]
            begin, said = time.monotonic(), time.monotonic()
            todo = [(module, fuzzer, seed) for seed in failed + new]
            for outcome in work(todo, revisions, file, options.workers):
                outcomes.append(outcome)
                if time.monotonic() - said > 30:
                    said = time.monotonic()
                    print(f"{fuzzer.name}: {len(outcomes)} of {len(seeds)}", flush=True)
            slowest = max((outcome.cpu_s for outcome in outcomes), default=0.0)
            print(
                f"{fuzzer.name}: {len(seeds)} cases ({len(todo)} run now, in "
                f"{time.monotonic() - begin:.0f} s; slowest {slowest:.1f} s of CPU time): "
                f"{report(outcomes)}",
                flush=True,
            )
            faults += sum(not outcome.good for outcome in outcomes)
    print(f"{faults} faults; outcomes are in {options.file}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
