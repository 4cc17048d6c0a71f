"""`resprune bench serve`: many requests at a time, beside the same requests one after the other.

Each request is about an image of its own, and the server keeps none, so that each is encoded
whenever it is asked about. One after the other means one client that asks when it has its answer,
of a server that lets no request wait for company. A round in which something was compiled does not
count. Beside the times stands how long the server's threads worked: on a CPU that is what no way of
waiting can go below.
"""

import base64
import dataclasses
import io
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.bench import files
from resprune_jax.experiments.bench.serving.process import Connection, ServerProcess
from resprune_jax.experiments.bench.timing import machine, note
from resprune_jax.experiments.common import (
    Checkpoint,
    check_number,
    check_target,
    console,
    make_folder,
    model_name,
    parse_keep,
    shown,
)

MOST_ROUNDS = 12
"""Rounds after which a side that compiles in every one is given up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeBenchOptions:
    """Measure `resprune serve`: requests that come together beside one after the other."""

    model: Checkpoint = "pocket"
    """Checkpoint folder, Hub id, or pocket."""
    clients: Annotated[int, shown("N", None)] = 64
    """Requests that come together, each about an image of its own."""
    keep: Annotated[str, shown("COUNT|RATIO|full", None)] = "0.222"
    """Visual tokens to keep."""
    new_tokens: Annotated[int, shown("N", None)] = 16
    """Tokens of an answer, at most."""
    rounds: Annotated[int, shown("N", None)] = 5
    """Rounds of each side that count; the middle one is told."""
    max_batch: Annotated[int, shown("N", None)] = 32
    """Requests that run together."""
    out: Annotated[Path, shown("DIR", None)] = Path("bench")
    """Folder for serve.json and serve.md; made if missing."""
    debug: bool = False
    """Show the traceback when something fails."""


@dataclasses.dataclass(frozen=True)
class Round:
    """All requests once.

    Attributes:
        seconds: until the last answer.
        latencies: of each.
        texts: the answers, in the order of the requests.
        compiled: seconds that a request's batch spent on compiling, the most.
        rows: of the batches that they ran in, on average over requests.
        cpu: seconds of all cores that the server worked; None where the system does not tell.
    """

    seconds: float
    latencies: list[float]
    texts: list[str]
    compiled: float
    rows: float
    cpu: float | None


def bodies(options: ServeBenchOptions, model: str) -> list[bytes]:
    """The requests: a question about a scene each."""
    from itertools import islice

    from PIL import Image

    from resprune_jax.experiments.data.scenes import scene_examples

    made = []
    # Every scene has a question of each kind: take another kind of each next scene.
    examples: dict[str, list[Any]] = {}
    for example in scene_examples("test", scenes=options.clients):
        examples.setdefault(example.cluster, []).append(example)
    for number, own in enumerate(islice(examples.values(), options.clients)):
        example = own[number % len(own)]
        file = io.BytesIO()
        Image.fromarray(example.images[0].load()).save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": example.question},
        ]
        asked = {
            "model": model, "messages": [{"role": "user", "content": content}],
            "max_tokens": options.new_tokens, "keep": parse_keep(options.keep),
        }  # fmt: skip
        made.append(json.dumps(asked).encode())
    return made


def ask_all(
    server: ServerProcess, connections: Sequence[Connection], asked: Sequence[bytes]
) -> Round:
    """Every request once: one connection asks one after the other, many ask at the same time."""
    worked = server.cpu_seconds()
    begin = time.perf_counter()
    if len(connections) == 1:
        found = [connections[0].ask(body) for body in asked]
    else:
        with ThreadPoolExecutor(len(asked)) as pool:
            found = list(pool.map(Connection.ask, connections, asked))
    seconds = time.perf_counter() - begin
    own = [reply["resprune"] for reply, _ in found]
    now = server.cpu_seconds()
    return Round(
        seconds,
        [latency for _, latency in found],
        [reply["choices"][0]["message"]["content"] for reply, _ in found],
        max(each["timings"]["compile"] for each in own),
        statistics.mean(each["batch_rows"] for each in own),
        None if now is None or worked is None else now - worked,
    )


def side(options: ServeBenchOptions, name: str, *, together: bool) -> list[Round]:
    """The rounds of a side that count.

    Raises:
        RunError: it compiles again and again, or a request failed.
    """
    words = [
        "--model", options.model, "--image-cache-mb", "0", "--max-batch", str(options.max_batch),
        "--max-waiting", str(4 * options.clients), *([] if together else ["--wait-ms", "0"]),
    ]  # fmt: skip
    rounds: list[Round] = []
    with ServerProcess(words) as server:
        asked = bodies(options, server.model)
        connections = [Connection(server.url) for _ in range(len(asked) if together else 1)]
        try:
            for number in range(MOST_ROUNDS + options.rounds):
                made = ask_all(server, connections, asked)
                counts = made.compiled == 0 and number > 0
                note(f"{name}: {made.seconds:.2f} s{'' if counts else ' (does not count)'}")
                rounds += [made] if counts else []
                if len(rounds) == options.rounds:
                    return rounds
        finally:
            for each in connections:
                each.close()
    raise RunError(f"{name}: {len(rounds)} of {options.rounds} rounds without compiling")


def run(options: ServeBenchOptions) -> int:
    """Carry out `resprune bench serve`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: an option that cannot work.
        RunError: a server that did not start, or a request that failed.
    """
    for name, low, high in (("clients", 1, 4096), ("new_tokens", 1, 10**6), ("rounds", 1, 1000),
                            ("max_batch", 1, 4096)):  # fmt: skip
        check_number(f"--{name.replace('_', '-')}", getattr(options, name), low, high)
    parse_keep(options.keep)
    if options.clients < 2:
        raise CallError("--clients 1 has nothing to come together: give 2 or more")
    make_folder(options.out, "--out")
    for name in ("serve.json", "serve.md"):
        check_target(options.out / name, "--out")
    alone = side(options, "one after the other", together=False)
    together = side(options, f"{options.clients} at a time", together=True)
    report = report_of(options, alone, together)
    files.write(options.out / "serve.json", report)
    words = markdown(report)
    files.write_text(options.out / "serve.md", words)
    console().print(words, markup=False)
    note(f"written: {options.out / 'serve.json'}, {options.out / 'serve.md'}")
    return 0


def report_of(
    options: ServeBenchOptions, alone: Sequence[Round], together: Sequence[Round]
) -> dict[str, Any]:
    """The figures of both sides, as plain data."""
    sides: dict[str, Any] = {}
    for name, rounds in (("one after the other", alone), ("together", together)):
        seconds = [each.seconds for each in rounds]
        latencies = sorted(latency for each in rounds for latency in each.latencies)
        middle = statistics.median(seconds)
        worked = [each.cpu for each in rounds if each.cpu is not None]
        sides[name] = {
            "seconds": [round(each, 4) for each in seconds],
            "per_second": round(options.clients / middle, 2),
            "latency_median": round(statistics.median(latencies), 4),
            "latency_95": round(latencies[int(0.95 * (len(latencies) - 1))], 4),
            "batch_rows": round(statistics.mean(each.rows for each in rounds), 1),
            "cpu_ms": round(1e3 * statistics.median(worked) / options.clients, 1)
            if worked
            else None,
        }
    first = alone[0].texts
    same = [
        text == other for each in together for text, other in zip(each.texts, first, strict=True)
    ]
    speeds = [statistics.median(each["seconds"]) for each in sides.values()]
    return {
        "kind": "serve",
        "model": model_name(options.model),
        "machine": machine(),
        "clients": options.clients,
        "keep": options.keep,
        "new_tokens": options.new_tokens,
        "max_batch": options.max_batch,
        "sides": sides,
        "times_the_throughput": round(speeds[0] / speeds[1], 2),
        "equal_answers": sum(same) / len(same),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a table, as docs/how_to/serving.md holds it."""
    from resprune_jax.experiments.bench.markdown import table

    about = report["machine"]
    rows = [
        [
            name, f"{side['per_second']:.1f}", f"{1e3 * side['latency_median']:.0f}",
            f"{1e3 * side['latency_95']:.0f}", f"{side['batch_rows']:.1f}",
            "" if side["cpu_ms"] is None else f"{side['cpu_ms']:.0f}",
        ]
        for name, side in report["sides"].items()
    ]  # fmt: skip
    head = ["", "requests a second", "latency, ms", "95 %, ms", "rows of a batch", "CPU, ms"]
    worked = report["sides"]["together"]["cpu_ms"]
    limit = ""
    if about["platform"] == "cpu" and worked:
        # The other cores' work and the clients' own come on top.
        most = 1e3 * about["cores"] / worked
        limit = f"; at {worked:.0f} ms of CPU each these cores answer {most:.0f} a second at most"
    return (
        f"{report['model']}, {report['clients']} requests, each about its own image, --keep"
        f" {report['keep']}; {about['device']}, {about['cores']} cores, jax {about['jax']}\n\n"
        + table(head, rows)
        + f"\n{report['times_the_throughput']:.1f} times the throughput;"
        f" {report['equal_answers']:.1%} of the answers are equal{limit}\n"
    )
