"""What a running `qmd serve` costs and gives: latency, load, the command line through it, embeddings, hard ends.

    python benchmarks/serving.py CORPUS [--data FOLDER] [--seconds 60] [--clients 64] [--only alone,load,...] [--save]

CORPUS is the folder that benchmarks/corpus.py makes (20,000 files). The index is made in FOLDER if it is not there;
chunks that have no vector get random unit rows under the model's name: what a scan costs does not depend on them. The
server is one process, the load comes from another. Prints one JSON line a figure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from environment import append_result, environment

import qmd
from qmd.config import Config, Places
from qmd.serve.spot import find_spot, read_state

QUERIES = [
    "how do I change file permissions",
    "allocate memory on the heap",
    "restart a service after a crash",
    "list open sockets of a process",
    "regular expression that matches a word boundary",
    "mount a file system read only",
    "difference between fork and vfork",
    "django template filter date",
    "kernel scheduler latency",
    "convert string to integer",
    "signal handler safe functions",
    "ssl certificate verify chain",
    "perl hash of arrays",
    "thread local storage",
    "environment variables in a shell script",
    "erlang supervisor restart strategy",
]


PACKAGES = ("starlette", "uvicorn", "h11", "numkong")
SHOWN: dict[str, object] = {}


def show(name: str, **figures: Any) -> None:
    SHOWN[name] = figures
    print(json.dumps({"figure": name, **figures}), flush=True)


def build(corpus: Path, places: Places) -> None:
    """The index, with a vector for every chunk."""
    with qmd.open(places=places, config=Config()) as index:
        if not index.store.collections():
            index.add(corpus, name="bench", embed=False)
        rng = np.random.default_rng(0)
        embedder = index.embedder
        filled = 0
        while pending := index.store.vectors.pending(embedder.fingerprint, 20_000):
            rows = rng.standard_normal((len(pending), embedder.dim), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            index.store.vectors.put(
                embedder.fingerprint,
                embedder.card.name,
                embedder.dim,
                zip((p.key for p in pending), rows, strict=True),
            )
            filled += len(pending)
        index.store.vectors.matrix(embedder.fingerprint)
        counts = index.store.counts()
        show("index", documents=counts.documents, chunks=counts.chunks, random_vectors_added=filled)


class Server:
    """`qmd serve` in its own process."""

    def __init__(self, places: Places, *arguments: str) -> None:
        self.places = places
        self.env = {
            **os.environ,
            "QMD_CONFIG_DIR": str(places.config_dir),
            "QMD_DATA_DIR": str(places.data_dir),
            "QMD_RUN_DIR": str(places.data_dir / "run"),
            "QMD_MODEL_SOCKET": str(places.data_dir / "run" / "models.sock"),
        }
        os.environ["QMD_RUN_DIR"] = self.env["QMD_RUN_DIR"]
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "qmd", "serve", "--daemon", "--port", "0", "--no-watch", *arguments],
            env=self.env,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        self.start_s = time.perf_counter() - begin
        state = read_state(find_spot(places))
        assert state is not None
        self.state = state
        self.port = int(state.url.rsplit(":", 1)[1])
        while self.get("/ready")[0] != 200:
            time.sleep(0.02)
        self.ready_s = time.perf_counter() - begin

    def get(self, path: str) -> tuple[int, bytes]:
        link = HTTPConnection("127.0.0.1", self.port, timeout=60)
        link.request("GET", path)
        answer = link.getresponse()
        found = answer.status, answer.read()
        link.close()
        return found

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics")[1].decode(), re.M)
        assert found, name
        return float(found[1])

    def rss(self) -> float:
        return self.metric("process_resident_memory_bytes") / 1e6

    def stop(self) -> None:
        subprocess.run(
            [sys.executable, "-m", "qmd", "serve", "stop"],
            env=self.env,
            check=True,
            stdout=subprocess.DEVNULL,
        )


class Client:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self.link = HTTPConnection("127.0.0.1", port, timeout=120)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        self.link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.link.getresponse()
        return answer.status, answer.read()


def alone(server: Server, repeats: int = 5) -> None:
    """One client, one question at a time: what a person waits for."""
    client = Client(server.port)
    ways: dict[str, list[float]] = {"hybrid": [], "keyword": [], "vector": []}
    cpu = server.metric("process_cpu_seconds")
    for _ in range(repeats):
        for query in QUERIES:
            for mode, times in ways.items():
                begin = time.perf_counter()
                status, _ = client.post("/query", {"query": query, "mode": mode})
                times.append(1000 * (time.perf_counter() - begin))
                assert status == 200
    cpu = server.metric("process_cpu_seconds") - cpu
    for mode, times in ways.items():
        show(
            f"POST /query alone, {mode}",
            median_ms=round(statistics.median(times), 2),
            p90_ms=round(sorted(times)[int(0.9 * len(times))], 2),
            n=len(times),
            bar_ms=40 if mode == "hybrid" else None,
        )
    total = sum(map(len, ways.values()))
    show("server CPU a request, all modes", ms=round(1000 * cpu / total, 2))


LOAD = """
import asyncio, json, random, sys, time
sys.path[:0] = [{here!r}]
from serving import load_client
print(json.dumps(asyncio.run(load_client({port}, {clients}, {seconds}, {expected!r}))))
"""


async def load_client(port: int, clients: int, seconds: float, expected: str) -> dict[str, Any]:
    """Many clients, each on a connection of its own, asking as fast as it is answered; answers compared."""
    want: dict[str, Any] = json.loads(Path(expected).read_text())
    end = time.perf_counter() + seconds
    times: list[float] = []
    counts = {"ok": 0, "busy": 0, "degraded": 0, "wrong": 0, "errors": 0}
    told: list[str] = []

    async def one(number: int) -> None:
        rng = random.Random(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            query = rng.choice(QUERIES)
            body = json.dumps({"query": query}).encode()
            begin = time.perf_counter()
            head = f"POST /query HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status = int((await reader.readline()).split()[1])
            length, wait = 0, 1.0
            while line := (await reader.readline()).strip():
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
                elif name.lower() == b"retry-after":
                    wait = float(value)
            content = await reader.readexactly(length)
            if status == 200:
                times.append(time.perf_counter() - begin)
                found = json.loads(content)
                said_so = any("degraded" in hit for hit in found)  # a stage left out, and told
                counts["ok" if found == want[query] else "degraded" if said_so else "wrong"] += 1
            elif status == 429:
                counts["busy"] += 1
                await asyncio.sleep(wait)
            else:
                counts["errors"] += 1
                told.append(f"{status} {content[:200]!r}")
        writer.close()

    await asyncio.gather(*(one(n) for n in range(clients)))
    times.sort()

    def at(share: float) -> float:
        return round(1000 * times[min(len(times) - 1, int(share * len(times)))], 1) if times else 0.0

    return {
        **counts,
        "a_second": round(counts["ok"] / seconds, 1),
        "median_ms": at(0.5),
        "p99_ms": at(0.99),
        "slowest_ms": at(1.0),
        "told": told[:3],
    }


def load(server: Server, clients: int, seconds: float) -> None:
    """The same answers as alone, no error but 429, bounded waits, no growth."""
    client = Client(server.port)
    want = {query: json.loads(client.post("/query", {"query": query})[1]) for query in QUERIES}
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(want, file)
    here = str(Path(__file__).parent)
    code = LOAD.format(here=here, port=server.port, clients=clients, seconds=seconds, expected=file.name)
    memory: list[tuple[float, float]] = []
    begin = time.perf_counter()
    cpu, batches, asks = (
        server.metric(m) for m in ("process_cpu_seconds", "qmd_embed_batches", "qmd_embed_requests")
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ, text=True
    )
    while process.poll() is None:
        memory.append((time.perf_counter() - begin, server.rss()))
        time.sleep(0.5)
    assert process.stdout is not None
    found = json.loads(process.stdout.read())
    os.unlink(file.name)
    after = [m for t, m in memory if t > min(10, seconds / 3)]
    growth = 100 * (statistics.mean(after[-6:]) / statistics.mean(after[:6]) - 1)
    asked = server.metric("qmd_embed_requests") - asks
    show(
        f"{clients} clients, {seconds:g} s",
        **found,
        server_cpu_s=round(server.metric("process_cpu_seconds") - cpu, 1),
        texts_a_batch=round(asked / max(1.0, server.metric("qmd_embed_batches") - batches), 2),
        rss_mb=round(after[-1], 1),
        growth_percent_after_10s=round(growth, 2),
        bar="wrong 0, errors 0, growth under 5%",
    )


def command_line(server: Server, repeats: int = 9) -> None:
    """`qmd query` as a process: through the daemon, and alone."""
    for name, extra in (("through the daemon", {}), ("alone", {"QMD_NO_DAEMON": "1"})):
        cpu, wall = [], []
        outputs = set()
        for number in range(repeats if name != "alone" else 3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "qmd", "query", QUERIES[number % 3], "--json"],
                env={**server.env, **extra},
                capture_output=True,
                check=True,
            )
            wall.append(time.perf_counter() - begin)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            outputs.add((number % 3, done.stdout))
        show(
            f"qmd query as a process, {name}",
            cpu_s=round(statistics.median(cpu), 3),
            most_cpu_s=round(max(cpu), 3),
            wall_s=round(statistics.median(wall), 3),
            same_every_time=len(outputs) == 3,
            bar_cpu_s=0.25 if not extra else None,
        )


def embeddings(server: Server, repeats: int = 5, texts_a_request: int = 32, clients: int = 3) -> None:
    """Texts a second over /v1/embeddings beside the engine in this process, in turn. The engine is the server's own
    class with the same threads; only one of the two works at a time."""
    from qmd.llm import open_embedder

    with qmd.open(places=server.places, config=Config(), create=False) as index:
        rows = index.store.db.all("SELECT id FROM chunks ORDER BY id % 997, id LIMIT 192")
        texts = [row.text for row in index.store.chunks([r[0] for r in rows]).values()]
    engine = open_embedder()
    groups = [texts[i : i + texts_a_request] for i in range(0, len(texts), texts_a_request)]

    def over_http(number: int) -> None:
        client = Client(server.port)
        for group in groups[number::clients]:
            status, _ = client.post("/v1/embeddings", {"input": group, "encoding_format": "base64"})
            assert status == 200

    def here() -> float:
        begin = time.perf_counter()
        for group in groups:
            engine.embed_documents(group)
        return time.perf_counter() - begin

    def there() -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(over_http, range(clients)))
        return time.perf_counter() - begin

    here(), there()
    pairs = [(here(), there()) for _ in range(repeats)]
    ratios = sorted(h / t for h, t in pairs)
    show(
        "/v1/embeddings beside the engine in process",
        texts_a_second_http=round(len(texts) / statistics.median(t for _, t in pairs), 1),
        texts_a_second_in_process=round(len(texts) / statistics.median(h for h, _ in pairs), 1),
        ratio=round(statistics.median(ratios), 3),
        spread=[round(ratios[0], 3), round(ratios[-1], 3)],
        bar=0.9,
    )


def first_calls(places: Places) -> None:
    """Eight at once to a server whose models have been let go."""
    server = Server(places, "--idle", "0.5")
    time.sleep(6.5)
    before = server.metric("qmd_model_loads")
    loaded = server.metric("qmd_models_loaded")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda q: Client(server.port).post("/query", {"query": q})[0], QUERIES[:8]))
    show(
        "eight first calls at once",
        answers=found,
        models_loaded_before=loaded,
        loads=server.metric("qmd_model_loads") - before,
        bar="1 load",
    )
    server.stop()


def hard_end(places: Places) -> None:
    """kill -9 under load; the next one takes over and answers the same."""
    server = Server(places)
    client = Client(server.port)
    want = client.post("/query", {"query": QUERIES[0]})[1]
    stop = threading.Event()

    def ask() -> None:
        mine = Client(server.port)
        while not stop.is_set():
            try:
                mine.post("/query", {"query": QUERIES[1]})
            except OSError:
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    os.kill(server.state.pid, signal.SIGKILL)
    stop.set()
    for thread in threads:
        thread.join()
    begin = time.perf_counter()
    following = Server(places)
    took = time.perf_counter() - begin
    same = Client(following.port).post("/query", {"query": QUERIES[0]})[1] == want
    with qmd.open(places=places, config=Config(), create=False) as index:
        quick = index.store.db.value("PRAGMA quick_check(1)")
    show("kill -9", next_start_s=round(took, 2), same_answer=same, database=quick)
    following.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--only", default="alone,load,cli,embeddings,first,kill")
    parser.add_argument("--save", action="store_true", help="add the figures to results/serving.jsonl")
    options = parser.parse_args()
    only = options.only.split(",")
    folder = options.data or Path(tempfile.mkdtemp(prefix="qmd-serving-"))
    places = Places(folder, folder)
    show("environment", **environment(PACKAGES))
    build(options.corpus, places)
    if {"alone", "load", "cli", "embeddings"} & set(only):
        server = Server(places)
        show("start", listening_s=round(server.start_s, 2), ready_s=round(server.ready_s, 2))
        if "alone" in only:
            alone(server)
        if "load" in only:
            load(server, options.clients, options.seconds)
        if "cli" in only:
            command_line(server)
        if "embeddings" in only:
            embeddings(server)
        server.stop()
    if "first" in only:
        first_calls(places)
    if "kill" in only:
        hard_end(places)
    if options.save:
        SHOWN.pop("environment")
        append_result("serving", SHOWN, PACKAGES)


if __name__ == "__main__":
    main()
