"""The HTTP service under load: requests/s with dynamic batching beside the same service one by one; and fuzzed requests.

    python benchmarks/serving.py
    python benchmarks/serving.py --signatures caption encode_image --clients 1 8 32 --seconds 10 --rounds 5
    python benchmarks/serving.py --fuzz 10000

`mmfusion serve` runs as people run it, a process with `--batching` and processes with `--no-batching`, one for each number of
worker threads in `--peer-threads`; the best of these is the peer. They take turns. A request holds one picture (and a sentence,
where the signature takes one); a load generator in another process (`serving_load.py`) keeps so many connections busy and
compares every answer with what the model says alone. Where `wrk` is installed it drives the same services too, without looking
at answers.

The model has the sizes of a recipe and weights that were never trained: what it writes is no sentence, and as long as it may be.

With `--fuzz` so many spoilt requests (`serving_fuzz.py`) are sent: every answer must be JSON with a status below 500 (503 where
too many wait), the service must answer as before when they are over, and its memory must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import REPOSITORY, add_recipe_arguments, build_ours, emit, read_recipe
from encoding import made_up_tokenizer, photo
from serving_fuzz import is_fine, spoilt_requests
from serving_load import Connection

NAME = "model"
WITH_TEXT = ("match", "attend", "encode_text")
SENTENCES = ("a dog runs on sand", "two men on a bench", "a red heart", "a face")
TOLERANCE = 2e-3


class Service(NamedTuple):
    """A service that runs.

    Attributes:
        process: Its process.
        address: ``http://host:port``.
    """

    process: subprocess.Popen[str]
    address: str

    def memory(self) -> float:
        """MiB that it holds now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    options = read_arguments(arguments)
    recipe = read_recipe(options.recipe, options.overrides)
    with tempfile.TemporaryDirectory(prefix="mmfusion-benchmark-") as folder:
        export = export_untrained(recipe, Path(folder))
        pictures = [photo(argparse.Namespace(seed=seed, photo_size=options.photo_size)) for seed in range(options.pictures)]
        if options.fuzz:
            fuzz(export, pictures, options)
        else:
            measure(export, pictures, options)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    parser.add_argument("--signatures", nargs="+", default=["caption", "encode_image"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=8.0, help="of load, a turn")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--max-wait-ms", type=float, default=5.0)
    parser.add_argument(
        "--peer-threads", nargs="+", type=int, default=[1, 2], help="worker threads of the services without batching"
    )
    parser.add_argument("--pictures", type=int, default=8, help="different pictures")
    parser.add_argument("--photo-size", nargs=2, type=int, default=(240, 320), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--fuzz", type=int, default=0, metavar="REQUESTS", help="send so many spoilt requests instead")
    parser.add_argument("--quick", action="store_true", help="does it work at all: small sizes, a second a turn")
    options = parser.parse_args(arguments)
    if options.quick:
        options.overrides = [*QUICK, *options.overrides]
        options.seconds, options.rounds, options.clients, options.peer_threads = 1.0, 1, [1, 4], [1]
        options.photo_size, options.pictures, options.signatures = (48, 64), 3, options.signatures[:1]
    return options


QUICK = (
    "data.image_size=32",
    "model.image_encoder={patch_size: 8, dim: 24, depth: 1, num_heads: 2}",
    "model.text_encoder={dim: 16, depth: 1, num_heads: 2}",
    "model.embedding_dim=8",
    "fusion={depth: 1, num_heads: 2}",
    "text.max_tokens=8",
    "text.vocabulary_size=300",
)


def export_untrained(recipe: Any, folder: Path) -> Path:
    """An export of the recipe's model with fresh weights."""
    from mmfusion.export import export_model
    from mmfusion.training.experiment import LoadedRun, image_transform
    from mmfusion.training.run_folder import RunFolder

    model = build_ours(recipe, "float32")
    run = LoadedRun(RunFolder(folder / "run"), recipe, model, made_up_tokenizer(recipe), image_transform(recipe))
    return export_model(run, folder / "export")


@contextlib.contextmanager
def service(export: Path, *options: object) -> Iterator[Service]:
    """A service over an export, until this is closed; then it is told to stop, and must do so without an error."""
    command = [sys.executable, "-m", "mmfusion", "serve", str(export), "--port", "0", "--name", NAME, *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))}
    with tempfile.TemporaryFile("w+") as noise:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True, env=environment)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("ready: "):
                    break
            else:
                noise.seek(0)
                raise SystemExit(f"error: the service did not start: {noise.read()[-2000:]}")
            yield Service(process, line.split()[1].partition("/v1/")[0])
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                raise SystemExit(f"error: the service ended with status {process.returncode}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def measure(export: Path, pictures: Sequence[bytes], options: argparse.Namespace) -> None:
    """Lets the service with batching and those without take turns under load, and prints a line a number of clients."""
    shared = ("--max-batch", options.max_batch, "--max-queue", 1024)
    with contextlib.ExitStack() as stack:
        waits = ("--max-wait-ms", options.max_wait_ms, "--worker-threads", 1)
        services = {"joined": stack.enter_context(service(export, *shared, *waits))}
        for threads in options.peer_threads:
            peer = service(export, *shared, "--no-batching", "--worker-threads", threads)
            services[f"one by one, {threads} threads"] = stack.enter_context(peer)
        for name in options.signatures:
            questions = expected_answers(services["joined"], name, pictures)
            for clients in options.clients:
                turns: dict[str, list[dict[str, Any]]] = {key: [] for key in services}
                rows = {key: batch_rows(value) for key, value in services.items()}
                for turn in range(options.rounds + 1):
                    for key, value in services.items():
                        # The first turn warms up, and is short.
                        seconds = options.seconds if turn else min(options.seconds, 2.0)
                        answer = drive(value, questions, clients, seconds)
                        if turn:
                            turns[key].append(answer)
                means = {key: mean_rows(rows[key], batch_rows(value)) for key, value in services.items()}
                print_line(name, clients, turns, means, wrk(services, questions, clients, options), options)


def expected_answers(one: Service, name: str, pictures: Sequence[bytes]) -> list[dict[str, Any]]:
    """Requests with what the model answers to each alone."""

    async def ask() -> list[dict[str, Any]]:
        connection = Connection(one.address)
        questions = []
        for number, picture in enumerate(pictures):
            instance: dict[str, Any] = {}
            if name != "encode_text":
                instance["image_bytes"] = {"b64": base64.b64encode(picture).decode()}
            if name in WITH_TEXT:
                instance["text"] = SENTENCES[number % len(SENTENCES)]
            body = json.dumps({"signature_name": name, "instances": [instance]})
            status, _, content = await connection.ask("POST", f"/v1/models/{NAME}:predict", body.encode())
            if status != 200:
                raise SystemExit(f"error: {name} answers {status}: {content[:300]!r}")
            questions.append({"body": body, "answer": json.loads(content)})
        await connection.close()
        return questions

    return asyncio.run(ask())


def drive(one: Service, questions: Sequence[Mapping[str, Any]], clients: int, seconds: float) -> dict[str, Any]:
    """What the load generator says of so many seconds."""
    plan = {
        "address": one.address,
        "path": f"/v1/models/{NAME}:predict",
        "clients": clients,
        "seconds": seconds,
        "tolerance": TOLERANCE,
        "requests": questions,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(plan, file)
        file.flush()
        command = [sys.executable, str(Path(__file__).with_name("serving_load.py")), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 120)
    return json.loads(done.stdout)


def batch_rows(one: Service) -> tuple[float, float]:
    """Rows and calls of the model until now."""
    return one.metric("mmfusion_batch_rows_sum"), one.metric("mmfusion_batch_rows_count")


def mean_rows(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Rows of a call between two counts."""
    return round((after[0] - before[0]) / max(after[1] - before[1], 1.0), 2)


def wrk(
    services: Mapping[str, Service], questions: Sequence[Mapping[str, Any]], clients: int, options: argparse.Namespace
) -> dict[str, float] | None:
    """Requests/s as `wrk` counts them, by service; None where it is not installed."""
    if shutil.which("wrk") is None:
        return None
    rates = {}
    for key, one in services.items():
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            # JSON holds no ]==], so that Lua takes it as it is.
            bodies = ", ".join(f"[==[{question['body']}]==]" for question in questions)
            script.write(f"local bodies = {{{bodies}}}\nlocal turn = 0\nwrk.method = 'POST'\n")
            script.write("request = function() turn = turn % #bodies + 1; return wrk.format(nil, nil, nil, bodies[turn]) end\n")
            script.flush()
            command = ["wrk", "-t", "1", "-c", str(clients), "-d", f"{max(1, round(options.seconds))}s", "--timeout", "60s"]
            address = f"{one.address}/v1/models/{NAME}:predict"
            done = subprocess.run([*command, "-s", script.name, address], capture_output=True, text=True, check=True)
        if "Non-2xx" in done.stdout or "Requests/sec:" not in done.stdout:
            raise SystemExit(f"error: wrk says: {done.stdout}")
        rates[key] = float(done.stdout.partition("Requests/sec:")[2].split()[0])
    return rates


def print_line(
    name: str,
    clients: int,
    turns: Mapping[str, Sequence[Mapping[str, Any]]],
    means: Mapping[str, float],
    by_wrk: Mapping[str, float] | None,
    options: argparse.Namespace,
) -> None:
    """Prints the line of one number of clients."""
    rates = {key: statistics.median(turn["rate"] for turn in values) for key, values in turns.items()}
    peer = max((key for key in rates if key != "joined"), key=lambda key: rates[key])
    ratios = [ours["rate"] / theirs["rate"] for ours, theirs in zip(turns["joined"], turns[peer], strict=True)]
    emit(
        f"serving.{name}.clients_{clients}",
        rates["joined"],
        "requests/s",
        peer=f"mmfusion serve --no-batching ({peer})",
        peer_value=rates[peer],
        details={
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            **{f"{short}_p{share}_ms": round(statistics.median(turn[f"p{share}_ms"] for turn in turns[key]), 2)
               for short, key in (("ours", "joined"), ("peer", peer)) for share in (50, 99)},
            **{count: sum(turn[count] for values in turns.values() for turn in values)
               for count in ("sent", "answered", "wrong", "refused", "lost")},
            "rows_a_call": means,
            "all_rates": {key: round(rate, 2) for key, rate in rates.items()},
            "wrk_requests_per_s": by_wrk,
            "rounds": options.rounds,
            "seconds_a_turn": options.seconds,
            "max_batch": options.max_batch,
            "max_wait_ms": options.max_wait_ms,
            "photo_size": list(options.photo_size),
        },
    )  # fmt: skip
    spoilt = [turn["first_wrong"] for values in turns.values() for turn in values if turn["wrong"]]
    if spoilt or any(turn["lost"] for values in turns.values() for turn in values):
        raise SystemExit(f"error: answers are wrong or lost: {spoilt[:1]}")


def fuzz(export: Path, pictures: Sequence[bytes], options: argparse.Namespace) -> None:
    """Sends spoilt requests over eight connections; prints how many were answered how, and what memory did."""
    with service(export, "--max-batch", options.max_batch) as one:
        before = expected_answers(one, "encode_image", pictures)
        start = time.perf_counter()
        statuses, faults, memory = asyncio.run(send_spoilt(one, pictures, options))
        passed = time.perf_counter() - start
        after = expected_answers(one, "encode_image", pictures)
        alive = one.process.poll() is None and before == after
        # The first tenth fills caches: of TensorFlow, of the allocator, of Python.
        growth = memory[-1] - memory[1]
        emit(
            "serving.fuzz",
            float(options.fuzz),
            "requests",
            details={
                "faults": len(faults),
                "first_faults": faults[:3],
                "statuses": dict(sorted(statuses.items())),
                "answers_as_before": alive,
                "memory_mib": [round(value, 1) for value in memory],
                "growth_mib_after_the_first_tenth": round(growth, 1),
                "seconds": round(passed, 1),
                "seed": options.seed,
            },
        )
    if faults or not alive:
        raise SystemExit(f"error: {faults[:3] or 'the service answers otherwise than before'}")


async def send_spoilt(
    one: Service, pictures: Sequence[bytes], options: argparse.Namespace
) -> tuple[dict[int, int], list[str], list[float]]:
    """Answers by status, what was wrong with any, and MiB of the service at every tenth."""
    requests = spoilt_requests(options.seed, NAME, list(pictures))
    statuses: dict[int, int] = {}
    faults: list[str] = []
    memory = [one.memory()]
    sent = 0

    async def client() -> None:
        nonlocal sent
        connection = Connection(one.address)
        while sent < options.fuzz:
            sent += 1
            if sent % max(options.fuzz // 10, 1) == 0:
                memory.append(one.memory())
            request = next(requests)
            try:
                status, _, body = await connection.ask(request.method, request.path, request.body, request.headers)
            except (OSError, asyncio.IncompleteReadError) as error:
                await connection.close()
                status, body = 0, repr(error).encode()
            statuses[status] = statuses.get(status, 0) + 1
            fault = is_fine(request, status, body)
            if fault is not None:
                faults.append(fault)

    await asyncio.gather(*(client() for _ in range(8)))
    memory.append(one.memory())
    return statuses, faults, memory


if __name__ == "__main__":
    main()
