from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import qmd.index
from qmd.errors import ModelError
from qmd.search.answer import (
    NOTHING_FOUND,
    ask,
    cut_passage,
    read_history,
    write_history,
)
from qmd.search.claims import (
    Source,
    check_claims,
    content_words,
    find_quote,
    held_words,
    says_something,
    search_text,
)
from qmd.search.endpoint import RemoteWriter


class Parrot:
    """Writes what it is told to, and keeps what it was asked."""

    name = "parrot"

    def __init__(self, text: str) -> None:
        self.text, self.messages, self.keep = text, [], ""

    def write(self, messages, *, keep="", max_new_tokens=160, stream=None):
        self.messages, self.keep = list(messages), keep
        for word in self.text.split(" "):
            if stream is not None:
                stream(word + " ")
        return self.text


@pytest.fixture
def index(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "garden.md").write_text(
        "# Tomatoes\n\nWater the tomatoes every second morning.\nNever on the leaves.\n"
    )
    (notes / "bread.md").write_text("# Sourdough\n\nFeed the starter with rye flour at ten at night.\n")
    with qmd.index.open(tmp_path / "index.sqlite") as opened:
        opened.add(notes, name="notes", embed=False)
        yield opened


def test_an_answer_from_the_passages_is_cited(index):
    writer = Parrot("Water the tomatoes every second morning [1].")
    pieces: list[str] = []
    answer = ask(index, "when do I water tomatoes", writer=writer, stream=pieces.append)
    assert answer.found
    assert "".join(pieces).strip() == answer.text
    assert [s.file for s in answer.cited] == ["qmd://notes/garden.md"]
    assert answer.claims[0].supported
    assert not answer.claims[0].added
    assert "Question: when do I water tomatoes" in writer.messages[-1][1]
    assert writer.messages[-1][1].startswith(writer.keep)
    assert "every second morning" in writer.keep


def test_an_invented_claim_is_marked_and_the_sources_are_quoted(index):
    answer = ask(index, "when do I water tomatoes", writer=Parrot("Penguins deliver cheese on Tuesdays [1]."))
    assert not answer.claims[0].supported
    assert "[not in the sources]" in answer.marked()
    assert answer.quote is not None
    assert "second morning" in answer.quote.text


def test_nothing_found_nothing_said(index):
    writer = Parrot("Something.")
    answer = ask(index, "quantum chromodynamics on a lattice", writer=writer)
    assert (answer.found, answer.text, writer.messages) == (False, NOTHING_FOUND, [])


def test_follow_up_searches_with_the_earlier_question(index, tmp_path):
    writer = Parrot("Never on the leaves [1].")
    history = [("how to water tomatoes", "Every second morning.")]
    answer = ask(index, "and where not?", writer=writer, history=history)
    assert answer.found
    assert "Earlier question: how to water tomatoes" in writer.messages[-1][1]
    write_history(tmp_path / "x" / "c.json", [*history, ("a", "b")])
    assert read_history(tmp_path / "x" / "c.json") == [*history, ("a", "b")]
    (tmp_path / "x" / "c.json").write_text("{")
    assert read_history(tmp_path / "x" / "c.json") == []


def test_an_earlier_answer_said_again_is_no_answer(index):
    said = "Water the tomatoes every second morning [1]."
    history = [("how often do I water tomatoes", said)]
    answer = ask(index, "and the leaves?", writer=Parrot(said), history=history)
    assert answer.quote is not None
    assert answer.quote.text.endswith("Never on the leaves.")
    assert ask(index, "how often do I water tomatoes", writer=Parrot(said)).quote is None


def test_claims_are_held_against_the_right_passage():
    sources = [
        Source(1, "#1", "a", "Cats", 1, 2, "Cats sleep sixteen hours a day."),
        Source(2, "#2", "b", "Dogs", 1, 2, "Dogs bark at strangers."),
    ]
    wrong, right, late, uncited = check_claims(
        "Rabbits eat purple carrots [1]. Dogs bark [2]. Cats sleep sixteen hours. [1] Dogs bark at strangers.",
        sources,
    )
    assert not wrong.supported
    assert (right.cited, right.supported, right.added) == ((2,), True, False)
    assert (late.cited, late.added) == ((1,), False)
    assert (uncited.cited, uncited.supported, uncited.added) == ((2,), True, True)
    # the right words with the wrong number: the number is corrected, and said to be ours
    (moved,) = check_claims("Dogs bark at strangers [1].", sources)
    assert (moved.cited, moved.added) == ((2,), True)


def test_passages_are_cut_at_lines():
    text = "\n".join(f"line {i} " + "x" * 30 for i in range(40))
    cut, first, last = cut_passage(text, 20, 200)
    assert cut.splitlines() == text.splitlines()[first : last + 1]
    assert first <= 20 <= last
    assert len(cut) <= 210
    assert len(cut_passage("字" * 1000, 0, 300)[0]) <= 200


def test_a_server_that_speaks_openai(index):
    seen: list[dict] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            for word in ("Water ", "the tomatoes every second morning [1]."):
                row = {"choices": [{"delta": {"content": word}}]}
                self.wfile.write(f"data: {json.dumps(row)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *args): ...

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        writer = RemoteWriter(f"http://127.0.0.1:{server.server_port}/v1#tiny")
        answer = ask(index, "when do I water tomatoes", writer=writer)
    finally:
        server.shutdown()
        server.server_close()
    assert answer.claims[0].supported
    assert seen[0]["model"] == "tiny"
    assert seen[0]["stream"]
    with pytest.raises(ModelError, match="no answer from"):
        RemoteWriter("http://127.0.0.1:9/v1").write([("user", "x")])


CUT = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        CUT + b'38\r\ndata: {"choices": [{"delta": {"content": "Water "}}]}  \n\r\n50\r\ndata: {',
        WHOLE + b'{"choices": [{"message": {"content": "Water"}}]}',
        WHOLE + b'data: {"error": {"message": "out of memory"}}\n\n',
        WHOLE + b'data: {"choices": [{"delta": {"content": ["Water"]}}]}\n\n',
        WHOLE + b'data: {"choices": {"delta": {}}}\n\n',
        b"rubbish\r\n\r\n",
    ],
)
def test_a_server_that_speaks_otherwise_is_a_model_error(reply):
    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(reply)

        def log_message(self, *args): ...

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ModelError, match="no answer from"):
            RemoteWriter(f"http://127.0.0.1:{server.server_port}/v1", timeout_s=30).write([("user", "x")])
    finally:
        server.shutdown()
        server.server_close()


def test_a_login_in_the_address_is_sent_and_never_shown():
    seen = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(self.headers["Authorization"])
            self.send_error(401)

        def log_message(self, *args): ...

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        writer = RemoteWriter(f"http://me:hu%20sh@127.0.0.1:{server.server_port}/v1#tiny")
        with pytest.raises(ModelError, match="401") as told:
            writer.write([("user", "x")])
    finally:
        server.shutdown()
        server.server_close()
    assert seen == ["Basic " + base64.b64encode(b"me:hu sh").decode()]
    assert writer.name == f"http://127.0.0.1:{server.server_port}/v1#tiny"
    assert "hu%20sh" not in str(told.value)


def test_an_address_that_is_none_is_a_model_error():
    with pytest.raises(ModelError, match="no answer from"):
        RemoteWriter("http://[bad/v1").write([("user", "x")])


def test_the_index_answers(index):
    answer = index.ask(
        "when do I water tomatoes", writer=Parrot("Every second morning [1]."), collections=["notes"]
    )
    assert answer.claims[0].supported
    assert answer.timings_ms["first_words"] <= answer.timings_ms["total"]


def test_an_answer_that_only_repeats_the_question_gets_a_quote(index):
    answer = ask(index, "when do I water tomatoes", writer=Parrot("You water the tomatoes [1]."))
    assert answer.claims[0].supported
    assert answer.quote is not None
    assert answer.quote.text.startswith(
        "Water the tomatoes every second morning."
    )  # not the heading "# Tomatoes"
    said = ask(index, "when do I water tomatoes", writer=Parrot("Water tomatoes every second morning [1]."))
    assert said.quote is None


def test_sources_are_counted_and_read_again(index, tmp_path):
    from qmd.search.answer import read_used
    from qmd.search.used import most_used, usage_file

    counts = usage_file(index.store.path)
    assert most_used(counts, 9) == []
    for question in ("when do I water tomatoes", "water the tomatoes", "feed the starter"):
        ask(index, question, writer=Parrot("Yes [1]."))
    first, second = most_used(counts, 9)
    assert (first.file, first.times) == ("qmd://notes/garden.md", 2)
    assert (second.file, second.times) == ("qmd://notes/bread.md", 1)
    sources = read_used(index, 9)
    assert [s.file for s in sources] == [first.file, second.file]
    assert "every second morning" in sources[0].text
    (tmp_path / "notes" / "garden.md").unlink()
    index.update()
    assert [s.file for s in read_used(index, 9)] == [second.file]
    counts.write_text("{")
    assert read_used(index, 9) == []


def source(number: int, title: str, text: str) -> Source:
    return Source(number, f"#{number}", title.lower(), title, 1, 9, text)


def test_what_a_question_in_chinese_or_japanese_is_about():
    assert content_words("麻婆豆腐需要哪些调料？") == {"麻婆", "婆豆", "豆腐", "调料"}
    assert content_words("堆肥の温度はどのくらいになりますか？") == {"堆肥", "温度"}
    assert content_words("ssh密钥在哪里") >= {"ssh", "密钥"}
    assert content_words("どうしたらいいですか")  # nothing but hiragana: its pairs
    assert search_text("出汁の取り方を教えてください") == "出汁 取 方 教"
    assert search_text("how do I open a door") == "how do I open a door"


def test_a_model_that_does_not_know_the_language_is_not_asked(index, tmp_path):
    notes = tmp_path / "notes"
    (notes / "dashi.md").write_text("# 出汁\n\n昆布を水に三十分つける。弱火にかける。\n", encoding="utf-8")
    index.update()
    writer = Parrot("1. 1. 1.")
    writer.languages = ("en",)
    pieces: list[str] = []
    answer = ask(index, "昆布は何分水につけますか？", writer=writer, stream=pieces.append)
    assert writer.messages == []
    assert answer.text == "昆布を水に三十分つける。弱火にかける。 [1]"
    assert "".join(pieces) == answer.marked() == answer.text
    assert [s.file for s in answer.cited] == ["qmd://notes/dashi.md"]
    assert "does not write this language" in answer.degraded[-1]
    writer.languages = ("en", "ja")
    assert ask(index, "昆布は何分水につけますか？", writer=writer).text == "1. 1. 1."


def test_a_quote_is_the_line_that_answers():
    dal = source(
        1, "Dal", "Rinse 200 g lentils in a lot of water. Simmer for 20 minutes. Pour it over the lentils."
    )
    assert find_quote("How long do the lentils for the dal simmer?", [dal]).text == "Simmer for 20 minutes."
    home = source(1, "Home", "- **Kitchen**: [[compost]] · [[dal]] · [[bread]]")
    compost = source(2, "Compost", "Two buckets in turn. It reaches sixty degrees, too hot to hold.")
    quote = find_quote("how hot is the compost in degrees", [home, compost])
    assert (quote.cited, quote.text) == ((2,), "It reaches sixty degrees, too hot to hold.")
    assert find_quote("compost", [source(1, "X", "word " * 200)]).text.endswith("word…")
    listed = source(1, "Lease", "- [ ] Rent on the\n  27th\n- Deposit two months")
    assert find_quote("rent", [listed]).text == "Rent on the 27th"
    assert find_quote("compost", [compost], chars=99).text == compost.text
    assert find_quote("compost", [home]) is None


def test_claims_of_lists_and_code():
    held = source(1, "Keys", "Make a key with ssh-keygen -t ed25519. 3 keys are enough.")
    claims = check_claims(
        "The command is:\n\n```bash\nssh-keygen -t ed25519\n```\n3. Cheese\n4. Cheese", [held]
    )
    assert [(c.text, c.supported) for c in claims] == [
        ("The command is: ssh-keygen -t ed25519", True),
        ("3. Cheese", False),  # the number of an item is no word of it; said twice is said once
    ]
    (kept,) = check_claims("Three keys are enough:", [held])
    assert kept.text == "Three keys are enough:"


def test_a_title_said_again_is_no_answer():
    held = source(1, "Tomatoes on the balcony", "Uneven watering gives them rot.")
    told = held_words(held.title)
    again = check_claims("The answer is: Tomatoes on the balcony [1].", [held])
    assert again[0].supported
    assert not says_something(again, told)
    assert says_something(check_claims("Uneven watering gives tomatoes rot.", [held]), told)


def test_an_answer_that_was_cut_says_so(index):
    writer = Parrot("Water the tomatoes every second")
    writer.cut = True
    pieces: list[str] = []
    assert ask(index, "water tomatoes", writer=writer, stream=pieces.append).text.endswith("second…")
    assert pieces[-1] == "…"
    writer = Parrot("1. Water the tomatoes every second morning.\n2.")
    writer.cut = True
    assert ask(index, "water tomatoes", writer=writer).text == "1. Water the tomatoes every second morning."


def test_a_note_s_head_is_no_passage(tmp_path):
    notes = tmp_path / "n"
    notes.mkdir()
    (notes / "a.md").write_text(
        "---\ntitle: Bread\ntags: [a]\nsource: Priya\n---\n\n# Bread\n\nRye at ten.\n"
    )
    with qmd.index.open(tmp_path / "i.sqlite") as opened:
        opened.add(notes, name="n", embed=False)
        answer = ask(opened, "rye bread", writer=Parrot("Rye at ten."))
    assert answer.sources[0].line >= 6
    assert "Priya" not in answer.sources[0].text


def test_what_is_near_in_meaning_is_looked_for_under_the_same_conditions(index, monkeypatch):
    near = []

    def vsearch(question, *, limit, min_score, **conditions):
        near.append(conditions)
        return index.search("tomatoes")

    monkeypatch.setattr(index, "vsearch", vsearch)
    asked = "tomatoes quantum chromodynamics lattice plasma"
    answer = ask(index, asked, writer=Parrot("On a lattice [1]."), collections=["notes"], path="garden.md")
    assert near == [{"collections": ["notes"], "path": "garden.md"}]
    assert [source.file for source in answer.sources] == ["qmd://notes/garden.md"]


@pytest.mark.parametrize("mark", ["\f", "\u2028", "\x85"])
def test_lines_of_a_source_are_those_of_its_document(tmp_path, mark):
    (tmp_path / "a.txt").write_text(
        f"intro{mark}one\nintro{mark}two\n\nThe lift to the archive is on floor two.\n", encoding="utf-8"
    )
    with qmd.index.open(tmp_path / "index.sqlite") as index:
        index.add(tmp_path, name="notes", embed=False)
        answer = index.ask("where is the lift to the archive", writer=Parrot("On floor two [1]."))
        (source,) = answer.sources
        shown = index.get(source.file, from_line=source.line, max_lines=source.end_line - source.line + 1)
        assert source.text == shown.text
        assert "floor two" in source.text
