"""Models that come and go: on demand, by the repository's calls, by a new file; and a budget that is kept.

The emulated models take memory and time to load as they are told, so that what fits is known.
"""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from server import Server, await_that, identity
from tritonclient.utils import InferenceServerException

MODEL_MB = 40


def config(memory_mb: int = 0, **extra: str) -> str:
    core = min(os.sched_getaffinity(0))
    lines = "\n".join(f"{key} = {value}" for key, value in extra.items())
    return f"""
[device]
cores = [{core}]
onnxruntime = "off"
probe_s = 0.02
memory_mb = {memory_mb}
[scheduler]
load_threads = 2
[limits]
in_flight_bytes = 1000000
body_bytes = 500000
[model_defaults]
{lines}
"""


def model(load_ms: int = 20, memory_mb: int = MODEL_MB, **extra: str) -> str:
    return identity("FP32", dims=("batch", 4), load_ms=str(load_ms), memory_mb=str(memory_mb), **extra)


def infer(client, name: str, value: float = 1.0):
    data = np.full((1, 4), value, np.float32)
    inputs = triton_http.InferInput("x", [1, 4], "FP32")
    inputs.set_data_from_numpy(data)
    return client.infer(name, [inputs])


def state(client, name: str) -> dict:
    return next(line for line in client.get_model_repository_index() if line["name"] == name)


def metric(server: Server, name: str) -> float:
    lines = server.get("/metrics", port="metrics").body.decode().splitlines()
    return float(next(line for line in lines if line.startswith(name + " ")).rsplit(" ", 1)[1])


@pytest.fixture(scope="module")
def crowded():
    """Twelve models in a budget for about four."""
    files = {f"m{index}.emulated.toml": model() for index in range(12)}
    with Server(files, config(memory_mb=256, residency='"on-demand"')) as server:
        yield server, triton_http.InferenceServerClient(server.http, concurrency=8)


def test_more_models_than_memory_are_all_served(crowded):
    server, client = crowded
    for turn in range(3):
        for index in range(12):
            answer = infer(client, f"m{index}", turn * 100 + index)
            assert answer.as_numpy("y")[0, 0] == turn * 100 + index
    unloads = [metric(server, f'quadrant_model_unloads_total{{model="m{index}",version="1"}}') for index in range(12)]
    assert sum(unloads) >= 12
    budget = metric(server, 'quadrant_memory_bytes{what="budget"}')
    assert metric(server, "quadrant_resident_bytes") <= 1.05 * budget
    assert metric(server, 'quadrant_memory_bytes{what="reserved"}') <= budget
    assert metric(server, "quadrant_invariant_violations_total") == 0


def test_absent_models_are_ready_and_say_so(crowded):
    _, client = crowded
    lines = [state(client, f"m{index}") for index in range(12)]
    assert all(line["state"] == "READY" for line in lines)
    assert any("absent" in line.get("reason", "") for line in lines)
    assert all(client.is_model_ready(f"m{index}") for index in range(12))


def test_requests_for_absent_models_from_many_clients_all_end_well(crowded):
    server, _ = crowded
    failures = []

    def ask(seed: int):
        client = triton_http.InferenceServerClient(server.http)
        random = np.random.default_rng(seed)
        for _ in range(60):
            name = f"m{random.integers(12)}"
            try:
                assert infer(client, name, seed).as_numpy("y")[0, 0] == seed
            except (InferenceServerException, AssertionError) as error:
                failures.append((name, error))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_deadline_that_a_load_cannot_meet_is_refused_at_once():
    files = {"slow.emulated.toml": model(load_ms=1_500)}
    with Server(files, config(residency='"on-demand"', idle_s="0.2")) as server:
        client = triton_http.InferenceServerClient(server.http)
        infer(client, "slow")
        await_that(lambda: "absent" in state(client, "slow").get("reason", ""), "it goes when it is idle")
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        body = {"inputs": [tensor], "parameters": {"timeout": 50_000}}
        reply = server.post("/v2/models/slow/infer", body)
        assert reply.status == 429 and "absent" in reply.error, reply
        assert int(reply.headers["retry-after"]) >= 1
        await_that(lambda: "reason" not in state(client, "slow"), "it is loaded all the same")


def test_a_model_that_never_fits_is_refused_with_the_numbers():
    files = {"huge.emulated.toml": model(memory_mb=200), "small.emulated.toml": model(memory_mb=1)}
    with Server(files, config(memory_mb=160)) as server:
        client = triton_http.InferenceServerClient(server.http)
        assert infer(client, "small").as_numpy("y")[0, 0] == 1
        with pytest.raises(InferenceServerException, match="needs `.*` bytes, and at most `.*` of the budget of"):
            infer(client, "huge")
        assert metric(server, "quadrant_resident_bytes") < 100e6, "it was not loaded to find that out"


def test_models_are_unloaded_and_loaded_by_name():
    files = {"a.emulated.toml": model(), "b.emulated.toml": model()}
    with Server(files, config()) as server:
        client = triton_http.InferenceServerClient(server.http)
        grpc_client = triton_grpc.InferenceServerClient(server.grpc)
        client.unload_model("a")
        assert state(client, "a") == {"name": "a", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
        with pytest.raises(InferenceServerException, match="'a' has no available versions"):
            infer(client, "a")
        assert infer(client, "b").as_numpy("y")[0, 0] == 1
        grpc_client.load_model("a")
        assert grpc_client.is_model_ready("a") and infer(client, "a").as_numpy("y")[0, 0] == 1
        grpc_client.unload_model("b")
        assert not client.is_model_ready("b")
        client.unload_model("nobody")
        with pytest.raises(InferenceServerException, match="failed to load 'nobody', failed to poll from model repository"):
            client.load_model("nobody")
        with pytest.raises(InferenceServerException, match="`config` is not supported"):
            client.load_model("b", config="{}")
        # A new file is served without a restart.
        server.put("c.emulated.toml", model())
        client.load_model("c")
        assert infer(client, "c").as_numpy("y")[0, 0] == 1


def test_a_slow_model_holds_no_other_up():
    """Neither while it is measured nor while it is loaded."""
    files = {"a.emulated.toml": model(), "b.emulated.toml": model()}
    with Server(files, config()) as server:
        client = triton_http.InferenceServerClient(server.http)
        client.unload_model("a")
        client.unload_model("b")
        before = metric(server, 'quadrant_memory_bytes{what="reserved"}')
        # One that no run before has measured.
        server.put("slow.emulated.toml", model(load_ms=3_000, seed=str(time.time_ns() >> 10)))
        ended = []

        def load(name: str):
            # A client is one thread's.
            triton_http.InferenceServerClient(server.http, network_timeout=60).load_model(name)
            ended.append(name)

        slow = threading.Thread(target=load, args=("slow",))
        slow.start()
        await_that(lambda: any(line["name"] == "slow" for line in client.get_model_repository_index()), "it is asked for")
        load("a")
        assert infer(client, "a").as_numpy("y")[0, 0] == 1
        client.unload_model("a")
        ended.append("without a")
        assert metric(server, 'quadrant_memory_bytes{what="reserved"}') == before, "it is still measured"
        await_that(lambda: metric(server, 'quadrant_memory_bytes{what="reserved"}') > before, "it is being loaded")
        load("b")
        client.unload_model("b")
        ended.append("without b")
        slow.join()
        assert ended == ["a", "without a", "b", "without b", "slow"]
        assert infer(client, "slow").as_numpy("y")[0, 0] == 1


@pytest.mark.parametrize("then", ["unload", "update"])
def test_a_model_that_is_being_loaded_for_a_request_answers_it_and_goes(then: str):
    files = {"m/1/model.emulated.toml": model(load_ms=2_000)}
    with Server(files, config(residency='"on-demand"', idle_s="0.2")) as server:
        client = triton_http.InferenceServerClient(server.http, network_timeout=60)
        await_that(lambda: "absent" in state(client, "m").get("reason", ""), "it goes when it is idle")
        empty = metric(server, 'quadrant_memory_bytes{what="reserved"}')
        answers = []

        def ask():
            own = triton_http.InferenceServerClient(server.http)
            answers.append(infer(own, "m").get_response()["model_version"])

        asking = threading.Thread(target=ask)
        asking.start()
        await_that(lambda: metric(server, 'quadrant_memory_bytes{what="reserved"}') > empty, "it is being loaded")
        if then == "unload":
            client.unload_model("m")
            assert not client.is_model_ready("m")
        else:
            server.put("m/2/model.emulated.toml", model())
            client.load_model("m")
            assert infer(client, "m").get_response()["model_version"] == "2"
        asking.join()
        assert answers == ["1"]
        await_that(lambda: metric(server, 'quadrant_memory_bytes{what="reserved"}') == empty, "its memory is given back")
        client.load_model("m")
        assert infer(client, "m").get_response()["model_version"] == ("1" if then == "unload" else "2")
        assert metric(server, "quadrant_invariant_violations_total") == 0


def test_updates_under_load_lose_nothing():
    """A hundred updates, one in five broken: nobody notices but those who look at the index."""
    versions = {"m/1/model.emulated.toml": model(load_ms=2, memory_mb=1)}
    with Server(versions, config()) as server:
        client = triton_http.InferenceServerClient(server.http)
        failures, answers, stop = [], [], threading.Event()

        def ask(seed: int):
            own = triton_http.InferenceServerClient(server.http)
            while not stop.is_set():
                try:
                    answer = infer(own, "m", seed)
                    assert answer.as_numpy("y")[0, 0] == seed
                    answers.append(int(answer.get_response()["model_version"]))
                except (InferenceServerException, AssertionError) as error:
                    failures.append(error)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        good = [1]
        for version in range(2, 102):
            broken = version % 5 == 0
            server.put(f"m/{version}/model.emulated.toml", "nonsense" if broken else model(load_ms=2, memory_mb=1))
            if broken:
                with pytest.raises(InferenceServerException, match="failed to load 'm'"):
                    client.load_model("m")
                lines = [line for line in client.get_model_repository_index() if line["name"] == "m"]
                assert [line["state"] for line in lines].count("READY") == 1
                serving = next(line for line in lines if line["state"] == "READY")
                assert int(serving["version"]) == good[-1] and f"version `{version}`" in serving["reason"]
            else:
                client.load_model("m")
                good.append(version)
                assert infer(client, "m").get_response()["model_version"] == str(version)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert set(answers) <= set(good)
        await_that(lambda: metric(server, 'quadrant_memory_bytes{what="reserved"}') < 128e6 + 64e6, "old ones are gone")
        assert metric(server, "quadrant_invariant_violations_total") == 0


def test_the_folder_is_looked_at():
    files = {"a.emulated.toml": model(), "b.emulated.toml": model()}
    with Server(files, config() + "[repository]\npoll_s = 0.1\n") as server:
        client = triton_http.InferenceServerClient(server.http)
        server.put("c.emulated.toml", model())
        await_that(lambda: client.is_model_ready("c"), "a new model is served")
        (server.models / "a.emulated.toml").unlink()
        await_that(lambda: not client.is_model_ready("a"), "one that is gone is not")
        assert infer(client, "b").as_numpy("y")[0, 0] == 1
