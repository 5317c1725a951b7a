"""Metrics are Triton's by name and label, add up, and can be read by Prometheus."""

import math
import re
import threading

import numpy as np
import pytest
import tritonclient.http as triton_http
from server import ADDSUB, Server, await_that, identity

MODELS = {
    "addsub.emulated.toml": ADDSUB,
    "slow.emulated.toml": identity("FP32", latency='{ kind = "fixed", step_us = 2000 }'),
    "unused.emulated.toml": identity("FP32"),
}
LABELS = {"model", "version"}
STAGES = ["request", "queue", "compute_input", "compute_infer", "compute_output"]

# As recorded from Triton 2.51.0, for what is served here: name, kind, labels of every sample.
TRITON = [
    ("nv_inference_request_success", "counter", LABELS),
    ("nv_inference_request_failure", "counter", LABELS | {"reason"}),
    ("nv_inference_count", "counter", LABELS),
    ("nv_inference_exec_count", "counter", LABELS),
    *((f"nv_inference_{stage}_duration_us", "counter", LABELS) for stage in STAGES),
    ("nv_inference_pending_request_count", "gauge", LABELS),
    ("nv_model_load_duration_secs", "gauge", LABELS),
    *((f"nv_inference_{stage}_duration_histogram_us", "histogram", LABELS) for stage in STAGES),
]

SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)')
SUFFIXES = ("_bucket", "_sum", "_count")


class Metrics:
    """Prometheus' text format, strictly."""

    def __init__(self, text: str):
        self.kinds: dict[str, str] = {}
        self.samples: list[tuple[str, dict[str, str], float]] = []
        helped = set()
        assert text.endswith("\n")
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                assert name not in helped, f"two HELP lines for {name}"
                helped.add(name)
            elif line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                assert name not in self.kinds, f"two TYPE lines for {name}"
                assert kind in ("counter", "gauge", "histogram", "summary", "untyped")
                self.kinds[name] = kind
            else:
                match = SAMPLE.fullmatch(line)
                assert match, f"not a sample: {line!r}"
                labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
                assert self.family(match[1]) in self.kinds, f"{match[1]} has no TYPE line before it"
                self.samples.append((match[1], labels, float(match[3])))
        assert helped == set(self.kinds)
        keys = [(name, tuple(sorted(labels.items()))) for name, labels, _ in self.samples]
        assert len(set(keys)) == len(keys), "no sample twice"

    def family(self, name: str) -> str:
        for suffix in SUFFIXES:
            base = name.removesuffix(suffix)
            if base != name and self.kinds.get(base) in ("histogram", "summary"):
                return base
        return name

    def of(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        matches = lambda have: all(have.get(key) == value for key, value in labels.items())  # noqa: E731
        return [(have, value) for sample, have, value in self.samples if sample == name and matches(have)]

    def value(self, name: str, **labels: str) -> float:
        (_, value), *others = self.of(name, **labels)
        assert not others
        return value


def scrape(server: Server) -> Metrics:
    return Metrics(server.metrics_text())


@pytest.fixture(scope="module")
def server():
    with Server(MODELS) as server:
        yield server


def infer(server: Server, model: str, rows: int) -> None:
    sent = np.ones((rows, 4), np.float32)
    with triton_http.InferenceServerClient(server.http) as client:
        names = ["INPUT0", "INPUT1"] if model == "addsub" else ["x"]
        tensors = [triton_http.InferInput(name, list(sent.shape), "FP32") for name in names]
        for tensor in tensors:
            tensor.set_data_from_numpy(sent)
        client.infer(model, tensors)


def settled(server: Server) -> Metrics:
    """After everything that was answered was also counted."""

    def look():
        metrics = scrape(server)
        names = ("quadrant_requests_accepted_total", "quadrant_requests_ended_total")
        return metrics if metrics.value(names[0]) == metrics.value(names[1]) else None

    return await_that(look, "no request in flight")


def test_names_kinds_and_labels(server):
    """All there from the beginning, at zero, so that rates and alerts work before the first request."""
    metrics = scrape(server)
    for name, kind, labels in TRITON:
        assert metrics.kinds.get(name) == kind, name
        sample = f"{name}_count" if kind == "histogram" else name
        for model in ("addsub", "slow", "unused"):
            found = metrics.of(sample, model=model, version="1")
            assert found, (sample, model)
            assert all(set(have) == labels for have, _ in found), (sample, found)
    for model in ("addsub", "slow", "unused"):
        reasons = {have["reason"] for have, _ in metrics.of("nv_inference_request_failure", model=model)}
        assert reasons == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}
    assert metrics.value("nv_inference_request_success", model="unused") == 0


def test_no_counter_of_tritons_has_a_suffix(server):
    """Dashboards ask for `nv_inference_count`, not `nv_inference_count_total`."""
    assert not [name for name in scrape(server).kinds if name.startswith("nv_") and name.endswith("_total")]


def test_content_type_and_place(server):
    reply = server.get("/metrics", port="metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert server.get("/metrics").status == 404
    assert server.get("/", port="metrics").status == 404
    assert server.post("/metrics", port="metrics").status == 405


def test_counts(server):
    """Requests, rows and steps are told apart."""
    before = settled(server)
    for rows in (1, 2, 5):
        infer(server, "addsub", rows)
    after = settled(server)
    grown = lambda name: after.value(name, model="addsub") - before.value(name, model="addsub")  # noqa: E731
    assert grown("nv_inference_request_success") == 3
    assert grown("nv_inference_count") == 8
    assert grown("nv_inference_exec_count") == 3
    assert after.value("nv_inference_count", model="unused") == 0


def test_failures_are_counted_by_reason(server):
    """A request that does not fit its model is the client's: OTHER."""
    before = settled(server)
    assert server.post("/v2/models/addsub/infer", {"inputs": []}).status == 400
    after = settled(server)
    name = "nv_inference_request_failure"
    for reason, growth in [("OTHER", 1), ("BACKEND", 0), ("REJECTED", 0), ("CANCELED", 0)]:
        labels = {"model": "addsub", "reason": reason}
        assert after.value(name, **labels) - before.value(name, **labels) == growth, reason


def test_durations(server):
    """The time of the engine is in `compute_infer`, everything is in `request`, and the parts fit into it."""
    before = settled(server)
    for _ in range(10):
        infer(server, "slow", 1)
    after = settled(server)
    took = {}
    for stage in STAGES:
        name = f"nv_inference_{stage}_duration_us"
        took[stage] = after.value(name, model="slow") - before.value(name, model="slow")
    assert took["compute_infer"] >= 10 * 2_000
    assert sum(took[stage] for stage in STAGES[1:]) <= took["request"] <= 10 * 50_000


def test_histograms_are_consistent(server):
    """Buckets rise to the count, and the sum is that of the counter; while requests run, too."""
    threads = [threading.Thread(target=infer, args=(server, "slow", 1 + number % 3)) for number in range(16)]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads):
        seen.append(scrape(server))
    for thread in threads:
        thread.join()
    for metrics in [*seen, settled(server)]:
        histograms = [name for name, kind in metrics.kinds.items() if kind == "histogram"]
        for name in histograms:
            for have, count in metrics.of(f"{name}_count"):
                buckets = [(float(b["le"]), value) for b, value in metrics.of(f"{name}_bucket", model=have["model"])]
                assert [edge for edge, _ in buckets] == sorted({edge for edge, _ in buckets})
                assert buckets[-1] == (math.inf, count)
                values = [value for _, value in buckets]
                assert values == sorted(values)
    for stage in STAGES:
        total = metrics.value(f"nv_inference_{stage}_duration_us", model="slow")
        exact = metrics.value(f"nv_inference_{stage}_duration_histogram_us_sum", model="slow")
        count = metrics.value(f"nv_inference_{stage}_duration_histogram_us_count", model="slow")
        assert count == metrics.value("nv_inference_request_success", model="slow")
        # The counter is in whole microseconds.
        assert total <= exact + 1e-6 * exact <= total + count + 1


def test_counters_never_fall(server):
    before = scrape(server)
    infer(server, "addsub", 1)
    after = scrape(server)
    for name, labels, value in before.samples:
        kind = before.kinds[before.family(name)]
        if kind in ("counter", "histogram"):
            assert after.value(name, **labels) >= value, (name, labels)


def test_names_are_escaped():
    """A model's name is a label's value, whatever characters it has."""
    with Server({'we"ird.emulated.toml': identity("FP32")}) as server:
        metrics = scrape(server)
        assert metrics.value("nv_inference_count") == 0
        assert metrics.of("nv_inference_count")[0][0]["model"] == 'we\\"ird'
