"""API keys, models, quotas, and changes while serving, with the real clients."""

import re
import signal
import subprocess
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from server import BINARY, Server, await_that, identity
from tritonclient.utils import InferenceServerException

QUICK = identity("UINT8", dims=(-1,), latency='{ kind = "fixed", step_us = 500 }')
# Keeps a core busy for 20 ms.
BUSY = identity("UINT8", dims=(-1,), latency='{ kind = "fixed", step_us = 20000 }', busy="true")
BODY = {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [1]}]}


def new_key() -> tuple[str, str]:
    """A key, and the digest that goes into the configuration."""
    text = subprocess.run([BINARY, "tenant", "new-key"], capture_output=True, text=True, check=True).stdout
    return re.search(r"qk_[0-9a-f]{64}", text)[0], re.search(r"sha256:[0-9a-f]{64}", text)[0]


def tenant(name: str, digest: str, extra: str = "") -> str:
    return f'[tenants.{name}]\nkeys = ["{digest}"]\n{extra}\n'


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def serve(config: str) -> Server:
    files = {"quick.emulated.toml": QUICK, "busy.emulated.toml": BUSY, "hidden.emulated.toml": QUICK}
    return Server(files, config + "[device]\ncores = [0]\n")


def infer(server: Server, model: str, headers: dict[str, str] | None = None):
    return server.post(f"/v2/models/{model}/infer", BODY, headers)


def asked_over_http(server: Server, model: str, headers: dict[str, str]):
    with triton_http.InferenceServerClient(server.http) as client:
        tensor = triton_http.InferInput("x", [1], "UINT8")
        tensor.set_data_from_numpy(np.ones(1, np.uint8))
        return client.infer(model, [tensor], headers=headers)


def asked_over_grpc(server: Server, model: str, headers: dict[str, str]):
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        tensor = triton_grpc.InferInput("x", [1], "UINT8")
        tensor.set_data_from_numpy(np.ones(1, np.uint8))
        # Metadata keys are lower case in gRPC.
        lower = {name.lower(): value for name, value in headers.items()}
        return client.infer(model, [tensor], headers=lower)


@pytest.mark.parametrize("ask, codes", [(asked_over_http, ("401", "403")), (asked_over_grpc, None)])
def test_clients_show_their_key(ask, codes):
    unknown, denied = codes or ("StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED")
    key, digest = new_key()
    with serve(tenant("alpha", digest, 'models = ["qui*"]')) as server:
        assert ask(server, "quick", bearer(key)).as_numpy("y")[0] == 1
        assert ask(server, "quick", {"X-API-Key": key}).as_numpy("y")[0] == 1
        for headers in ({}, bearer("qk_wrong"), {"x-api-key": "wrong"}):
            with pytest.raises(InferenceServerException) as refused:
                ask(server, "quick", headers)
            assert refused.value.status() == unknown
        with pytest.raises(InferenceServerException) as refused:
            ask(server, "hidden", bearer(key))
        assert refused.value.status() == denied and "may not use model `hidden`" in refused.value.message()
        index = server.post("/v2/repository/index", headers=bearer(key)).json
        assert [line["name"] for line in index] == ["quick"]
        assert server.get("/v2/health/ready").status == 200
        assert infer(server, "quick").headers["www-authenticate"] == 'Bearer realm="quadrant"'


def test_a_rate_is_kept_and_the_wait_is_true():
    key, digest = new_key()
    with serve(tenant("alpha", digest, "requests_per_second = 2.0\nburst = 2")) as server:
        replies = [infer(server, "quick", bearer(key)) for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        tokens = server.post("/tokenize", {"model": "quick", "prompt": "x"}, bearer(key))
        assert tokens.status == 429, "what takes no step is work, too"
        refused = replies[-1]
        assert refused.headers["x-quadrant-reason"] == "tenant_requests"
        assert refused.headers["retry-after"] == "1"
        wait_ms = int(refused.headers["retry-after-ms"])
        assert 1 <= wait_ms <= 500
        time.sleep(wait_ms / 1e3 + 0.01)
        assert infer(server, "quick", bearer(key)).status == 200
        with pytest.raises(InferenceServerException) as over:
            asked_over_grpc(server, "quick", bearer(key))
        assert over.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_a_share_of_the_device_is_charged_what_steps_really_took():
    key, digest = new_key()
    with serve(tenant("alpha", digest, "device_share = 0.1")) as server:
        began = time.monotonic()
        statuses, used = [], lambda: server.metric("quadrant_tenant_core_seconds_total", tenant="alpha")
        while time.monotonic() < began + 4.0:
            reply = infer(server, "busy", bearer(key))
            statuses.append(reply.status)
            if reply.status == 429:
                assert reply.headers["x-quadrant-reason"] == "tenant_device_time"
        # A second's share was saved up, and a step may be on its way.
        passed = time.monotonic() - began
        assert 0.1 * passed - 0.02 <= used() <= 0.1 * (passed + 1.0) + 0.04, (used(), passed)
        assert statuses.count(200) >= 15 and 429 in statuses


def test_edits_are_taken_over_while_serving():
    first, first_digest = new_key()
    second, second_digest = new_key()
    with serve(tenant("alpha", first_digest)) as server:
        config = server.folder / "quadrant.toml"
        original = config.read_text()
        assert infer(server, "quick", bearer(first)).status == 200

        # Another tenant, by the file alone.
        config.write_text(original + tenant("beta", second_digest))
        await_that(lambda: infer(server, "quick", bearer(second)).status == 200, "the new key is known", 10.0)
        assert infer(server, "quick", bearer(first)).status == 200

        # What cannot be read changes nothing, and is said.
        config.write_text(original + "[tenants.gamma\n")
        server.await_log("tenants cannot be changed, and stay as they were", 10.0)
        assert infer(server, "quick", bearer(second)).status == 200

        # Nor does a file in which nobody is left: everybody could ask.
        config.write_text("")
        await_that(lambda: "no tenant is left" in server.log_text(), "an empty file is refused", 10.0)
        assert infer(server, "quick").status == 401

        # A key that is gone, at once on SIGHUP.
        config.write_text(tenant("beta", second_digest))
        server.process.send_signal(signal.SIGHUP)
        await_that(lambda: infer(server, "quick", bearer(first)).status == 401, "the old key is gone", 5.0)
        assert infer(server, "quick", bearer(second)).status == 200

        audit = [line for line in server.log if line.get("target") == "quadrant::audit"]
        assert [line["outcome"].split(":")[0] for line in audit] == ["new `beta`", "refused", "refused", "gone `alpha`"]
        assert audit[-1]["who"] == "SIGHUP" and audit[-1]["action"] == "change tenants"


def test_tenants_have_a_file_of_their_own():
    key, digest = new_key()
    with serve(tenant("alpha", digest)) as server:
        file, config = server.folder / "own.toml", server.folder / "own-config.toml"
        file.write_text(tenant("alpha", digest))
        config.write_text('tenants_file = "own.toml"\n')
        printed = subprocess.run([BINARY, "config", "--config", config], capture_output=True, text=True)
        assert printed.returncode == 0 and "tenants_file" in printed.stdout, printed.stderr
        file.write_text('[tenants.alpha]\nkeys = ["qk_plain"]\n')
        refused = subprocess.run([BINARY, "config", "--config", config], capture_output=True, text=True)
        assert refused.returncode != 0 and "must be `sha256:`" in refused.stderr and "qk_plain" not in refused.stderr


def test_who_is_known_is_shown():
    key, digest = new_key()
    with serve(tenant("alpha", digest, "concurrency = 4")) as server:
        number = infer(server, "quick", bearer(key)).headers["x-quadrant-request"]
        asked = ["--metrics-address", server.metrics]
        one = subprocess.run([BINARY, "explain", number, *asked], capture_output=True, text=True).stdout
        assert "for quick of alpha: completed" in one
        of_tenant = subprocess.run([BINARY, "explain", "--tenant", "alpha", *asked], capture_output=True, text=True)
        assert "0 of 4 requests" in of_tenant.stdout and "for quick of alpha" in of_tenant.stdout
        listed = subprocess.run([BINARY, "tenant", "list", *asked], capture_output=True, text=True).stdout
        assert "tenant alpha: weight 1" in listed


def test_a_key_made_elsewhere_has_the_same_digest():
    key, digest = new_key()
    hashed = subprocess.run([BINARY, "tenant", "hash"], input=key + "\n", capture_output=True, text=True)
    assert hashed.stdout.strip() == digest
    short = subprocess.run([BINARY, "tenant", "hash"], input="secret\n", capture_output=True, text=True)
    assert short.returncode != 0 and "at least 32" in short.stderr and "secret" not in short.stderr


def test_only_who_administers_loads_and_unloads():
    (key, digest), (admin_key, admin_digest) = new_key(), new_key()
    tenants = tenant("alpha", digest) + tenant("operations", admin_digest, "admin = true")
    with serve(tenants) as server:
        with triton_http.InferenceServerClient(server.http) as client:
            with pytest.raises(InferenceServerException) as refused:
                client.unload_model("quick", headers=bearer(key))
            assert refused.value.status() == "403" and infer(server, "quick", bearer(key)).status == 200
            client.unload_model("quick", headers=bearer(admin_key))
            assert infer(server, "quick", bearer(key)).status == 404
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            lower = {name.lower(): value for name, value in bearer(admin_key).items()}
            client.load_model("quick", headers=lower)
        assert infer(server, "quick", bearer(key)).status == 200
        lines = [line for line in server.log if line.get("target") == "quadrant::audit"]
        said = [(line["who"], line["action"], line["on"], line["outcome"].split(":")[0]) for line in lines]
        assert said[-3:] == [
            ("alpha", "unload", "quick", "permission_denied"),
            ("operations", "unload", "quick", "done"),
            ("operations", "load", "quick", "done"),
        ]
