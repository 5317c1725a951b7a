"""Models that cannot be served are unavailable alone, with a reason that a person understands; layouts are Triton's."""

import re
import subprocess

import numpy as np
import pytest
import tritonclient.http as triton_http
from onnx import TensorProto, helper
from server import BINARY, Server, identity


def affine(scale: float, batch: str | int = "batch", width: int = 3) -> bytes:
    """A real model, `y = scale * x`, small enough to make here."""
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"])]
    return model(nodes, [batch, width], [("scale", [scale])])


def model(nodes, shape, constants=(), domain: str = "") -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    values = [helper.make_tensor(name, TensorProto.FLOAT, [len(data)], data) for name, data in constants]
    graph = helper.make_graph(nodes, "test", [x], [y], values)
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def unsupported(op: str, domain: str = "") -> bytes:
    return model([helper.make_node(op, ["x"], ["y"], domain=domain)], ["batch", 3], domain=domain)


def dangling() -> bytes:
    """Well-formed protobuf whose graph uses a tensor that nobody makes."""
    return model([helper.make_node("Add", ["x", "nobody"], ["y"])], ["batch", 3])


GOOD = affine(2.0)

# Folder entry, and what its reason must say, whatever the engine.
BROKEN = [
    ("empty.onnx", b"", r"empty"),
    ("text.onnx", b"This is not a model at all.\n" * 50, r"ONNX"),
    ("page.onnx", b"<!DOCTYPE html><html><body>404</body></html>", r"ONNX"),
    ("pointer.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", r"ONNX|Git LFS"),
    ("zeros.onnx", bytes(4096), r"ONNX"),
    ("truncated.onnx", GOOD[: len(GOOD) * 2 // 3], r"ONNX"),
    ("operator.onnx", unsupported("Quux"), r"Quux"),
    ("domain.onnx", unsupported("Frob", "com.example"), r"Frob|com\.example"),
    ("dangling.onnx", dangling(), r"nobody"),
    ("no_version/config.pbtxt", "", r"version"),
    ("no_file/2/model.plan", b"x", r"model\.onnx"),
]  # fmt: skip

# Configuration, where the mistake is, and what is said of it.
MISTAKES = [
    ("misspelt", "max_bach_size: 3", "line 1, column 1", "max_bach_size"),
    ("second", 'name: "second"\n  max_batch_sise: 8\n', "line 2, column 3", "max_batch_sise"),
    ("nested", "input {\n  name: 'x'\n  data_typo: TYPE_FP32\n}\n", "line 3, column 3", "data_typo"),
    ("unclosed", "input {\n  name: 'x'\n", "line ", ""),
    ("not_a_number", "max_batch_size: many\n", "line 1, column 17", ""),
    ("enumeration", "input [{ name: 'x' data_type: TYPE_FP33 dims: [3] }]", "line 1, column 31", "TYPE_FP33"),
    ("garbage", "}}}}", "line 1, column 1", ""),
    ("binary", "\x00\x01\x02", "line 1, column 1", ""),
]

# Well-formed, but not what the model says.
CONTRADICTIONS = [
    ("input_name", "input [{ name: 'z' data_type: TYPE_FP32 dims: [3] }]", r"\bz\b"),
    ("input_type", "input [{ name: 'x' data_type: TYPE_INT32 dims: [3] }]", r"INT32"),
    ("input_dims", "max_batch_size: 4 input [{ name: 'x' data_type: TYPE_FP32 dims: [7] }]", r"7"),
    ("output_name", "output [{ name: 'w' data_type: TYPE_FP32 dims: [3] }]", r"\bw\b"),
]


def infer(server: Server, name: str, sent: np.ndarray, **wanted):
    with triton_http.InferenceServerClient(server.http) as client:
        tensor = triton_http.InferInput("x", list(sent.shape), "FP32")
        tensor.set_data_from_numpy(sent)
        outputs = [triton_http.InferRequestedOutput("y", **wanted)] if wanted else None
        return client.infer(name, [tensor], outputs=outputs)


def assert_served(server: Server, name: str, scale: float = 2.0) -> None:
    sent = np.array([[1, 2, 3]], np.float32)
    assert np.array_equal(infer(server, name, sent).as_numpy("y"), sent * scale)


def assert_readable(reason: str) -> None:
    """For a person: one short line without the insides of a program."""
    assert reason
    assert len(reason) < 600, reason
    assert not re.search(r"panicked|unwrap|Some\(|None\b|Err\(|\w+ \{ \w+:|\.rs:\d|0x[0-9a-f]{6}|\n|\x00", reason), (
        reason
    )


@pytest.fixture(scope="module", params=["onnxruntime", "rten"])
def troubled(request, assets):
    """A server whose models are almost all broken."""
    library = str(assets / "onnxruntime" / "libonnxruntime.so") if request.param == "onnxruntime" else "off"
    files = {name: content for name, content, _ in BROKEN}
    for name, text, *_ in MISTAKES + CONTRADICTIONS:
        files |= {f"{name}/config.pbtxt": text, f"{name}/1/model.onnx": GOOD}
    files |= {"good.onnx": GOOD, "also_good/1/model.onnx": GOOD, "aaa.onnx": GOOD, "zzz.onnx": GOOD}
    with Server(files, "[device]\nprobe_s = 0.05\n", ("--onnxruntime", library)) as server:
        yield server


def test_good_models_serve_beside_broken_ones(troubled):
    index = troubled.index()
    for name in ("aaa", "also_good", "good", "zzz"):
        assert index[name]["state"] == "READY"
        assert_served(troubled, name)
    broken = {entry.split("/")[0].removesuffix(".onnx") for entry, *_ in BROKEN + MISTAKES + CONTRADICTIONS}
    assert {name for name, line in index.items() if line["state"] == "UNAVAILABLE"} == broken
    assert troubled.get("/v2/health/live").status == 200


@pytest.mark.parametrize("entry, reason", [(entry, reason) for entry, _, reason in BROKEN])
def test_broken_models_have_their_reason(troubled, entry, reason):
    name = entry.split("/")[0].removesuffix(".onnx")
    line = troubled.index()[name]
    assert line["state"] == "UNAVAILABLE"
    assert_readable(line["reason"])
    assert re.search(reason, line["reason"]), line["reason"]
    assert troubled.get(f"/v2/models/{name}/ready").status == 400
    assert troubled.get(f"/v2/models/{name}").status == 404


@pytest.mark.parametrize("name, place, word", [(name, place, word) for name, _, place, word in MISTAKES])
def test_wrong_configurations_are_pointed_at(troubled, name, place, word):
    """With line and column, in the file that is wrong."""
    line = troubled.index()[name]
    assert line["state"] == "UNAVAILABLE"
    assert_readable(line["reason"])
    assert "config.pbtxt" in line["reason"] and place in line["reason"] and word in line["reason"], line["reason"]


@pytest.mark.parametrize("name, reason", [(name, reason) for name, _, reason in CONTRADICTIONS])
def test_configurations_that_contradict_the_model(troubled, name, reason):
    line = troubled.index()[name]
    assert line["state"] == "UNAVAILABLE"
    assert_readable(line["reason"])
    assert re.search(reason, line["reason"]), line["reason"]


def test_reasons_are_in_the_log(troubled):
    """Whoever looks there first finds the same words, at the level of an error."""
    errors = {line.get("model"): line["message"] for line in troubled.log if line.get("level") == "ERROR"}
    for name, line in troubled.index().items():
        if line["state"] == "UNAVAILABLE":
            assert line["reason"] in errors[name]


# -- layouts


LAYOUT = {
    "bare.onnx": affine(2.0),
    "versions/1/model.onnx": affine(5.0),
    "versions/3/model.onnx": affine(7.0),
    "versions/10/model.onnx": affine(11.0),
    "versions/notes/model.onnx": b"not a version",
    "configured/config.pbtxt": """
        name: "configured"
        platform: "onnxruntime_onnx"
        max_batch_size: 4
        input [{ name: "x" data_type: TYPE_FP32 dims: [ 3 ] }]
        output [{ name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "names.txt" }]
    """,
    "configured/names.txt": "red\ngreen\nblue\n",
    "configured/1/model.onnx": affine(2.0),
    "backend/config.pbtxt": "backend: 'ort'",
    "backend/1/model.onnx": affine(2.0),
    "labelled/labels.txt": "eins\nzwei\ndrei\n",
    "labelled/1/model.onnx": affine(2.0),
    # As with Triton, no batch size and no inputs would leave it to the graph.
    "unbatched/config.pbtxt": "max_batch_size: 0 input [{ name: 'x' data_type: TYPE_FP32 dims: [-1, 3] }]",
    "unbatched/1/model.onnx": affine(2.0),
    "fixed.onnx": affine(2.0, batch=1),
    "README.md": "not a model",
    ".hidden.onnx": b"not looked at",
}


@pytest.fixture(scope="module")
def layout(assets):
    library = str(assets / "onnxruntime" / "libonnxruntime.so")
    files = LAYOUT | {"silero-vad.onnx": assets / "models" / "silero-vad.onnx"}
    with Server(files, "[device]\nprobe_s = 0.2\n", ("--onnxruntime", library)) as server:
        yield server


def max_batch_size(server: Server, name: str) -> int:
    return server.get(f"/v2/models/{name}/config").json["max_batch_size"]


def test_everything_in_the_folder_is_found(layout):
    states = {name: line["state"] for name, line in layout.index().items()}
    names = ["backend", "bare", "configured", "fixed", "labelled", "silero-vad", "unbatched", "versions"]
    assert states == dict.fromkeys(names, "READY")


def test_highest_version_is_served(layout):
    """As a number: 10 is above 3."""
    assert layout.index()["versions"]["version"] == "10"
    assert layout.get("/v2/models/versions").json["versions"] == ["10"]
    assert_served(layout, "versions", 11.0)
    assert layout.get("/v2/models/versions/versions/10/ready").status == 200
    assert layout.get("/v2/models/versions/versions/3/ready").status == 400


def test_configuration_is_obeyed(layout):
    """The largest batch, and refusing more."""
    assert max_batch_size(layout, "configured") == 4
    assert_served(layout, "configured")
    assert infer(layout, "configured", np.ones((4, 3), np.float32)).as_numpy("y").shape == (4, 3)
    with pytest.raises(Exception, match="batch-size must be <= 4"):
        infer(layout, "configured", np.ones((5, 3), np.float32))


@pytest.mark.parametrize(
    "name, expected", [("configured", [b"6.000000:2:blue", b"4.000000:1:green"]), ("labelled", [b"6.000000:2:drei",
    b"4.000000:1:zwei"])]
)  # fmt: skip
def test_labels(layout, name, expected):
    sent = np.array([[1, 2, 3]], np.float32)
    classes = infer(layout, name, sent, class_count=2).as_numpy("y").flatten()
    assert [text if isinstance(text, bytes) else text.encode() for text in classes] == expected


def test_batching_is_read_from_the_graph(layout):
    """One symbol in front of everything batches; a fixed dimension, or a word of the configuration, does not."""
    assert max_batch_size(layout, "bare") > 1
    assert max_batch_size(layout, "fixed") == 0
    assert max_batch_size(layout, "unbatched") == 0


def test_silero_does_not_batch(layout):
    """Its first dimension is time: rows together are not what they are alone."""
    assert max_batch_size(layout, "silero-vad") == 0
    ready = [line for line in layout.log if line.get("model") == "silero-vad" and "model ready" in line["message"]]
    assert "not batched" in ready[0]["message"]


def test_dependent_rows_do_not_batch(assets):
    """A graph that declares a batch but mixes its rows is found out by trying, whatever it declares."""
    mean = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    library = str(assets / "onnxruntime" / "libonnxruntime.so")
    for onnxruntime in (library, "off"):
        files = {"mixing.onnx": model(mean, ["batch", 3]), "mixing_too.emulated.toml": identity("FP32", ("batch", 3))}
        with Server(files, "[device]\nprobe_s = 0.1\n", ("--onnxruntime", onnxruntime)) as server:
            assert max_batch_size(server, "mixing") == 0
            assert max_batch_size(server, "mixing_too") > 1


def test_empty_folder():
    """A server without models is live and says so."""
    with Server({}) as server:
        assert server.get("/v2/health/live").status == 200
        assert server.index() == {}


# -- the configuration of the server itself


def config(text: str, tmp_path) -> subprocess.CompletedProcess:
    path = tmp_path / "quadrant.toml"
    path.write_text(text)
    return subprocess.run([BINARY, "config", "--config", path], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("engine", ["ort", "rten", "emulated"])
def test_engines_have_their_documented_names(tmp_path, engine):
    result = config(f'[models.m]\nengine = "{engine}"\n', tmp_path)
    assert result.returncode == 0, result.stderr


def test_printed_configuration_is_a_valid_file(tmp_path):
    """What `config` prints has every default and is understood."""
    first = config("", tmp_path)
    assert first.returncode == 0 and "shutdown_s" in first.stdout
    second = config(first.stdout, tmp_path)
    assert second.stdout == first.stdout


@pytest.mark.parametrize("text", ["nonsense = 1", "[limits]\nbody_bites = 5", "[server\n", 'http_address = "nowhere"'])
def test_wrong_configuration_is_pointed_at(tmp_path, text):
    result = config(text, tmp_path)
    assert result.returncode == 1
    assert "quadrant.toml" in result.stderr and re.search(r"line \d+, column \d+", result.stderr), result.stderr
