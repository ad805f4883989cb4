"""Rewrite a BERT encoder as a fused graph, in float or with int8 products.

Reads the weights of any ONNX export of BERT or XLM-RoBERTa by their names, and writes the same network
with ONNX Runtime's fused operators: one product for query, key and value, attention, bias + GELU,
residual + layer norm, and pooling at the end.

Quantised: weights int8 per output channel, activations uint8 per tensor with ranges measured once on
calibration texts. Ranges measured at run time would make a text's vector depend on its neighbours in the
batch (seen: cosine .97 to itself). Channels with outliers are first evened out between activation and
weights (SmoothQuant, Xiao et al. 2022): x @ W = (x / s) @ (s W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Products = Literal["float", "signed", "mixed"]
"""`mixed`: unsigned weights for attention's output product, because processors without int8 dot products
saturate on signed ones."""
Head = Literal["mean", "cls", "last_token", "classify"]
"""What stands at the end: a pooling, or the pooler and classifier of a cross-encoder."""
SMOOTHING = 0.7
RANGE_MARGIN = 1.2
_LAYER = "encoder.layer.0.attention.self.query.bias"
_POOLER = ("pooler.dense.weight", "pooler.dense.bias")
_CLASSIFIER = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True, slots=True)
class BertWeights:
    """`tensors` by their transformers name; products are stored (K, N) under `.kernel`."""

    tensors: dict[str, Array]
    layers: int
    heads: int
    hidden: int
    first_position: int
    epsilon: float

    @property
    def classifies(self) -> bool:
        """Whether the network ends in pooler and classifier."""
        return all(name in self.tensors for name in (*_POOLER, *_CLASSIFIER))


def read_bert(path: Path, *, heads: int | None = None, first_position: int = 0) -> BertWeights | None:
    """The weights of a BERT-shaped graph, or None when the graph is another network.

    Weight-only int8 (a Cast and a Mul before each product) is widened to float. Without `heads`, 64 values
    a head
    are assumed, or 32 below a width of 512; whoever uses the result compares its vectors with the original's.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path), load_external_data=False)
    if any(i.data_location == onnx.TensorProto.EXTERNAL for i in model.graph.initializer):
        return None  # too large to be held in one file
    values = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    maker = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].astype(np.float32)
        elif node.op_type == "Mul" and node.input[0] in values and node.input[1] in values:
            values[node.output[0]] = values[node.input[0]] * values[node.input[1]]
    anchor = next((name for name in values if name.endswith(_LAYER)), None)
    if anchor is None:
        return None
    prefix = anchor[: -len(_LAYER)]
    tensors = {name[len(prefix) :]: a for name, a in values.items() if name.startswith(prefix)}
    for name in _CLASSIFIER:
        found = next((full for full in values if full == name or full.endswith(f".{name}")), None)
        if found is not None:
            tensors[name] = values[found]
    pooled = any(node.op_type == "Tanh" for node in model.graph.node)
    if pooled and not all(name in tensors for name in (*_POOLER, *_CLASSIFIER)):
        return None
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        for bias, product in (tuple(node.input), tuple(reversed(node.input))):
            source = maker.get(product)
            if (
                bias in values
                and source is not None
                and source.op_type == "MatMul"
                and source.input[1] in values
            ):
                tensors[bias[len(prefix) :].removesuffix(".bias") + ".kernel"] = values[source.input[1]]
    layers = 0
    while f"encoder.layer.{layers}.output.dense.kernel" in tensors:
        layers += 1
    words = tensors.get("embeddings.word_embeddings.weight")
    if not layers or words is None or any(a.dtype != np.float32 for k, a in tensors.items() if "kernel" in k):
        return None
    hidden = words.shape[1]
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    epsilon = next((a.f for n in norms for a in n.attribute if a.name == "epsilon"), 1e-12)
    return BertWeights(
        tensors, layers, heads or hidden // (64 if hidden >= 512 else 32), hidden, first_position, epsilon
    )


@dataclass(frozen=True, slots=True)
class InputRange:
    """What entered one product on the calibration texts: least and greatest value of each channel, (K,)."""

    low: Array
    high: Array


def write_bert(
    weights: BertWeights,
    *,
    products: Products,
    pooling: Head,
    ranges: Mapping[str, InputRange] | None = None,
) -> bytes:
    """A serialised graph: input_ids, attention_mask (B, T) int64, right-padded -> `pooled` (B, d) float32.

    Token types are taken as all zero; with `classify` they are a third input, token_type_ids, and the output is
    `logits` (B, labels). Where only the first token is read in the end, the last layer computes only that one.
    Raises KeyError when a weight of the architecture is missing.
    """
    if products != "float" and ranges is None:
        raise ValueError("int8 products need the ranges of their inputs; call measure_ranges first.")
    return _Writer(weights, products, ranges or {}).encoder(pooling)


@dataclass(frozen=True, slots=True)
class ScoreHead:
    """What a cross-encoder does with the first token's vector: tanh(x @ pool + bias) @ kernel + bias -> (B, 1)."""

    pool_kernel: Array
    pool_bias: Array
    kernel: Array
    bias: Array


def write_scorer(
    weights: BertWeights,
    head: ScoreHead,
    *,
    products: Products,
    ranges: Mapping[str, InputRange] | None = None,
) -> bytes:
    """A serialised cross-encoder: input_ids, attention_mask, token_type_ids (B, T) int64, right-padded -> `logits`
    (B, 1) float32.

    The table of word vectors is stored as int8 with a scale a row: it is half of a small model.
    """
    if products != "float" and ranges is None:
        raise ValueError("int8 products need the ranges of their inputs; call measure_ranges first.")
    return _Writer(weights, products, ranges or {}).scorer(head)


def measure_ranges(
    weights: BertWeights,
    rows: Sequence[Sequence[int]],
    *,
    head: Head | ScoreHead = "mean",
    types: Sequence[Sequence[int]] = (),
) -> dict[str, InputRange]:
    """Run the float graph over token rows and note the range of every channel that enters a product.

    With a `ScoreHead` the graph is a scorer's; `types` holds the token types of each row where it reads them.
    """
    from qmd.llm.session import open_session

    writer = _Writer(weights, "float", {})
    tapped = writer.product_inputs
    session = open_session(
        writer.scorer(head, outputs=tapped)
        if isinstance(head, ScoreHead)
        else writer.encoder(head, outputs=tapped)
    )
    names = list(dict.fromkeys(writer.product_inputs))
    found: dict[str, InputRange] = {}
    for number, row in enumerate(rows):
        ids = np.array([row], dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if types:
            feeds["token_type_ids"] = np.array([types[number]], dtype=np.int64)
        values = session.run(names, feeds)
        for name, value in zip(names, values, strict=True):
            low, high = value[0].min(axis=0), value[0].max(axis=0)
            if name in found:
                low, high = np.minimum(low, found[name].low), np.maximum(high, found[name].high)
            found[name] = InputRange(low, high)
    return found


class _Writer:
    def __init__(self, weights: BertWeights, products: Products, ranges: Mapping[str, InputRange]) -> None:
        self.weights = weights
        self.products = products
        self.ranges = ranges
        self.product_inputs: list[str] = []
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, value: Array) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(
        self, op: str, inputs: list[str], output: str, *, contrib: bool = False, **attributes: Any
    ) -> str:
        from onnx import helper

        domain = "com.microsoft" if contrib else ""
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, name=output, **attributes))
        return output

    def tensor(self, name: str) -> str:
        return self.constant(name, self.weights.tensors[name])

    def product(
        self, x: str, kernel: Array, output: str, *, bias: Array | None = None, exact: bool = False
    ) -> str:
        """x (B, T, K) @ kernel (K, N) (+ bias). `exact` products use unsigned weights in mixed mode."""
        self.product_inputs.append(x)
        if self.products == "float":
            out = self.node(
                "MatMul", [x, self.constant(f"{output}.w", kernel)], output if bias is None else f"{output}.p"
            )
            return (
                out if bias is None else self.node("Add", [out, self.constant(f"{output}.b", bias)], output)
            )
        low, high = self.ranges[x].low, self.ranges[x].high
        reach = np.maximum(np.maximum(np.abs(low), np.abs(high)), 1e-3)
        smooth = reach**SMOOTHING / np.maximum(np.abs(kernel).max(axis=1), 1e-5) ** (1 - SMOOTHING)
        smooth = (smooth / np.median(smooth)).astype(np.float32)
        least = min(0.0, float((low / smooth).min())) * RANGE_MARGIN
        step = (float((high / smooth).max()) * RANGE_MARGIN - least) / 255
        zero = np.array(np.clip(round(-least / step), 0, 255), np.uint8)
        even = self.node("Mul", [x, self.constant(f"{output}.even", 1 / smooth)], f"{output}.x")
        scale_x, zero_x = (
            self.constant(f"{output}.sx", np.array(step, np.float32)),
            self.constant(f"{output}.zx", zero),
        )
        whole_x = self.node("QuantizeLinear", [even, scale_x, zero_x], f"{output}.x8")
        kernel = kernel * smooth[:, None]
        scale = np.maximum(np.abs(kernel).max(axis=0) / 127, 1e-12).astype(np.float32)
        rounded = np.clip(np.rint(kernel / scale), -127, 127)
        unsigned = self.products == "mixed" and exact
        whole = (rounded + 128).astype(np.uint8) if unsigned else rounded.astype(np.int8)
        zeros = np.full(scale.shape, 128 if unsigned else 0, whole.dtype)
        inputs = [whole_x, self.constant(f"{output}.q", whole), scale_x, self.constant(f"{output}.s", scale)]
        inputs += [zero_x, self.constant(f"{output}.z", zeros)]
        if bias is not None:
            inputs.append(self.constant(f"{output}.b", bias))
        return self.node("MatMulIntegerToFloat", inputs, output, contrib=True)

    def norm(self, x: str, residual: str, name: str, output: str) -> str:
        """LayerNorm(x + bias of the dense before it + residual)."""
        gain, shift = self.tensor(f"{name}.LayerNorm.weight"), self.tensor(f"{name}.LayerNorm.bias")
        inputs = [x, residual, gain, shift, self.tensor(f"{name}.dense.bias")]
        return self.node("SkipLayerNormalization", inputs, output, contrib=True, epsilon=self.weights.epsilon)

    def first_only(self, x: str, number: int) -> tuple[str, str]:
        """A last layer's attention for the first token alone: (its mixture (B, 1, d), its input (B, 1, d))."""
        t, name = self.weights.tensors, f"encoder.layer.{number}.attention.self"
        self.node("Gather", [x, self.constant("zeroth", np.array([0]))], "first.x", axis=1)
        kernel = np.concatenate([t[f"{name}.{part}.kernel"] for part in ("key", "value")], axis=1)
        bias = np.concatenate([t[f"{name}.{part}.bias"] for part in ("key", "value")])
        joint = self.product(x, kernel, f"{number}.kv", bias=bias)
        self.split(joint, [f"{number}.k", f"{number}.v"], "halves")
        q = self.product("first.x", t[f"{name}.query.kernel"], f"{number}.q", bias=t[f"{name}.query.bias"])
        inputs = [q, f"{number}.k", f"{number}.v", "", "lengths"]
        mixed = self.node(
            "MultiHeadAttention", inputs, f"{number}.mixed", contrib=True, num_heads=self.weights.heads
        )
        return mixed, "first.x"

    def split(self, x: str, names: list[str], sizes: str) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Split", [x, sizes], names, name=f"{x}.split", axis=-1))

    def all_tokens(self, x: str, number: int) -> tuple[str, str]:
        t, name = self.weights.tensors, f"encoder.layer.{number}"
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        kernel = np.concatenate([t[f"{part}.kernel"] for part in parts], axis=1)
        bias = np.concatenate([t[f"{part}.bias"] for part in parts])
        joint = self.product(x, kernel, f"{number}.qkv", bias=bias)
        names = [f"{number}.{part}" for part in "qkv"]
        self.split(joint, names, "thirds")
        mixed = self.node(
            "MultiHeadAttention",
            [*names, "", "lengths"],
            f"{number}.mixed",
            contrib=True,
            num_heads=self.weights.heads,
        )
        return mixed, x

    def layer(self, x: str, number: int, *, first_only: bool = False) -> str:
        t, name = self.weights.tensors, f"encoder.layer.{number}"
        mixed, x = self.first_only(x, number) if first_only else self.all_tokens(x, number)
        out = self.product(mixed, t[f"{name}.attention.output.dense.kernel"], f"{number}.out", exact=True)
        y = self.norm(out, x, f"{name}.attention.output", f"{number}.y")
        up = self.product(y, t[f"{name}.intermediate.dense.kernel"], f"{number}.up")
        gelu = self.node(
            "BiasGelu", [up, self.tensor(f"{name}.intermediate.dense.bias")], f"{number}.gelu", contrib=True
        )
        down = self.product(gelu, t[f"{name}.output.dense.kernel"], f"{number}.down")
        return self.norm(down, y, f"{name}.output", f"{number}.z")

    def _count_tokens(self) -> None:
        from onnx import TensorProto

        self.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
        self.node("ReduceSum", ["mask", self.constant("axis", np.array([1]))], "lengths", keepdims=0)
        self.constant("thirds", np.array([self.weights.hidden] * 3))

    def scorer(self, head: ScoreHead, *, outputs: Sequence[str] = ()) -> bytes:
        from onnx import TensorProto

        w, t = self.weights, self.weights.tensors
        words = t["embeddings.word_embeddings.weight"]
        scale = np.maximum(np.abs(words).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
        whole = np.rint(words / scale).astype(np.int8)
        self._count_tokens()
        self.node("Gather", [self.constant("words", whole), "input_ids"], "word8")
        self.node("Cast", ["word8"], "word_wide", to=TensorProto.FLOAT)
        self.node("Gather", [self.constant("word_scales", scale), "input_ids"], "word_scale")
        self.node("Mul", ["word_wide", "word_scale"], "word")
        self.node("Shape", ["input_ids"], "length", start=1, end=2)
        positions = self.constant("positions", t["embeddings.position_embeddings.weight"][w.first_position :])
        zero = self.constant("zero", np.array([0]))
        self.node("Slice", [positions, zero, "length", zero], "position")
        self.node(
            "Gather", [self.tensor("embeddings.token_type_embeddings.weight"), "token_type_ids"], "type"
        )
        self.node("Add", ["word", "type"], "typed")
        self.node("Add", ["typed", "position"], "placed")
        norm = [self.tensor(f"embeddings.LayerNorm.{part}") for part in ("weight", "bias")]
        x = self.node("LayerNormalization", ["placed", *norm], "x", axis=-1, epsilon=w.epsilon)
        for number in range(w.layers):
            x = self.layer(x, number)
        self.node("Gather", [x, self.constant("first", np.array([0]))], "first_row", axis=1)
        self.node("Squeeze", ["first_row", "axis"], "cls")
        pool = [
            self.constant(f"head.pool.{n}", a) for n, a in (("w", head.pool_kernel), ("b", head.pool_bias))
        ]
        self.node("Gemm", ["cls", *pool], "dense")
        self.node("Tanh", ["dense"], "active")
        score = [self.constant(f"head.score.{n}", a) for n, a in (("w", head.kernel), ("b", head.bias))]
        self.node("Gemm", ["active", *score], "logits")
        return self._serialise(("input_ids", "attention_mask", "token_type_ids"), ("logits", 1), outputs)

    def encoder(self, pooling: Head, *, outputs: Sequence[str] = ()) -> bytes:
        from onnx import TensorProto, helper

        w, t = self.weights, self.weights.tensors
        positions = t["embeddings.position_embeddings.weight"][w.first_position :]
        types = t["embeddings.token_type_embeddings.weight"][0]
        self.node("Cast", ["input_ids"], "ids", to=TensorProto.INT32)
        self._count_tokens()
        first_only = pooling in ("cls", "classify")
        if first_only:
            self.constant("halves", np.array([w.hidden] * 2))
        words = self.tensor("embeddings.word_embeddings.weight")
        if pooling == "classify":
            self.node("Cast", ["token_type_ids"], "types", to=TensorProto.INT32)
            inputs = ["ids", "types", words, self.constant("positions", positions)]
            inputs += [self.tensor("embeddings.token_type_embeddings.weight")]
        else:
            inputs = ["ids", "", words, self.constant("positions", positions + types), ""]
        inputs += [self.tensor("embeddings.LayerNorm.weight"), self.tensor("embeddings.LayerNorm.bias")]
        self.nodes.append(
            helper.make_node(
                "EmbedLayerNormalization", inputs, ["x", "unused"], domain="com.microsoft", epsilon=w.epsilon
            )
        )
        x = "x"
        for number in range(w.layers):
            x = self.layer(x, number, first_only=first_only and number + 1 == w.layers)
        if first_only:
            self.node("Squeeze", [x, "axis"], "pooled")
        if pooling == "classify":
            weight, bias = (self.tensor(name) for name in _POOLER)
            self.node("Tanh", [self.node("Gemm", ["pooled", weight, bias], "dense", transB=1)], "tanh")
            weight, bias = (self.tensor(name) for name in _CLASSIFIER)
            self.node("Gemm", ["tanh", weight, bias], "logits", transB=1)
        elif pooling == "cls":
            pass
        elif pooling == "mean":
            # (B, 1, T) @ (B, T, d) / T' : the sum over real tokens is one product
            self.node("Cast", ["attention_mask"], "weights", to=TensorProto.FLOAT)
            self.node("Unsqueeze", ["weights", "axis"], "row")
            self.node("MatMul", ["row", x], "sums")
            self.node("Squeeze", ["sums", "axis"], "sum")
            self.node("ReduceSum", ["weights", "axis"], "total", keepdims=1)
            self.node("Div", ["sum", "total"], "pooled")
        else:
            raise ValueError(f"pooling {pooling!r} is not an encoder's")
        if pooling == "classify":
            labels = len(t["classifier.bias"])
            return self._serialise(
                ("input_ids", "attention_mask", "token_type_ids"), ("logits", labels), outputs
            )
        return self._serialise(("input_ids", "attention_mask"), ("pooled", w.hidden), outputs)

    def _serialise(self, inputs: Sequence[str], output: tuple[str, int], taps: Sequence[str]) -> bytes:
        from onnx import TensorProto, helper

        tapped = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in dict.fromkeys(taps)]
        graph = helper.make_graph(
            self.nodes,
            "bert",
            [helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "T"]) for n in inputs],
            [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, ["B", output[1]]), *tapped],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
