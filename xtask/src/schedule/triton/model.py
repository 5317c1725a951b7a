"""A model of the mix for Triton's Python backend, run by ONNX Runtime: one session, as many threads as there
are cores. It is not Triton's own ONNX Runtime backend, which no Python package carries.

What Triton's dynamic batcher puts together becomes one run.
"""

import json
import pathlib

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

MODEL = pathlib.Path(__file__).with_name("model.onnx")
TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int32)": "TYPE_INT32", "tensor(int64)": "TYPE_INT64"}


def open_session(allow_spinning="1"):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", allow_spinning)
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


class TritonPythonModel:
    """What the backend looks for in this file."""

    @staticmethod
    def auto_complete_config(config):
        """Adds the inputs and outputs, which `config.pbtxt` leaves out, as the ONNX file has them."""
        batches = config.as_dict()["max_batch_size"] > 0

        def described(tensor):
            dims = [dim if isinstance(dim, int) else -1 for dim in tensor.shape]
            dims = dims[1:] if batches else dims
            return {"name": tensor.name, "data_type": TYPES[tensor.type], "dims": dims}

        session = open_session()
        for tensor in session.get_inputs():
            config.add_input(described(tensor))
        for tensor in session.get_outputs():
            config.add_output(described(tensor))
        return config

    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.session = open_session(parameters["allow_spinning"]["string_value"])
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]

    def execute(self, requests):
        # Triton puts only requests of equal shapes together, so they can be joined along dimension 0.
        parts = {name: [values(request, name) for request in requests] for name in self.inputs}
        joined = {name: part[0] if len(part) == 1 else np.concatenate(part) for name, part in parts.items()}
        # An output that nobody asked for is not computed.
        wanted = sorted({name for request in requests for name in request.requested_output_names()})
        outputs = self.session.run(wanted, joined)
        ends = np.cumsum([len(part) for part in parts[self.inputs[0]]])[:-1]
        answers = zip(*(np.split(output, ends) for output in outputs))
        return [response(wanted, answer) for answer in answers]


def values(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def response(names, arrays):
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in zip(names, arrays)])
