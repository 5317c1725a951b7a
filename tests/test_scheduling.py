"""Objectives, refusals with their reasons, tenants, the three policies, and the answer to "why was it slow?"."""

import json
import subprocess
import threading

import pytest
from server import BINARY, Server, await_that, identity

# A step takes 50 ms, whatever it is given, and does not batch.
SLOW = identity("UINT8", dims=(-1,), latency='{ kind = "fixed", step_us = 50000 }')
QUICK = identity("UINT8", dims=(-1,), latency='{ kind = "fixed", step_us = 500 }')
BODY = {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [1]}]}


def serve(config: str) -> Server:
    files = {"slow.emulated.toml": SLOW, "quick.emulated.toml": QUICK}
    return Server(files, "[device]\ncores = [0]\n" + config)


def flood(server: Server, count: int, headers=None) -> list:
    """So many requests for `slow` at once; their answers."""
    replies = []

    def one():
        replies.append(server.post("/v2/models/slow/infer", BODY, headers))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


def test_what_cannot_be_in_time_is_refused_at_once_with_reason_and_wait():
    with serve("[models.slow]\nlatency_objective_ms = 260.0\n") as server:
        replies = flood(server, 16)
        statuses = sorted(reply.status for reply in replies)
        assert statuses.count(200) >= 3 and statuses.count(429) >= 8, statuses
        for reply in replies:
            if reply.status == 429:
                assert reply.headers["x-quadrant-reason"] == "deadline_unmeetable"
                assert int(reply.headers["retry-after"]) >= 1
                assert 1 <= int(reply.headers["retry-after-ms"]) < 2_000
                assert "in time" in reply.error
        assert server.metric("quadrant_refusals_total", reason="deadline_unmeetable") == statuses.count(429)
        in_time = server.metric("quadrant_objective_requests_total", model="slow", outcome="in_time")
        late = server.metric("quadrant_objective_requests_total", model="slow", outcome="late")
        assert in_time + late == statuses.count(200) and in_time >= late


def test_a_model_may_demote_instead_of_refusing():
    with serve('[models.slow]\nlatency_objective_ms = 120.0\nunmet = "demote"\n') as server:
        assert [reply.status for reply in flood(server, 8)] == [200] * 8


def test_a_request_may_name_an_objective():
    config = "[objectives.fast]\nlatency_ms = 120.0\npriority = 1\n"
    header = "x-gateway-inference-objective"
    with serve(config) as server:
        statuses = [reply.status for reply in flood(server, 8, {header: "fast"})]
        assert 429 in statuses and 200 in statuses, statuses
        unknown = server.post("/v2/models/quick/infer", BODY, {header: "slowest"})
        assert unknown.status == 400 and "known are: `fast`" in unknown.error
        assert server.post("/v2/models/quick/infer", BODY, {"x-llm-d-inference-objective": "fast"}).status == 200


def test_tenants_are_told_apart():
    header = "x-gateway-inference-fairness-id"
    with serve("[scheduler.tenant_weights]\ngold = 3\n") as server:
        for tenant in ("gold", "gold", "tin"):
            assert server.post("/v2/models/quick/infer", BODY, {header: tenant}).status == 200
        assert server.metric("quadrant_tenant_requests_total", tenant="gold", outcome="completed") == 2
        assert server.metric("quadrant_tenant_requests_total", tenant="other", outcome="completed") == 1
        assert server.post("/v2/models/quick/infer", BODY, {header: "x" * 200}).status == 400


def test_a_short_urgent_request_does_not_wait_for_a_long_one():
    """The long step runs in the idle class, so the short one preempts it on the only core."""
    config = "[models.slow]\nlatency_objective_ms = 5000.0\n[models.quick]\nlatency_objective_ms = 100.0\n"
    busy = identity("UINT8", dims=(-1,), latency='{ kind = "fixed", step_us = 400000 }', busy="true")
    files = {"slow.emulated.toml": busy, "quick.emulated.toml": QUICK}
    with Server(files, "[device]\ncores = [0]\n" + config) as server:
        assert server.post("/v2/models/quick/infer", BODY).status == 200
        replies = []
        long = threading.Thread(target=lambda: replies.extend(flood(server, 1)))
        long.start()
        running = "nv_inference_pending_request_count"
        await_that(lambda: server.metric("quadrant_requests_accepted_total") >= 2, "the long request is accepted")
        assert server.metric(running, model="slow") == 0
        reply = server.post("/v2/models/quick/infer", BODY, {"x-quadrant-timing": "1"})
        assert reply.status == 200 and not replies, "the long step had ended"
        long.join()
        assert replies[0].status == 200


@pytest.mark.parametrize("policy", ["quadrant", "fifo", "clockwork"])
def test_every_policy_serves(policy):
    with serve(f'[scheduler]\npolicy = "{policy}"\n[models.slow]\nlatency_objective_ms = 5000.0\n') as server:
        assert [reply.status for reply in flood(server, 4)] == [200] * 4
        assert server.post("/v2/models/quick/infer", BODY).status == 200


def explain(server: Server, *args: str) -> subprocess.CompletedProcess:
    command = [str(BINARY), "explain", "--metrics-address", server.metrics, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_slow_request_is_explained():
    with serve("") as server:
        replies = flood(server, 4)
        numbers = {reply.headers["x-quadrant-request"] for reply in replies}
        assert len(numbers) == 4
        slowest = json.loads(explain(server, "--json").stdout)
        assert {str(line["request"]) for line in slowest} == numbers
        first = slowest[0]
        assert first["total_ms"] >= first["queue_ms"] >= 100.0, "it waited for three others"
        assert sum(line["ms"] for line in first["waited_for"]) == pytest.approx(first["queue_ms"], abs=20.0)
        assert first["step"]["width"] == 1 and first["step"]["real_ms"] == pytest.approx(50.0, abs=25.0)
        told = explain(server, str(first["request"]))
        assert told.returncode == 0 and "steps of slow" in told.stdout, told
        unknown = explain(server, "123456")
        assert unknown.returncode != 0 and "not remembered" in unknown.stderr
        assert server.get("/requests/abc", port="metrics").status == 400
        assert server.get("/requests/1").status == 404, "not on the clients' port"


def test_what_was_observed_can_be_simulated(tmp_path):
    with serve("[models.slow]\nlatency_objective_ms = 5000.0\n") as server:
        empty = run("observe", "--metrics-address", server.metrics)
        assert empty.returncode != 0 and "send it some requests first" in empty.stderr
        flood(server, 9)
        observed = run("observe", "--metrics-address", server.metrics)
    assert observed.returncode == 0, observed
    file = tmp_path / "workload.toml"
    file.write_text(observed.stdout)
    simulated = run("simulate", str(file), "--policies", "quadrant", "--loads", "0.5", "--runs", "1", "--json", "-")
    cell = json.loads(simulated.stdout)[0]
    slow = next(model for model in cell["models"] if model["name"] == "slow")
    assert slow["attainment"] == 1.0 and 45.0 < slow["p50_ms"] < 200.0, cell
    # The same arrivals can be sent to a server and simulated.
    trace = tmp_path / "arrivals.csv"
    trace.write_text("arrival_ms,model\n10,slow\n200,slow\n300,slow\n")
    text = observed.stdout.replace('kind = "poisson"', f'kind = "recorded"\ntrace = "{trace}"')
    file.write_text(text)
    replayed = json.loads(run("simulate", str(file), "--policies", "quadrant", "--runs", "1", "--json", "-").stdout)
    assert len(replayed) == 1 and sum(model["answered_per_second"] for model in replayed[0]["models"]) > 0, replayed
    assert "have one load" in run("plan", str(file)).stderr


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(BINARY), *args], capture_output=True, text=True, timeout=60, check=False)
