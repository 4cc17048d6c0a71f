"""Kill a sweep of the pocket model at random moments, resume it, and compare with a whole one.

    python -m tests.experiments.sweep.kills --kills 100

Each process is killed (SIGKILL) after a random time between its start and the end of a run. When a
folder is complete it must hold the rows of the run that nothing disturbed, byte for byte but for
the columns of times; then a new folder is begun, until there were so many kills.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from resprune_jax.experiments.sweep.shards import TIMES

SWEEP = [
    "sweep", "--data", "pocket:validation", "--examples", "40", "--block", "5", "--batch", "8",
    "--methods", "none", "resprune", "fastv", "--keep", "1/3", "1/9", "--alpha", "0.25", "0.75",
]  # fmt: skip


def start(folder: Path, *more: str) -> "subprocess.Popen[bytes]":
    """A sweep into a folder; what it says goes into a file beside that."""
    command = [sys.executable, "-m", "resprune_jax.experiments", *SWEEP, *more]
    with (folder.parent / "said.txt").open("wb") as said:
        return subprocess.Popen([*command, "--output", str(folder)], stdout=said, stderr=said)


def rows_of(folder: Path) -> bytes:
    """The rows of a folder, sorted, without the columns of times."""
    parts = sorted((folder / "rows").glob("*.parquet"))
    tables = [pq.read_table(part).drop_columns(list(TIMES)).unify_dictionaries() for part in parts]
    whole = pa.concat_tables(tables).unify_dictionaries()
    names = whole["configuration"].cast(pa.string())
    whole = whole.set_column(0, "configuration", names)
    whole = whole.sort_by([("configuration", "ascending"), ("example", "ascending")])
    sink = pa.BufferOutputStream()
    pq.write_table(whole.combine_chunks(), sink)
    return bytes(sink.getvalue())


def killed(kills: int, seed: int, said: bool = True) -> int:
    """Carry out so many kills.

    Returns:
        How many folders were completed, each equal to the undisturbed one.

    Raises:
        AssertionError: a run that failed by itself, or rows that differ.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        whole = start(place / "whole")
        assert whole.wait() == 0, (place / "said.txt").read_text()
        begin = time.monotonic()
        again = start(place / "again")
        assert again.wait() == 0
        longest = time.monotonic() - begin
        expected = rows_of(place / "whole")
        assert rows_of(place / "again") == expected, "two undisturbed runs differ"
        done = complete = 0
        lost: list[int] = []
        while done < kills or not complete:
            folder = place / "killed"
            before = len(list((folder / "rows").glob("*.parquet"))) if folder.exists() else 0
            run = start(folder)
            try:
                # The last folder is left to end by itself.
                moment = None if done >= kills else rng.uniform(0.05, 1.3) * longest
                status = run.wait(moment)
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                run.wait()
                done += 1
                after = len(list((folder / "rows").glob("*.parquet"))) if folder.exists() else 0
                assert after >= before, "blocks were lost"
                lost.append(after - before)
                continue
            assert status == 0, (place / "said.txt").read_text()
            assert rows_of(folder) == expected, f"rows differ after {done} kills"
            complete += 1
            shutil.rmtree(folder)
            if said:
                print(f"{done} kills, {complete} folders complete and equal", flush=True)
        print(f"{done} kills, of which {sum(n > 0 for n in lost)} after blocks were written;"
              f" {complete} folders complete, all equal")  # fmt: skip
        return complete


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    killed(given.kills, given.seed)
