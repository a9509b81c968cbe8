"""The benchmark's peer: the same model in onnxruntime. Answers each line `length batch seconds` on stdin with
the milliseconds of one run; `bench-engine` asks it in turn with our engine.

The graph is built here from the model's own weights (the directory has no ONNX file): a BERT encoder as an exporter
writes it, then run through onnxruntime's own transformer optimizer, which fuses attention, GELU, and layer norms as
its users would. The output is checked against the token vectors' finiteness only; parity is the tests' business.

Usage: onnxruntime_peer.py MODEL_DIRECTORY THREADS
"""

import json
import pathlib
import sys
import tempfile
import time

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers import optimizer


def read_safetensors(path: pathlib.Path) -> dict[str, numpy.ndarray]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            values = numpy.frombuffer(data[8 + size + start : 8 + size + end], dtype="<f4")
            tensors[name] = values.reshape(entry["shape"])
    return tensors


class Graph:
    """A few lines of ONNX at a time."""

    def __init__(self) -> None:
        self.nodes, self.constants, self.count = [], [], 0

    def constant(self, values: numpy.ndarray) -> str:
        self.count += 1
        name = f"constant_{self.count}"
        self.constants.append(numpy_helper.from_array(numpy.ascontiguousarray(values), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        self.count += 1
        name = f"{kind}_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **attributes))
        return name


def build(directory: pathlib.Path) -> tuple[onnx.ModelProto, dict]:
    config = json.loads((directory / "config.json").read_text())
    weights = read_safetensors(directory / "model.safetensors")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    eps = config["layer_norm_eps"]
    graph = Graph()

    def linear(x: str, name: str) -> str:
        weight = graph.constant(weights[f"{name}.weight"].T)
        return graph.op("Add", graph.constant(weights[f"{name}.bias"]), graph.op("MatMul", x, weight))

    def norm(x: str, name: str) -> str:
        gamma, beta = (graph.constant(weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return graph.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=eps)

    def integers(*values: int) -> str:
        return graph.constant(numpy.array(values, dtype=numpy.int64))

    def split(x: str, order: list[int]) -> str:
        return graph.op("Transpose", graph.op("Reshape", x, integers(0, 0, heads, hidden // heads)), perm=order)

    def table(name: str) -> str:
        return graph.constant(weights[f"embeddings.{name}_embeddings.weight"])

    length = graph.op("Slice", graph.op("Shape", "input_ids"), integers(1), integers(2), integers(0))
    every = graph.constant(numpy.arange(config["max_position_embeddings"], dtype=numpy.int64)[None])
    positions = graph.op("Gather", table("position"), graph.op("Slice", every, integers(0), length, integers(1)))
    words = graph.op("Gather", table("word"), "input_ids")
    types = graph.op("Gather", table("token_type"), "token_type_ids")
    x = norm(graph.op("Add", graph.op("Add", words, types), positions), "embeddings.LayerNorm")
    mask = graph.op("Unsqueeze", graph.op("Unsqueeze", "attention_mask", integers(1)), integers(2))
    mask = graph.op("Cast", mask, to=TensorProto.FLOAT)
    lowest = graph.constant(numpy.array(numpy.finfo(numpy.float32).min))
    mask = graph.op("Mul", graph.op("Sub", graph.constant(numpy.array(1, dtype=numpy.float32)), mask), lowest)
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        query = split(linear(x, f"{layer}.attention.self.query"), [0, 2, 1, 3])
        key = split(linear(x, f"{layer}.attention.self.key"), [0, 2, 3, 1])
        value = split(linear(x, f"{layer}.attention.self.value"), [0, 2, 1, 3])
        scale = graph.constant(numpy.array((hidden // heads) ** 0.5, dtype=numpy.float32))
        scores = graph.op("Add", graph.op("Div", graph.op("MatMul", query, key), scale), mask)
        mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
        mixed = graph.op("Reshape", graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), integers(0, 0, hidden))
        dense = linear(mixed, f"{layer}.attention.output.dense")
        x = norm(graph.op("Add", dense, x), f"{layer}.attention.output.LayerNorm")
        wide = linear(x, f"{layer}.intermediate.dense")
        erf = graph.op("Erf", graph.op("Div", wide, graph.constant(numpy.array(2**0.5, dtype=numpy.float32))))
        sum_ = graph.op("Add", erf, graph.constant(numpy.array(1, dtype=numpy.float32)))
        half = graph.constant(numpy.array(0.5, dtype=numpy.float32))
        gelu = graph.op("Mul", graph.op("Mul", wide, sum_), half)
        x = norm(graph.op("Add", linear(gelu, f"{layer}.output.dense"), x), f"{layer}.output.LayerNorm")
    names = ("input_ids", "attention_mask", "token_type_ids")
    shape = ["batch", "length"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in names]
    graph.nodes[-1].output[0] = "last_hidden_state"
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, hidden])]
    whole = helper.make_graph(graph.nodes, "bert", inputs, outputs, graph.constants)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model, config


def main() -> None:
    directory, threads = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    model, config = build(directory)
    with tempfile.TemporaryDirectory() as work:
        plain, fused = f"{work}/plain.onnx", f"{work}/fused.onnx"
        onnx.save(model, plain)
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        better = optimizer.optimize_model(plain, "bert", num_heads=heads, hidden_size=hidden, opt_level=0)
        better.save_model_to_file(fused)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(fused, options, providers=["CPUExecutionProvider"])
    kinds = better.get_fused_operator_statistics()
    print(f"onnxruntime {onnxruntime.__version__}, {threads} threads, fused {kinds}", flush=True)
    rng = numpy.random.default_rng(1)
    for line in sys.stdin:
        length, batch, least = int(line.split()[0]), int(line.split()[1]), float(line.split()[2])
        ones = numpy.ones((batch, length), dtype=numpy.int64)
        started, spent, runs = time.perf_counter(), 0.0, 0
        while runs == 0 or time.perf_counter() - started < least:
            ids = rng.integers(1000, 30000, (batch, length))
            run = time.perf_counter()
            out = session.run(None, {"input_ids": ids, "attention_mask": ones, "token_type_ids": ones * 0})[0]
            out.mean(axis=1)
            spent += time.perf_counter() - run
            runs += 1
        print(spent * 1e3 / runs, flush=True)


main()
