"""A web page somewhere, another user on the machine, a hostile note, a cloned project: none gets what is not theirs."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from qmd.errors import NotFound, UsageError
from qmd.reports import NotShown
from qmd.serve import daemon
from qmd.serve.http.app import ROUTES, create_app
from qmd.serve.http.guard import SECURITY_HEADERS
from qmd.serve.service import Service
from qmd.serve.service.images import image_type, read_image, read_inside

TOKEN = "correct-horse-battery-staple"
FILLED = {"{collection}": "notes", "{path:whole}": "home/soup.md", "{docid}": "abc123"}
STREAMS = {"/events"}


def every_route() -> list[tuple[str, str]]:
    routes = [(method, path) for method, path, _ in ROUTES] + [("GET", "/nope"), ("DELETE", "/query")]
    for mark, value in FILLED.items():
        routes = [(method, path.replace(mark, value)) for method, path in routes]
    return routes


def ask(client: TestClient, method: str, path: str, **headers: str) -> Any:
    body = b'{"query": "water", "question": "water", "input": "x", "inputs": "x", "texts": ["x"]}'
    given = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return client.request(method, path, content=body if method == "POST" else None, headers=given)


EVIL_HOSTS = [
    "evil.example",
    "evil.example:8181",
    "localhost.evil:8181",
    "localhost.evil.example:8181",
    "evil-localhost:8181",
    "127.0.0.1.evil.example:8181",
    "0.0.0.0:8181",
    "0:8181",
    "127.1:8181",
    "2130706433:8181",
    "0x7f.1:8181",
    "[::]:8181",
    "[::ffff:127.0.0.1]:8181",
    "192.168.1.1:8181",
    "localhost:80",
    "localhost:8182",
    "localhost",
    "localhost:",
    "localhost:8181:8181",
    "localhost:0x1ff5",
    "localhost:8181@evil.example",
    "evil.example@localhost:8181",
    "localhost:8181/evil",
    "localhost.:8181",
    "null",
    "",
    " ",
]


@pytest.mark.parametrize("host", EVIL_HOSTS)
def test_another_host_is_refused(client: TestClient, host: str) -> None:
    assert ask(client, "GET", "/health", Host=host).status_code == 421
    assert ask(client, "POST", "/query", Host=host).status_code == 421


@pytest.mark.parametrize(("method", "path"), every_route())
def test_host_and_origin_are_checked_on_every_route(client: TestClient, method: str, path: str) -> None:
    assert ask(client, method, path, Host="evil.example:8181").status_code == 421
    assert ask(client, method, path, Origin="http://evil.example").status_code == 403
    assert ask(client, method, path, Origin="null").status_code == 403
    assert ask(client, method, path, Sec_Fetch_Site="cross-site").status_code == 403


@pytest.mark.parametrize("host", ["localhost:8181", "127.0.0.1:8181", "[::1]:8181", "LOCALHOST:8181"])
def test_this_machine_by_its_names(client: TestClient, host: str) -> None:
    assert ask(client, "GET", "/health", Host=host).status_code == 200
    assert ask(client, "GET", "/health", Host=host, Origin=f"http://{host}").status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "http://localhost.evil:8181",
        "http://localhost:3000",
        "http://127.0.0.1",
        "http://localhost:8181",  # another name of this machine: a page served there is not ours
        "http://0.0.0.0:8181",
        "http://[::1]:8181",
        "file://",
        "chrome-extension://abcdef",
        "http://127.0.0.1:8181.evil.example",
        "http://127.0.0.1:8181@evil.example",
        "",
    ],
)
def test_another_origin_is_refused(client: TestClient, origin: str) -> None:
    assert ask(client, "POST", "/query", Origin=origin).status_code == 403


def test_several_hosts_or_origins_are_refused(client: TestClient) -> None:
    hosts = client.get("/health", headers=[("Host", "127.0.0.1:8181"), ("Host", "evil.example")])
    assert hosts.status_code == 421
    origins = [("Origin", "http://127.0.0.1:8181"), ("Origin", "http://evil.example")]
    assert client.get("/health", headers=origins).status_code == 403


def test_a_page_may_link_here_but_not_look_inside(client: TestClient) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers=link).status_code in (200, 404)  # 404: this tree has no page
    assert client.get("/", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert client.get("/status", headers=link).status_code == 403
    assert client.get("/raw/abc123", headers={"Sec-Fetch-Site": "same-site"}).status_code == 403


@pytest.fixture(scope="module")
def locked(service: Service) -> Iterator[TestClient]:
    app = create_app(service, token=TOKEN, allowed_hosts=("files.example", "files.example:443"))
    with TestClient(app, base_url="http://files.example:8181") as opened:
        yield opened


@pytest.mark.parametrize(("method", "path"), [r for r in every_route() if r[1] not in ("/", "/health")])
def test_every_route_asks_for_the_token(locked: TestClient, method: str, path: str) -> None:
    for given in (
        "",
        "Bearer",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xe9",
    ):
        headers = {"Authorization": given.encode("latin-1")} if given else {}
        answer = locked.request(
            method, path, headers=headers, json={"query": "x"} if method == "POST" else None
        )
        assert answer.status_code == 401, (given, path)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    if path not in STREAMS:
        good = ask(locked, method, path, Authorization=f"Bearer {TOKEN}")
        assert good.status_code not in (401, 403, 421)


def test_the_token_is_compared_in_constant_time(locked: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    locked.get("/status", headers={"Authorization": "Bearer nearly"})
    assert compared == [(b"nearly", TOKEN.encode())]


def test_allowed_names_are_names_of_this_service(locked: TestClient) -> None:
    assert locked.get("/health").status_code == 200
    assert locked.get("/health", headers={"Host": "files.example:443"}).status_code == 200
    assert locked.get("/health", headers={"Host": "files.example"}).status_code == 200
    assert locked.get("/health", headers={"Host": "files.example:80"}).status_code == 421
    assert locked.get("/health", headers={"Host": "other.example"}).status_code == 421
    assert locked.get("/health", headers={"Host": "127.0.0.1:8181"}).status_code == 421


@pytest.mark.parametrize(
    ("host", "allowed", "asked"),
    [
        ("127.0.0.1", ("files.example",), "files.example"),
        ("127.0.0.1", ("files.example",), "files.example:443"),
        ("127.0.0.1", ("files.example:80",), "files.example"),
        ("127.0.0.1", ("[fd00::1]",), "[fd00::1]"),
        ("127.0.0.2", (), "127.0.0.2:8181"),
        ("fd00::1", (), "[fd00::1]:8181"),
        ("[fd00::1]", (), "[FD00::1]:8181"),
        ("0:0:0:0:0:0:0:1", (), "[0:0:0:0:0:0:0:1]:8181"),
    ],
)
def test_a_daemon_answers_by_the_names_it_was_given(
    service: Service, host: str, allowed: tuple[str, ...], asked: str
) -> None:
    app = create_app(service, allowed_hosts=daemon.hosts_for(host, allowed))
    with TestClient(app, base_url=f"http://{host if host.startswith('127') else '127.0.0.1'}:8181") as client:
        assert client.get("/health", headers={"Host": asked}).status_code == 200
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", "10.0.0.1"])
def test_beyond_this_machine_a_token_is_needed(host: str) -> None:
    with pytest.raises(UsageError, match="needs a token"):
        daemon.bind(host, 0, token=None)


def test_what_is_no_name_of_a_host_is_told() -> None:
    with pytest.raises(UsageError, match="no name of a host"):
        daemon.bind(f"{'a' * 70}.com", 0, token="x" * 16)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_none(host: str) -> None:
    assert daemon.is_loopback(host)


def test_a_token_file_is_private_and_long_enough(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        daemon.read_token(file)
    file.chmod(0o600)
    assert daemon.read_token(file) == TOKEN
    for bad in ("short", "two words are not one token", "ünicode-token-is-not-ascii"):
        file.write_text(bad)
        with pytest.raises(UsageError, match="16 or more"):
            daemon.read_token(file)
    with pytest.raises(NotFound):
        daemon.read_token(tmp_path / "none")


def test_bodies_end_at_one_megabyte(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    large = b'{"query": "' + b"x" * (1 << 20) + b'"}'
    json_type = {"Content-Type": "application/json"}
    assert client.post("/query", content=large, headers=json_type).status_code == 413
    assert client.post("/query", content=chunks(), headers=json_type).status_code == 413
    lie = json_type | {"Content-Length": "12x"}
    assert client.post("/query", content=b"{}", headers=lie).status_code == 413
    assert client.get("/documents?pattern=" + "x" * 20_000).status_code == 414


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/jsonp",
        "text/plain, application/json",
    ],
)
def test_only_json_is_read(client: TestClient, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    assert client.post("/query", content=b'{"query": "x"}', headers=headers).status_code == 415
    for good in ("application/json", "application/json; charset=UTF-8", "APPLICATION/JSON"):
        assert (
            client.post("/query", content=b'{"query": "x"}', headers={"Content-Type": good}).status_code
            == 200
        )


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:
    for answer in (client.get("/health"), client.get("/nope"), ask(client, "GET", "/health", Host="evil")):
        for name, value in SECURITY_HEADERS:
            assert answer.headers[name.decode()] == value.decode()
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


def test_no_preflight_is_answered(client: TestClient) -> None:
    answer = client.options("/query", headers={"Access-Control-Request-Method": "POST"})
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def traversals(secret: Path) -> list[str]:
    """1,000 ways to write a path that leads out: dots, encodings, separators, prefixes, in every mixture."""
    ups = [
        "..",
        "%2e%2e",
        "%2e.",
        "..%00",
        "....",
        "．．",
        "..;",
        "\x00..",
        "..\\",
        "%252e%252e",
        "․․",
        "..%c0%af",
    ]
    seps = ["/", "//", "\\", "%2f", "%5c", "/./", "%252f", "∕"]
    tails = [
        "etc/passwd",
        str(secret).lstrip("/"),
        "proc/self/environ",
        "data/index.sqlite",
        "outside.txt",
        "link.md",
    ]
    heads = ["", "notes/", "qmd://notes/", "qmd://", "/", "home/", "~/", "file:///", "notes/home/", "#"]
    found = [
        head + sep.join([up] * depth) + sep + tail
        for head, up, sep, tail, depth in itertools.product(heads, ups, seps, tails, (1, 3, 8))
    ]
    found += [str(secret), f"file://{secret}", "/etc/passwd", "~/.ssh/id_rsa", "/dev/zero", "/proc/self/mem"]
    return random.Random(8).sample(found, 994) + found[-6:]


@pytest.fixture(scope="module")
def secret(made: SimpleNamespace) -> Path:
    """A file beside the collection, with links to it inside: none of them is indexed, and none may be read."""
    outside: Path = made.notes.parent / "outside.txt"
    outside.write_text("root:x:0:0 the secret outside")
    (made.notes / "link.md").symlink_to(outside)
    (made.notes / "folder").symlink_to(made.notes.parent)
    made.service.index.update(force=True)
    return outside


def test_a_thousand_ways_out_lead_nowhere(client: TestClient, service: Service, secret: Path) -> None:
    tried = traversals(secret)
    assert len(set(tried)) == 1000
    index = service.index
    for number, path in enumerate(tried):
        with pytest.raises((NotFound, UsageError)):
            index.get(path)
        assert all(isinstance(found, NotShown) for found in index.multi_get(path))
        address = f"/documents/notes/{quote(path, safe='') if number % 2 else path.lstrip('/')}"
        if address.isprintable():  # no client can send it
            answer = client.get(address)
            assert answer.status_code in (400, 404), (address, answer.text)
            assert "secret outside" not in answer.text
        answer = client.get("/documents", params={"pattern": path})
        assert answer.status_code in (200, 400)
        assert "secret outside" not in answer.text
        assert "root:x" not in answer.text
        assert client.get(f"/raw/{quote(path, safe='')}").status_code == 404
        with pytest.raises(NotFound):
            read_image(index, path)


def test_text_is_served_as_it_was_stored_whatever_lies_there_now(
    client: TestClient, made: SimpleNamespace, secret: Path
) -> None:
    note = made.notes / "home" / "cats.md"
    before = note.read_text()
    note.unlink()
    note.symlink_to(secret)
    try:
        assert client.get("/documents/notes/home/cats.md").json()["body"] == before.rstrip("\n")
    finally:
        note.unlink()
        note.write_text(before)


@pytest.mark.parametrize("posix", [True, False])
def test_bytes_are_read_without_following_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, posix: bool
) -> None:
    if not posix:
        for flag in ("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK"):
            monkeypatch.delattr(os, flag)
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "in" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "away").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    assert read_inside(str(root), "in/a.png").endswith(b"...")
    for path in (
        "link.png",
        "away/secret.png",
        "../secret.png",
        "in/../../secret.png",
        "/etc/passwd",
        "",
        "in",
        "pipe.png",
    ):
        with pytest.raises(OSError):  # noqa: PT011  the kind of refusal is the system's
            read_inside(str(root), path)


def test_only_images_are_given_as_bytes(service: Service, client: TestClient) -> None:
    document = service.index.ls("notes/home/soup.md")[0]
    assert client.get(f"/raw/{document.docid}").status_code == 404
    assert image_type(b"<svg onload=alert(1)>") is None
    assert image_type(b"<html>") is None
    assert image_type(b"\xff\xd8\xff\xe0") == "image/jpeg"
    assert image_type(b"RIFF\x00\x00\x00\x00WEBPVP8 ") == "image/webp"


def test_hostile_text_cannot_leave_its_string(client: TestClient) -> None:
    answer = client.post("/query", json={"query": "orchid"})
    assert "\x1b" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "application/json"
    assert "<script>" in json.loads(answer.text)[0]["snippet"]
    stream = client.post("/ask", json={"question": "orchid trap"}).text
    assert "\x1b" not in stream
    degraded = client.post("/query", json={"query": "x\r\nSet-Cookie: a=b"}).headers
    assert "set-cookie" not in degraded


def test_logs_hold_no_word_of_a_query_or_a_path(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        client.post("/query", json={"query": "verysecretword"})
        client.post("/vsearch", json={"query": "verysecretword", "bad": 1})
        client.post("/ask", json={"question": "verysecretword"})
        client.post("/v1/embeddings", json={"input": "verysecretword"})
        client.get("/documents/notes/verysecretword.md")
        client.get("/documents?pattern=verysecretword*")
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert len([m for m in ours if "query 200" in m]) == 1
    assert not [m for m in ours if "verysecretword" in m]


def modes(folder: Path) -> Iterator[tuple[Path, int, bool]]:
    for path in (folder, *folder.rglob("*")):
        found = path.lstat()
        if not stat.S_ISLNK(found.st_mode):
            yield path, stat.S_IMODE(found.st_mode), stat.S_ISDIR(found.st_mode)


def test_what_is_written_is_private(made: SimpleNamespace) -> None:
    made.service.index.vsearch("water")  # writes the derived matrix
    seen = 0
    for path, mode, is_folder in modes(made.places.data_dir):
        assert mode == (0o700 if is_folder else 0o600), (path, oct(mode))
        seen += 1
    assert seen >= 3


def project(folder: Path, config: str = "") -> Path:
    (folder / ".qmd").mkdir(parents=True)
    (folder / ".qmd" / "config.yaml").write_text(config)
    (folder / "note.md").write_text("# Note\n\nInside.\n")
    return folder


@pytest.mark.parametrize(
    "config",
    [
        "models: {embedding: 'http://evil.example/embed'}",
        "models: {embedding: 'HTTPS://evil.example'}",
        "models: {reranker: /etc/model}",
        "models: {expansion: ../../model}",
        "models: {generation: ~/model}",
        "models: {generation: model.gguf}",
        "models: {generation: 'http://evil.example/v1#m'}",
        "models: {embedding: note.md}",
        "models: {embedding: ./x}",
        "models: {embedding: 'file:///etc'}",
        "ingest: {follow_symlinks: true}",
        "update_command: rm -rf /",
        "collections: {x: {update-cmd: 'touch /tmp/x'}}",
        "models: !!python/object/apply:os.system ['true']",
    ],
)
def test_a_projects_own_configuration_cannot_reach_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    import qmd
    from qmd.errors import ConfigError

    monkeypatch.chdir(project(tmp_path / "cloned", config))
    for name in ("QMD_CONFIG_DIR", "QMD_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError):
        qmd.open()
    with pytest.raises(ConfigError):
        Service()


def test_a_projects_own_index_reads_the_projects_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qmd
    from qmd.types import Collection

    outside = tmp_path / "private"
    outside.mkdir()
    (outside / "diary.md").write_text("# Diary\n\nSecret.\n")
    monkeypatch.chdir(project(tmp_path / "cloned", "models: {embedding: all-MiniLM-L6-v2}"))
    for name in ("QMD_CONFIG_DIR", "QMD_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    with qmd.open() as index:
        assert index.add(".", embed=False).update.added == 1
        for way_out in (outside, tmp_path, Path("/"), tmp_path / "cloned" / ".." / "private"):
            with pytest.raises(UsageError, match="outside the project"):
                index.add(way_out, name="out", embed=False)
        # an index that came with the project, made elsewhere, names a folder outside
        index.store.add_collection(Collection("planted", str(outside)))
        (tmp_path / "cloned" / "link").symlink_to(outside)
        index.store.add_collection(Collection("linked", str(tmp_path / "cloned" / "link")))
        for name in ("planted", "linked"):
            with pytest.raises(UsageError, match="outside the project"):
                index.update([name])
        assert not index.search("secret")
