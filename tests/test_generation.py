"""A language model over OpenAI's API, with the real client: answers, streams, formats, errors, leaving."""

import json
import queue
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request

import grpc as raw_grpc
import numpy as np
import openai
import pytest
import tritonclient.grpc as grpc
from server import BINARY, Server, identity
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

COLORS = [{"role": "user", "content": "Name three colors."}]
CAPITAL = "The capital of France is"


@pytest.fixture(scope="module")
def server(assets):
    files = {"smollm2.gguf": assets / "models/smollm2.gguf", "echo.emulated.toml": identity("FP32")}
    with Server(files, "[device]\nprobe_s = 0.5\n[models.smollm2]\nkv_cache_mb = 64\n") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"http://{server.http}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client, prompt=CAPITAL, **rest):
    return client.completions.create(model="smollm2", prompt=prompt, temperature=0, **rest)


def test_a_completion_and_a_chat(client):
    answer = complete(client, max_tokens=8)
    assert answer.choices[0].text.startswith(" Paris") and answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 8)
    chat = client.chat.completions.create(model="smollm2", messages=COLORS, temperature=0, max_tokens=40)
    [choice] = chat.choices
    assert choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert choice.message.content == "1. Red\n2. Blue\n3. Green"
    assert chat.id.startswith("chatcmpl-") and chat.object == "chat.completion"


def test_a_stream_says_the_same(client):
    whole = client.chat.completions.create(model="smollm2", messages=COLORS, temperature=0, max_tokens=40)
    stream = client.chat.completions.create(
        model="smollm2",
        messages=COLORS,
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    parts = complete(client, max_tokens=8, stream=True)
    assert "".join(part.choices[0].text for part in parts) == complete(client, max_tokens=8).choices[0].text


def test_a_sequence_is_the_same_in_every_company(client):
    alone = complete(client, max_tokens=24).choices[0].text
    answers = {}

    def ask(number):
        prompt = CAPITAL if number % 4 == 0 else f"{number} strangers met and"
        answers[number] = complete(client, prompt, max_tokens=24 + number % 3).choices[0].text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 32
    for number in range(0, 32, 4):
        assert answers[number].startswith(alone), number


def test_few_pages_change_no_answer(client, assets):
    """Twelve sequences want four times the pages that there are: some give theirs back and go on later."""
    prompts = [f"Chapter {number}. The ship left the harbour at dawn, and nobody aboard" for number in range(12)]

    def all_of(client):
        answers = {}

        def ask(number):
            answers[number] = complete(
                client, prompts[number], max_tokens=100, extra_body={"ignore_eos": True}
            ).choices[0].text

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    config = "[device]\nprobe_s = 0.5\n[models.smollm2]\nkv_cache_mb = 9\n"
    with Server({"smollm2.gguf": assets / "models/smollm2.gguf"}, config) as tight:
        with openai.OpenAI(base_url=f"http://{tight.http}/v1", api_key="none", max_retries=0) as few:
            answers = all_of(few)
        assert metric(tight, "quadrant_sequences_preempted_total") > 0
        assert metric(tight, "quadrant_invariant_violations_total") == 0
    assert len(answers) == 12 and answers == all_of(client)


def test_what_begins_alike_is_computed_once(client):
    prompt = "Facts about numbers. " + " ".join(f"{number} is followed by {number + 1}." for number in range(120))
    times, texts = [], []
    for _ in range(4):
        began = time.monotonic()
        stream = complete(client, prompt, max_tokens=4, stream=True)
        text = next(iter(stream)).choices[0].text
        times.append(time.monotonic() - began)
        texts.append(text + "".join(part.choices[0].text for part in stream))
    assert len(set(texts)) == 1
    assert min(times[1:]) < times[0] / 3, times


def test_answers_may_be_held_to_a_form(client):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Describe a person as JSON."}],
        temperature=1,
        seed=3,
        max_tokens=120,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    )
    person = json.loads(answer.choices[0].message.content)
    assert set(person) == {"name", "age"} and isinstance(person["age"], int)
    choice = complete(client, "Yes or no?", max_tokens=8, extra_body={"guided_choice": ["yes", "no"]})
    assert choice.choices[0].text in ("yes", "no")


def test_log_probabilities_and_seeds(client):
    chat = client.chat.completions.create(
        model="smollm2", messages=COLORS, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert len(content) == 3
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].token == entry.token and bytes(entry.bytes).decode() == entry.token

    def drawn(seed):
        answer = client.completions.create(
            model="smollm2", prompt="Once upon a time", max_tokens=12, seed=seed, n=2, stop=["\n"]
        )
        assert [choice.index for choice in answer.choices] == [0, 1]
        return [choice.text for choice in answer.choices]

    one = drawn(1)
    assert one == drawn(1) and one != drawn(2) and one[0] != one[1]


def test_mistakes_are_told(client):
    for wanted, part in [
        ({"model": "nope"}, "is not found"),
        ({"model": "echo"}, "does not generate text"),
        ({"max_tokens": 100_000}, "maximum context length"),
        ({"temperature": 3}, "`temperature`"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "`tools` are not done"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}}, ""),
    ]:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**{"model": "smollm2", "messages": COLORS, **wanted})
        assert caught.value.status_code in (400, 404), wanted
        assert part in str(caught.value), (wanted, str(caught.value))


def metric(server, name):
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as page:
        lines = page.read().decode().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return float(line.rsplit(" ", 1)[1])


def test_metrics_have_vllms_names(client, server):
    names = ["vllm:generation_tokens_total", "vllm:prompt_tokens_total", 'vllm:request_success_total{engine="0",fin'
             'ished_reason="length"', "vllm:time_to_first_token_seconds_count", "vllm:inter_token_latency_seconds_count"]
    complete(client, max_tokens=5)
    before = [metric(server, name) for name in names]
    complete(client, max_tokens=5)
    assert [metric(server, name) - was for name, was in zip(names, before, strict=True)] == [5, 5, 1, 1, 4]
    assert metric(server, "vllm:num_requests_running") == metric(server, "vllm:kv_cache_usage_perc") == 0


def test_who_leaves_frees_what_he_had(client, server):
    before = metric(server, 'quadrant_requests_ended_total')
    stream = complete(client, max_tokens=1_500, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    until = time.monotonic() + 10
    while metric(server, 'quadrant_requests_ended_total') < before + 1:
        assert time.monotonic() < until, "it goes on after its client has left"
        time.sleep(0.05)


def test_a_reader_that_stalls_holds_up_nobody(client):
    stalled = complete(client, max_tokens=1_000, stream=True, extra_body={"ignore_eos": True})
    reader = iter(stalled)
    next(reader)
    time.sleep(0.5)
    assert complete(client, max_tokens=4).choices[0].text
    count = 1 + sum(1 for _ in reader)
    # Of some tokens the text comes with a later one.
    assert count > 700


def test_tritons_generate_says_the_same(client, server):
    text = complete(client, max_tokens=8).choices[0].text
    asked = {"text_input": CAPITAL, "max_tokens": 8, "parameters": {"temperature": 0}}
    answer = json.loads(post(server, "/v2/models/smollm2/generate", asked))
    assert answer == {"model_name": "smollm2", "model_version": "1", "text_output": text}
    events = post(server, "/v2/models/smollm2/generate_stream", asked).decode().strip().split("\n\n")
    assert "".join(json.loads(event.removeprefix("data: "))["text_output"] for event in events) == text
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, "/v2/models/smollm2/generate", {"max_tokens": 8})
    assert caught.value.code == 400 and "text_input" in json.load(caught.value)["error"]


def test_a_process_of_its_own_is_refused_when_it_is_loaded(assets):
    files = {"smollm2.gguf": assets / "models/smollm2.gguf"}
    with Server(files, '[models.smollm2]\nisolation = "process"\n') as server:
        line = server.index()["smollm2"]
        assert line["state"] == "UNAVAILABLE" and 'set `isolation = "none"`' in line["reason"]


def decoupled(server, requests):
    """Sends requests on one stream; what came back of each, by its id, until all have their last answer."""
    answers, arrived = {}, queue.Queue()
    with grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(callback=lambda result, error: arrived.put((result, error)))
        for name, prompt, stream, parameters in requests:
            text = grpc.InferInput("text_input", [1], "BYTES")
            text.set_data_from_numpy(np.array([prompt.encode()], dtype=object))
            in_parts = grpc.InferInput("stream", [1], "BOOL")
            in_parts.set_data_from_numpy(np.array([stream]))
            client.async_stream_infer("smollm2", [text, in_parts], request_id=name, parameters=parameters)
        while len([1 for of in answers.values() if of[-1][1]]) < len(requests):
            result, error = arrived.get(timeout=30)
            if error is not None:
                answers.setdefault("error", []).append((str(error), True))
                continue
            response = result.get_response()
            [text] = result.as_numpy("text_output")
            final = response.parameters["triton_final_response"].bool_param
            answers.setdefault(response.id, []).append((text.decode(), final))
        client.stop_stream()
    return answers


def test_many_answers_come_over_one_stream_of_grpc(client, server):
    text = complete(client, max_tokens=24).choices[0].text
    greedy = {"temperature": 0.0, "max_tokens": 24}
    answers = decoupled(server, [("a", CAPITAL, True, greedy), ("b", CAPITAL, False, greedy), ("c", "", True, greedy)])
    assert len(answers["a"]) > 10 and "".join(part for part, _ in answers["a"]) == text
    assert [final for _, final in answers["a"]] == [False] * (len(answers["a"]) - 1) + [True]
    assert answers["b"] == [(text, True)]
    [(said, _)] = answers["error"]
    assert "the prompt is empty" in said


def test_one_answer_is_not_asked_of_a_model_that_gives_many(server):
    with grpc.InferenceServerClient(server.grpc) as client:
        assert client.get_model_config("smollm2").config.model_transaction_policy.decoupled
        text = grpc.InferInput("text_input", [1], "BYTES")
        text.set_data_from_numpy(np.array([b"x"], dtype=object))
        with pytest.raises(InferenceServerException, match="decoupled transaction policy") as caught:
            client.infer("smollm2", [text])
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_it_is_said_where_the_time_of_a_generation_went(client, server):
    prompt = "Here is a list of many words. " * 12
    answers = [client.completions.with_raw_response.create(
        model="smollm2", prompt=prompt, temperature=0, max_tokens=6, extra_body={"ignore_eos": True}) for _ in range(2)]
    numbers = [answer.headers["x-quadrant-request"] for answer in answers]
    with urllib.request.urlopen(f"http://{server.metrics}/requests/{numbers[1]}") as answer:
        why = json.load(answer)
    generation = why["generation"]
    assert (generation["tokens"], generation["steps"], generation["preempted"]) == (6, 6, 0)
    assert generation["prompt_tokens"] > generation["known_tokens"] >= 64, "the first one's prompt is known"
    assert 0 < generation["longest_gap_ms"] < why["total_ms"]
    assert generation["first_token_ms"] + generation["longest_gap_ms"] < why["total_ms"] + 0.01
    shown = subprocess.run(
        [BINARY, "explain", numbers[1], "--metrics-address", server.metrics], capture_output=True, text=True, check=True
    ).stdout
    assert f"{generation['known_tokens']} of them known" in shown and "longest gap" in shown


def test_a_salt_keeps_prompts_apart(client, server):
    def known(salt):
        answer = client.completions.with_raw_response.create(
            model="smollm2", prompt="A salt of its own makes a prompt its own. " * 12, max_tokens=1,
            extra_body={"cache_salt": salt})
        with urllib.request.urlopen(f"http://{server.metrics}/requests/{answer.headers['x-quadrant-request']}") as why:
            return json.load(why)["generation"]["known_tokens"]

    assert [known("one"), known("other")] == [0, 0]
    assert known("one") >= 64


def test_the_load_generator_counts_tokens(server):
    def bench(*arguments):
        command = [BINARY, "bench-tokens", "--model", "smollm2", "--address", server.http, "--quiet", "--json", "-"]
        return json.loads(subprocess.run([*command, *arguments], capture_output=True, text=True, check=True).stdout)

    load = ["--concurrency", "2", "--requests", "6", "--prompt", "40", "--new", "5", "--shared-prefix", "32"]
    report = bench(*load, "--ttft-ms", "20000", "--tpot-ms", "2000")
    assert (report["answered"], report["failed"], report["attainment"]) == (6, 0, 1.0)
    assert report["texts"] == bench(*load, "--uncached")["texts"], "the same prompts have the same answers"
    hopeless = bench("--poisson", "50", "--requests", "20", "--ttft-ms", "1", "--give-up-below", "0.9")
    assert hopeless["gave_up"] and hopeless["attainment"] < 0.9
    wrong = subprocess.run(
        [BINARY, "bench-tokens", "--model", "nobody", "--address", server.http, "--concurrency", "1"],
        capture_output=True, text=True)
    assert wrong.returncode == 1 and "404" in wrong.stderr


def post(server, path, body):
    request = urllib.request.Request(f"http://{server.http}{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def test_tokens_there_and_back(server):
    def ask(path, body):
        return json.loads(post(server, path, body))

    tokens = ask("/tokenize", {"model": "smollm2", "prompt": "Hello world"})
    assert (tokens["count"], len(tokens["tokens"])) == (2, 2)
    assert ask("/detokenize", {"model": "smollm2", "tokens": tokens["tokens"]}) == {"prompt": "Hello world"}
    chat = ask("/tokenize", {"model": "smollm2", "messages": COLORS})
    assert chat["count"] > 20


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_read(server):
    before = server.resident_bytes()
    long = "a" * 20_000_000
    for path, body in [("/v1/completions", {"prompt": long}), ("/tokenize", {"prompt": long}),
                       ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}),
                       ("/v1/completions", {"prompt": [1] * 1_000_000}), ("/detokenize", {"tokens": [1] * 1_000_000})]:
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(server, path, {"model": "smollm2"} | body)
        said = json.load(caught.value)["error"]["message"]
        assert caught.value.code == 400 and "maximum context length is `" in said, said
    assert server.resident_bytes() < before + 500_000_000, "a hundred times the text would be 2 GB"


def test_what_commands_is_not_text(client, server):
    [begins] = json.loads(post(server, "/tokenize", {"model": "smollm2", "prompt": "<|im_start|>"}))["tokens"]
    biased = {"logit_bias": {str(begins): 100}, "max_tokens": 3, "logprobs": 0}
    answer = complete(client, **biased)
    assert answer.choices[0].text == "" and answer.usage.completion_tokens == 3
    assert answer.choices[0].logprobs.tokens == ["<|im_start|>"] * 3


def test_streams_of_grpc_are_answered_when_the_server_ends(assets):
    with Server({"smollm2.gguf": assets / "models/smollm2.gguf"}, "") as server:
        answers, over = [], queue.Queue()
        with grpc.InferenceServerClient(server.grpc) as client:
            client.start_stream(callback=lambda result, error: over.put((result, error)))
            text = grpc.InferInput("text_input", [1], "BYTES")
            text.set_data_from_numpy(np.array([CAPITAL.encode()], dtype=object))
            in_parts = grpc.InferInput("stream", [1], "BOOL")
            in_parts.set_data_from_numpy(np.array([True]))
            client.async_stream_infer("smollm2", [text, in_parts], parameters={"max_tokens": 100, "ignore_eos": True})
            answers.append(over.get(timeout=30))
            server.process.terminate()
            while not answers[-1][0].get_response().parameters["triton_final_response"].bool_param:
                answers.append(over.get(timeout=30))
                assert answers[-1][1] is None, answers[-1][1]
            client.stop_stream()
        assert len(answers) > 50


def test_an_error_of_a_stream_says_whose_it_is(server):
    request = service_pb2.ModelInferRequest(model_name="smollm2", id="c")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(struct.pack("<I", 0))
    with raw_grpc.insecure_channel(server.grpc) as channel:
        [answer] = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request]))
    assert "the prompt is empty" in answer.error_message and answer.infer_response.id == "c"


def test_parts_of_characters_have_names_of_their_own(client):
    answer = complete(client, prompt="\U0001f642\U0001f642\U0001f642", max_tokens=3, logprobs=5)
    for token, top in zip(answer.choices[0].logprobs.tokens, answer.choices[0].logprobs.top_logprobs):
        assert token in top and 5 <= len(top) <= 6 and not any("\ufffd" in name for name in top)
