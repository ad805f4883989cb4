"""Programs that others wrote, unchanged: the OpenAI and Cohere clients against a running server."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from qmd.serve.http.app import create_app

from .test_service import served

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def url(made: SimpleNamespace) -> Iterator[str]:
    with served(create_app(made.service, token=TOKEN)) as address:
        yield address


def test_the_openai_client(url: str, made: SimpleNamespace) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as client:
        found = client.embeddings.create(model="words", input=["water", "memory heap"])
        want = made.embedder.embed_documents(["water", "memory heap"])
        np.testing.assert_allclose([d.embedding for d in found.data], want, atol=1e-6)
        floats = client.embeddings.create(model="words", input="water", encoding_format="float")
        np.testing.assert_allclose(floats.data[0].embedding, want[0], atol=1e-6)
        assert found.usage.total_tokens == 7
        assert [m.id for m in client.models.list()] == ["words", "overlap"]
        with pytest.raises(openai.NotFoundError, match="is not served here"):
            client.embeddings.create(model="text-embedding-3-small", input="x")
        with pytest.raises(openai.BadRequestError, match="token numbers"):
            client.embeddings.create(model="words", input=[[1, 2, 3]])
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.embeddings.create(model="words", input="x")


def test_the_cohere_client(url: str) -> None:
    cohere = pytest.importorskip("cohere")
    texts = ["cats fear water", "boil miso soup", "water the miso"]
    second = cohere.ClientV2(api_key=TOKEN, base_url=url)
    found = second.rerank(model="overlap", query="miso water", documents=texts, top_n=2)
    assert [(r.index, r.relevance_score) for r in found.results] == [(2, 1.0), (0, 0.5)]
    first = cohere.Client(api_key=TOKEN, base_url=url)
    found = first.rerank(model="overlap", query="miso", documents=texts, return_documents=True)
    assert found.results[0].document.text == "boil miso soup"
    assert len(found.results) == 3


def test_the_tei_client_of_the_hub(url: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(model=f"{url}/embed", token=TOKEN)
    rows = client.feature_extraction("water")
    assert rows.shape == (1, 32)
