"""Embeddings of an encoder over OpenAI's API, with the real client, and the same over the other protocols."""

import threading

import numpy as np
import openai
import pytest
import tritonclient.http as triton_http
from server import Server, identity

TEXTS = ["How do I share one GPU between models?", "Several models on a single GPU", "A recipe for apple pie"]


@pytest.fixture(scope="module")
def server(assets):
    files = {
        "minilm/model.safetensors": assets / "minilm-l6/model.safetensors",
        "minilm/config.json": assets / "minilm-l6/config.json",
        "minilm/tokenizer.json": assets / "minilm-l3/tokenizer.json",
        "echo.emulated.toml": identity("FP32"),
    }
    with Server(files, "[device]\nprobe_s = 0.2\n") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"http://{server.http}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_vectors_say_which_texts_are_alike(client):
    answer = client.embeddings.create(model="minilm", input=TEXTS)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    vectors = np.array([entry.embedding for entry in answer.data])
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alike, other = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert alike > 0.6 and other < 0.2
    # Two tokens around each text.
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 12 + 9 + 7


def test_a_text_has_the_same_bits_in_every_company_and_form(client, server):
    [alone] = client.embeddings.create(model="minilm", input=TEXTS[0], encoding_format="float").data
    beside = client.embeddings.create(model="minilm", input=TEXTS * 100).data
    assert len(beside) == 300
    for index in range(0, 300, 3):
        # The client asks for base64 unless it is told otherwise.
        assert np.array_equal(np.float32(beside[index].embedding), np.float32(alone.embedding)), index
    with triton_http.InferenceServerClient(server.http) as triton:
        text = triton_http.InferInput("text", [1], "BYTES")
        text.set_data_from_numpy(np.array([TEXTS[0].encode()], object))
        answer = triton.infer("minilm", [text])
    assert np.array_equal(answer.as_numpy("embedding")[0], np.float32(alone.embedding))
    assert answer.as_numpy("tokens").tolist() == [12]


def test_long_texts_are_cut_and_odd_ones_answered(client):
    data = client.embeddings.create(model="minilm", input=["word " * 5_000, "", "\u0000\U0001f642 \u00e4"]).data
    vectors = np.array([entry.embedding for entry in data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_errors_are_those_that_the_client_knows(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.embeddings.create(model="nope", input="a")
    assert error.value.type == "invalid_request_error" and "nope" in error.value.message
    with pytest.raises(openai.BadRequestError, match="does not make embeddings"):
        client.embeddings.create(model="echo", input="a")
    with pytest.raises(openai.BadRequestError, match="`dimensions` is `5`"):
        client.embeddings.create(model="minilm", input="a", dimensions=5)
    with pytest.raises(openai.BadRequestError, match="lists of tokens"):
        client.embeddings.create(model="minilm", input=[[1, 2]])


def test_models_are_those_that_answer(client):
    assert [model.id for model in client.models.list()] == ["minilm"]
    assert client.models.retrieve("minilm").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("echo")


def test_many_clients_at_once(client):
    expected = client.embeddings.create(model="minilm", input=TEXTS).data
    wrong = []

    def ask(index: int):
        for _ in range(5):
            [found] = client.embeddings.create(model="minilm", input=TEXTS[index % 3]).data
            if found.embedding != expected[index % 3].embedding:
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
