"""What many at once must not break: one load, batches, bounded queues, deadlines, cancellation, models at rest."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

import qmd
from qmd.errors import ModelError, NotFound, StoreBusy, StoreError
from qmd.serve.http.app import create_app
from qmd.serve.service import Abandoned, Busy, Limits, Service, TooLate
from qmd.serve.service import service as service_module
from qmd.serve.service.batching import Ask, Batcher
from qmd.serve.service.lanes import Lane, check_job
from qmd.serve.service.models import Kept
from qmd.serve.watch import Watcher

from .conftest import CONFIG, NOTES, URL, WordEmbedder, make_service


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[..., SimpleNamespace]]:
    opened: list[Service] = []

    def make(**options: Any) -> SimpleNamespace:
        made = make_service(tmp_path, **options)
        opened.append(made.service)
        return made

    yield make
    for service in opened:
        service.close(1)


def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_eight_first_calls_at_once_load_each_model_once(fresh: Callable[..., SimpleNamespace]) -> None:
    loads: list[str] = []

    def load(name: str) -> WordEmbedder:
        loads.append(name)
        time.sleep(0.2)
        return WordEmbedder()

    made = fresh(open_embedder=load)
    with (
        TestClient(create_app(made.service), base_url=URL) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda n: client.post("/query", json={"query": f"water {n}"}), range(8)))
    assert [a.status_code for a in answers] == [200] * 8
    assert not any("vector" in a.headers.get("QMD-Degraded", "") for a in answers)
    assert loads == ["words"]


def test_a_model_that_fails_to_load_is_tried_again(fresh: Callable[..., SimpleNamespace]) -> None:
    tries: list[int] = []

    def load(name: str) -> WordEmbedder:
        tries.append(1)
        if len(tries) == 1:
            raise ModelError("the file is not there.")
        return WordEmbedder()

    service = fresh(open_embedder=load).service
    assert "vector: the file is not there." in service.search_now("hybrid", "water").degraded
    assert service.search_now("hybrid", "water").degraded == ()


def test_cut_vectors_come_of_the_one_model_that_is_loaded(fresh: Callable[..., SimpleNamespace]) -> None:
    loads: list[str] = []

    def load(name: str) -> WordEmbedder:
        loads.append(name)
        return WordEmbedder()

    models = msgspec.structs.replace(CONFIG.models, dim=8)
    service = fresh(open_embedder=load, config=msgspec.structs.replace(CONFIG, models=models)).service
    whole = service.whole_embedder.embed_query("water")
    cut = service.embedder.embed_query("water")
    np.testing.assert_allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)
    assert service.embedder.fingerprint == f"{service.whole_embedder.fingerprint}/8"
    assert loads == ["words"]
    found = service.search_now("hybrid", "water")  # the index holds whole vectors: not compared, and said
    assert "(32d), the configuration asks for words (8d)" in found.degraded[0]


def test_concurrent_texts_run_in_one_batch_and_come_back_to_their_askers() -> None:
    calls: list[int] = []
    gate = threading.Event()

    def run(key: str, texts: Any) -> Any:
        gate.wait(5)
        calls.append(len(texts))
        return np.array([[float(t)] for t in texts], np.float32)

    batcher = Batcher("t", run, tokens=1000, background_tokens=10, wait_s=0.001)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(batcher.ask, "k", ["0"])
        until(lambda: not batcher._line and batcher._thread is not None)
        others = [pool.submit(batcher.ask, "k", [str(n), str(-n)]) for n in range(1, 20)]
        until(lambda: len(batcher._line) == 19)
        gate.set()
        assert first.result()[0, 0] == 0
        for n, other in enumerate(others, start=1):
            assert other.result()[:, 0].tolist() == [n, -n]
    assert calls == [1, 38]
    batcher.close()


def test_a_batch_stays_within_its_tokens_and_one_bad_batch_harms_no_other() -> None:
    sizes: list[int] = []

    def run(key: str, texts: Any) -> Any:
        sizes.append(sum(2 + len(t) // 4 for t in texts))
        if key == "bad":
            raise ModelError("bad")
        return np.zeros((len(texts), 1), np.float32)

    batcher = Batcher("t", run, tokens=100, background_tokens=50, wait_s=0.02, expected=lambda: 99)
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(batcher.ask, "good", ["x" * 80] * 9) for _ in range(4)]
        bad = pool.submit(batcher.ask, "bad", ["x"])
        assert [len(g.result()) for g in good] == [9] * 4
        with pytest.raises(ModelError):
            bad.result()
    assert max(sizes) <= 100
    sizes.clear()
    assert len(batcher.ask("good", ["x" * 80] * 9, background=True)) == 9
    assert max(sizes) <= 50
    batcher.close()


class Leaving(Future[Any]):
    """Its client leaves just before the answer is there."""

    def set_result(self, result: Any) -> None:
        super().set_exception(Abandoned())
        super().set_result(result)

    def set_exception(self, error: BaseException | None) -> None:
        super().set_exception(Abandoned())
        super().set_exception(error)


@pytest.mark.parametrize("key", ["good", "bad"])
def test_a_client_that_leaves_as_its_answer_comes_ends_no_batch(key: str) -> None:
    def run(key: str, texts: Any) -> Any:
        if key == "bad":
            raise ModelError("bad")
        return np.zeros((len(texts), 1), np.float32)

    batcher = Batcher("t", run, tokens=100, background_tokens=50, wait_s=0.0)
    left, stays = Ask(key, ["x"], 3, Leaving()), Ask(key, ["y"], 3)
    batcher._serve(key, [left, stays])
    assert isinstance(left.future.exception(0), Abandoned)
    if key == "good":
        assert stays.future.result(0).shape == (1, 1)
    else:
        assert isinstance(stays.future.exception(0), ModelError)


def test_requests_go_before_indexing() -> None:
    order: list[str] = []
    gate = threading.Event()

    def run(key: str, texts: Any) -> Any:
        gate.wait(5)
        order.append(key)
        return np.zeros((len(texts), 1), np.float32)

    batcher = Batcher("t", run, tokens=100, background_tokens=10, wait_s=0.0)
    with ThreadPoolExecutor(4) as pool:
        behind = pool.submit(batcher.ask, "behind", ["x" * 32] * 4, background=True)
        until(lambda: len(batcher._behind) == 3)
        before = pool.submit(batcher.ask, "before", ["x"])
        until(lambda: len(batcher._line) == 1)
        gate.set()
        before.result()
        behind.result()
    assert order == ["behind", "before", "behind", "behind", "behind"]
    batcher.close()


def test_vectors_do_not_depend_on_the_company(made: SimpleNamespace) -> None:
    service: Service = made.service
    alone = {text: made.embedder.embed_query(text) for text in NOTES}
    with ThreadPoolExecutor(16) as pool:
        for _ in range(5):
            rows = list(pool.map(service.embedder.embed_query, alone))
            for row, text in zip(rows, alone, strict=True):
                np.testing.assert_array_equal(row, alone[text])


def test_sixty_four_threads_get_the_answers_of_one(made: SimpleNamespace) -> None:
    service: Service = made.service
    texts = ["water", "memory heap", "miso", "味噌", "chmod files", "short memory", "zzz", '"fear water"']
    want = {t: service.search_now("hybrid", t).hits for t in texts}
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda n: service.search_now("hybrid", texts[n % 8]).hits, range(256)))
    assert all(found[n] == want[texts[n % 8]] for n in range(256))


def test_a_full_line_is_told_when_to_come_again(fresh: Callable[..., SimpleNamespace]) -> None:
    made = fresh(limits=Limits(workers=1, waiting=2))
    service: Service = made.service
    gate = threading.Event()
    jobs = [service.searches.submit(lambda: gate.wait(5), 5)]
    until(lambda: service.searches.running == 1)
    jobs += [service.searches.submit(lambda: None, 5) for _ in range(2)]
    with pytest.raises(Busy):
        service.searches.submit(lambda: None, 5)
    with TestClient(create_app(service), base_url=URL) as client:
        answer = client.post("/query", json={"query": "water"})
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) in range(1, 61)
        assert client.get("/health").status_code == 200
        gate.set()
        for job in jobs:
            job.future.result(5)
        assert client.post("/query", json={"query": "water"}).status_code == 200


def test_a_deadline_ends_the_wait(fresh: Callable[..., SimpleNamespace]) -> None:
    made = fresh(limits=Limits(deadline_s=0.3))
    made.embedder.pause_s = 1.0
    with TestClient(create_app(made.service), base_url=URL) as client:
        begin = time.monotonic()
        answer = client.post("/vsearch", json={"query": "water"})
        assert answer.status_code == 504
        assert answer.json()["error"]["type"] == "TooLate"
        assert time.monotonic() - begin < 0.9
        made.embedder.pause_s = 0.0
        time.sleep(0.8)
        assert client.post("/vsearch", json={"query": "water"}).status_code == 200


def test_work_that_waits_past_its_deadline_never_runs() -> None:
    lane = Lane("t", 1, 9)
    gate = threading.Event()
    ran: list[int] = []
    lane.submit(lambda: gate.wait(5), 5)
    late = lane.submit(lambda: ran.append(1), 0.01)
    time.sleep(0.05)
    gate.set()
    with pytest.raises(TooLate):
        late.future.result(5)
    assert ran == []
    assert lane.drain(1)


async def until_async(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


def test_a_client_that_leaves_takes_its_work_along(fresh: Callable[..., SimpleNamespace]) -> None:
    made = fresh(limits=Limits(workers=1))
    service: Service = made.service
    gate = threading.Event()
    ran: list[int] = []

    async def scene() -> None:
        running = asyncio.ensure_future(service.call(lambda: gate.wait(5) and [check_job(), ran.append(1)]))
        await until_async(lambda: service.searches.running == 1)
        waiting = asyncio.ensure_future(service.call(lambda: ran.append(2)))
        await until_async(lambda: service.searches.depth == 1)
        for task in (waiting, running):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.set()
        await service.call(lambda: None)

    asyncio.run(scene())
    assert ran == []


def test_a_stream_nobody_reads_stops_the_writer(
    fresh: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    made = fresh()
    made.writer.pause_s = 0.05
    with served(create_app(made.service)) as url:
        with httpx.stream(
            "POST", f"{url}/ask", json={"question": "boil miso water"}, trust_env=False
        ) as answer:
            for line in answer.iter_lines():
                if line == "event: text":
                    break
        assert made.writer.stopped.wait(3)
    assert made.writer.written < 8


def test_a_model_rests_when_nobody_asks_and_comes_back(fresh: Callable[..., SimpleNamespace]) -> None:
    made = fresh(limits=Limits(idle_s=0.2))
    service: Service = made.service
    service.search_now("vector", "water")
    kept = service.kept[0]
    assert kept.loaded
    until(lambda: not kept.loaded)
    assert service.embedder.dim == 32  # what it says of itself needs no model
    assert not kept.loaded
    assert service.search_now("vector", "water")
    assert kept.loads == 2


def test_a_model_in_use_does_not_rest() -> None:
    kept: Kept[object] = Kept("x", object)
    with kept.use() as model:
        assert not kept.rest(0.0)
        assert kept._get() is model
    assert kept.rest(0.0)
    assert not kept.loaded


def test_the_end_finishes_what_was_accepted() -> None:
    lane = Lane("t", 2, 9)
    done: list[int] = []

    def work(n: int) -> None:
        time.sleep(0.02)
        done.append(n)

    jobs = [lane.submit(lambda n=n: work(n), 5) for n in range(8)]  # type: ignore[misc]
    assert lane.drain(5)
    assert sorted(done) == list(range(8))
    assert all(j.future.done() for j in jobs)
    with pytest.raises(Busy):
        lane.submit(lambda: None, 1)


def test_the_end_does_not_wait_forever() -> None:
    lane = Lane("t", 1, 9)
    gate = threading.Event()
    lane.submit(lambda: gate.wait(5), 5)
    waiting = lane.submit(lambda: None, 5)
    until(lambda: lane.running == 1)
    assert not lane.drain(0.05)
    assert waiting.abandoned
    gate.set()


def test_another_process_may_replace_the_index(fresh: Callable[..., SimpleNamespace]) -> None:
    made = fresh()
    service: Service = made.service
    assert service.search_now("keyword", "miso")
    database = made.places.database()
    for path in database.parent.glob("index.sqlite*"):
        path.unlink() if path.is_file() else None
    with qmd.open(config=CONFIG, places=made.places, embedder=WordEmbedder()) as index:
        (made.notes / "new.md").write_text("# Quince\n\nA quince tree.\n")
        index.add(made.notes, name="notes", embed=False)
    time.sleep(0.6)
    assert service.search_now("keyword", "quince")


def test_the_watcher_outlives_a_bug_in_one_folder(
    fresh: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fresh()
    watcher = Watcher(made.service)
    listener = made.service.events.listen(lambda: None)

    def told() -> list[tuple[str, str, str]]:
        return [(n, str(d.get("collection")), str(d.get("stage"))) for n, d in listener.take()]

    with monkeypatch.context() as patch:
        patch.setattr("qmd.ingest.run.update", lambda *a: {}["maybe"])
        watcher.update(["notes"])
        assert ("index", "notes", "failed") in told()
    (made.notes / "fig.md").write_text("# Fig\n\nFigs are sweet.\n")
    watcher.update(["notes"])
    assert ("index", "notes", "indexed") in told()


def test_a_configuration_that_changes_is_read_again(tmp_path: Path) -> None:
    made = make_service(tmp_path, config=None)
    service: Service = made.service
    made.places.config_dir.mkdir(exist_ok=True)
    file = made.places.config_dir / "config.yaml"
    file.write_text("search: {limit: 2}\nmodels: {embedding: words}\n")
    time.sleep(0.6)
    assert len(service.search_now("keyword", "water OR memory the a")) <= 2
    assert service.config.search.limit == 2
    file.write_text("search: {limt: 3}\n")
    time.sleep(0.6)
    assert service.search_now("keyword", "water")
    assert service.config.search.limit == 2
    assert "Did you mean" in service.events.last["config"]["message"]
    service.close(1)


def test_a_changed_configuration_leaves_no_thread_behind(tmp_path: Path) -> None:
    made = make_service(tmp_path, config=None)
    service: Service = made.service
    made.places.config_dir.mkdir(exist_ok=True)
    file = made.places.config_dir / "config.yaml"
    before = set(threading.enumerate())
    first = service.embedder
    first.embed_query("water")
    for limit in (2, 3, 4):
        file.write_text(f"search: {{limit: {limit}}}\nmodels: {{embedding: words}}\n")
        time.sleep(0.6)
        assert service.search_now("keyword", "water")
        assert service.config.search.limit == limit
        service.embedder.embed_query("water")
    until(lambda: sum(t.name == "qmd-embed" for t in set(threading.enumerate()) - before) == 1)
    assert first.embed_query("water").shape  # a request that still holds the former one is answered
    service.close(1)


@pytest.fixture
def attentive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A service that looks at its files with each request; `configure(text)` writes its configuration."""
    monkeypatch.setattr(service_module, "LOOK_AGAIN_S", -1.0)
    file = tmp_path / "config" / "config.yaml"
    file.parent.mkdir()
    file.write_text("models: {embedding: words}\n")
    made = make_service(tmp_path, config=None)
    made.configure = file.write_text
    yield made
    made.service.close(1)


def test_a_former_index_goes_with_its_last_request(
    attentive: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "qmd.llm.image_text.open_image_text", lambda name, open_text: SimpleNamespace(open_text=open_text)
    )
    service: Service = attentive.service
    threads = set(threading.enumerate())
    gc.disable()
    try:
        for limit in (2, 3, 4):
            asyncio.run(service.search("hybrid", "water"))
            held, former = service.index, weakref.ref(service.index.store.db)
            assert held.image_text
            attentive.configure(f"search: {{limit: {limit}}}\nmodels: {{embedding: words}}\n")
            asyncio.run(service.search("hybrid", "water"))
            assert service.index is not held
            assert held.search("miso")
            del held
            until(lambda: former() is None)  # noqa: B023  it is called within its turn
    finally:
        gc.enable()
    assert service.kept[0].loads == 1, "a model that stays configured is not loaded again"
    assert sum(t.name == "qmd-matrix" for t in set(threading.enumerate()) - threads) <= 1


def test_a_model_that_is_no_longer_configured_goes(attentive: SimpleNamespace) -> None:
    service: Service = attentive.service
    service.search_now("vector", "water")
    former, embedder = service.kept[0], service.embedder
    assert former.loaded
    attentive.configure("models: {embedding: words, dim: 8}\n")
    assert service.search_now("keyword", "water")
    assert not former.loaded
    assert embedder.embed_query("water").shape == (32,)  # who still holds it is answered
    assert not former.loaded


def test_an_index_that_cannot_be_opened_is_never_answered_from_the_former_one(
    attentive: SimpleNamespace,
) -> None:
    service: Service = attentive.service
    database = attentive.places.database()
    good = database.with_name("good")
    database.rename(good)
    database.write_bytes(b"garbage" * 1000)
    attentive.configure("search: {limit: 2}\nmodels: {embedding: words}\n")
    for _ in range(3):
        with pytest.raises(StoreError):
            service.search_now("keyword", "water")
    database.unlink()
    for _ in range(3):
        with pytest.raises(NotFound):
            service.search_now("keyword", "water")
    good.replace(database)
    assert service.search_now("keyword", "water")
    assert service.config.search.limit == 2


def test_a_failed_look_is_taken_again_at_once(fresh: Callable[..., SimpleNamespace]) -> None:
    made = fresh()
    database = made.places.database()
    database.rename(database.with_name("away"))
    made.service._looked = 0.0
    for _ in range(3):
        with pytest.raises(NotFound):
            made.service.search_now("keyword", "water")
    database.with_name("away").rename(database)
    assert made.service.search_now("keyword", "water")


def test_a_change_that_came_while_another_process_wrote_is_read_afterwards(
    fresh: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fresh()
    index, update = made.service.index, made.service.index.update
    busy = iter([True])

    def updated(names: Any, **options: Any) -> Any:
        if next(busy, False):
            raise StoreBusy("another process writes")
        return update(names, **options)

    (made.notes / "late.md").write_text("# Late\n\nA wombat.\n")
    told = [{(1, str(made.notes / "late.md"))}, set(), set()]
    monkeypatch.setattr(index, "update", updated)
    monkeypatch.setattr("watchfiles.watch", lambda *_, **__: iter(told))
    monkeypatch.setattr("qmd.serve.watch.PAUSE_S", 0.0)
    watcher = Watcher(made.service)
    watcher._watch(watcher._roots(), polling=False)
    assert [hit.path for hit in index.search("wombat")] == ["late.md"]
    assert not watcher._unread


@pytest.mark.parametrize("work", ["update", "embed"])
def test_an_index_that_stays_busy_is_tried_less_and_less_often(
    fresh: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    made = fresh()
    index = made.service.index
    now, tried = 0.0, []

    def busy(*_: Any, **__: Any) -> Any:
        tried.append(now)
        raise StoreBusy("another process writes")

    def looks() -> Iterator[set[tuple[int, str]]]:
        nonlocal now
        for now in range(200):
            yield {(1, str(made.notes / "late.md"))} if now == 100 else set()

    (made.notes / "late.md").write_text("# Late\n\nA wombat.\n")
    if work == "embed":
        index.update()
    watcher = Watcher(made.service)
    with monkeypatch.context() as patch:
        patch.setattr("qmd.serve.watch.time", SimpleNamespace(monotonic=lambda: now))
        patch.setattr("watchfiles.watch", lambda *_, **__: looks())
        patch.setattr(index, work, busy)
        watcher._unread.add("notes")
        watcher._watch(watcher._roots(), polling=False)
    assert tried == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    watcher._not_before = 0.0
    watcher.update(watcher._unread)
    assert [hit.path for hit in index.search("wombat")] == ["late.md"]
    assert not watcher._pending()


def test_a_matrix_is_renewed_by_one_and_the_others_go_on(fresh: Callable[..., SimpleNamespace]) -> None:
    made = fresh()
    service: Service = made.service
    service.search_now("vector", "water")
    (made.notes / "new.md").write_text("# Quince\n\nA quince tree in bloom.\n")
    service.index.update()
    service.index.embed()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: service.search_now("vector", "quince tree"), range(8)))
    assert all(hits[0].path == "new.md" for hits in found)


def test_abandoned_is_no_error_of_the_service() -> None:
    lane = Lane("t", 1, 9)
    gate = threading.Event()

    def work() -> None:
        gate.wait(5)
        check_job()

    job = lane.submit(work, 5)
    until(lambda: lane.running == 1)
    job.abandon()
    gate.set()
    with pytest.raises(Abandoned):
        job.future.result(5)


class served:
    """An application on a real socket, for what a test client cannot do: leave, stream, speak as other programs do."""

    def __init__(self, app: Any) -> None:
        import socket

        import uvicorn

        self.socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: self.server.run(sockets=[self.socket]), daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        until(lambda: self.server.started)
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)
