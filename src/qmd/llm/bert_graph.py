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
Head = Literal["mean", "cls", "last_token", "classify", "tokens"]
"""What stands at the end: a pooling, the pooler and classifier of a cross-encoder, or one that compares tokens."""
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
    whole_words: bool = False,
) -> bytes:
    """A serialised graph: input_ids, attention_mask (B, T) int64, right-padded -> `pooled` (B, d) float32.

    Token types are taken as all zero; with `classify` they are a third input, token_type_ids, and the output is
    `logits` (B, labels); with `tokens` they say only which tokens are the text's, and the logits are (B, 1).
    whole_words: the table of word vectors, half of a small model, is int8 with a scale for each row, and float32 only
    for the words at hand. Where only the first token is read in the end, the last layer computes only that one.
    Raises KeyError when a weight of the architecture is missing.
    """
    if products != "float" and ranges is None:
        raise ValueError("int8 products need the ranges of their inputs; call measure_ranges first.")
    return _Writer(weights, products, ranges or {}).encoder(pooling, whole_words=whole_words)


def measure_ranges(
    weights: BertWeights,
    rows: Sequence[Sequence[int]],
    *,
    head: Head = "mean",
    types: Sequence[Sequence[int]] = (),
) -> dict[str, InputRange]:
    """Run the float graph over token rows and note the range of every channel that enters a product.

    types: the token types of each row, which `classify` and `tokens` read.
    """
    from qmd.llm.session import open_session

    writer = _Writer(weights, "float", {})
    tapped = writer.product_inputs
    session = open_session(writer.encoder(head, outputs=tapped))
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
        self, x: str, kernel: Array, output: str, *, bias: Array, exact: bool = False, evened: bool = False
    ) -> str:
        """x (B, T, K) @ kernel (K, N) + bias. `exact` products use unsigned weights in mixed mode; an `evened` input
        was divided by its `smoothing` where it was made."""
        return self.joint(x, [(output, kernel, bias)], exact=exact, evened=evened)[0]

    def joint(
        self, x: str, parts: Sequence[tuple[str, Array, Array]], *, exact: bool = False, evened: bool = False
    ) -> list[str]:
        """Several products (output, kernel, bias) of one input, which is quantised once."""
        self.product_inputs.append(x)
        if self.products == "float":
            return [self.float_product(x, *part) for part in parts]
        smooth = self.smoothing(x, np.concatenate([kernel for _, kernel, _ in parts], axis=1))
        whole = self.quantise(x, smooth, parts[0][0], evened=evened)
        return [
            self.int8_product(whole, output, kernel * smooth[:, None], bias, exact=exact)
            for output, kernel, bias in parts
        ]

    def float_product(self, x: str, output: str, kernel: Array, bias: Array) -> str:
        out = self.node("MatMul", [x, self.constant(f"{output}.w", kernel)], f"{output}.p")
        return self.node("Add", [out, self.constant(f"{output}.b", bias)], output)

    def smoothing(self, x: str, kernel: Array) -> Array:
        """What each channel of x is divided by, and each row of the kernel multiplied with, (K,)."""
        reach = np.maximum(np.maximum(np.abs(self.ranges[x].low), np.abs(self.ranges[x].high)), 1e-3)
        smooth = reach**SMOOTHING / np.maximum(np.abs(kernel).max(axis=1), 1e-5) ** (1 - SMOOTHING)
        found: Array = (smooth / np.median(smooth)).astype(np.float32)
        return found

    def quantise(self, x: str, smooth: Array, name: str, *, evened: bool) -> tuple[str, str, str]:
        """Names of x / smooth in uint8, of its scale and of its zero."""
        low, high = self.ranges[x].low / smooth, self.ranges[x].high / smooth
        least = min(0.0, float(low.min())) * RANGE_MARGIN
        step = (float(high.max()) * RANGE_MARGIN - least) / 255
        scale = self.constant(f"{name}.sx", np.array(step, np.float32))
        zero = self.constant(f"{name}.zx", np.array(np.clip(round(-least / step), 0, 255), np.uint8))
        if not evened:
            x = self.node("Mul", [x, self.constant(f"{name}.even", 1 / smooth)], f"{name}.x")
        return self.node("QuantizeLinear", [x, scale, zero], f"{name}.x8"), scale, zero

    def int8_product(
        self, x: tuple[str, str, str], output: str, kernel: Array, bias: Array, *, exact: bool
    ) -> str:
        whole_x, scale_x, zero_x = x
        scale = np.maximum(np.abs(kernel).max(axis=0) / 127, 1e-12).astype(np.float32)
        rounded = np.clip(np.rint(kernel / scale), -127, 127)
        unsigned = self.products == "mixed" and exact
        whole = (rounded + 128).astype(np.uint8) if unsigned else rounded.astype(np.int8)
        zeros = np.full(scale.shape, 128 if unsigned else 0, whole.dtype)
        inputs = [whole_x, self.constant(f"{output}.q", whole), scale_x, self.constant(f"{output}.s", scale)]
        inputs += [zero_x, self.constant(f"{output}.z", zeros), self.constant(f"{output}.b", bias)]
        return self.node("MatMulIntegerToFloat", inputs, output, contrib=True)

    def norm(self, x: str, residual: str, name: str, output: str) -> str:
        """LayerNorm(x + residual). Two operators: ONNX Runtime's joint one takes twice their time on a processor."""
        parts = [self.tensor(f"{name}.LayerNorm.{part}") for part in ("weight", "bias")]
        total = self.node("Add", [x, residual], f"{output}.sum")
        return self.node("LayerNormalization", [total, *parts], output, axis=-1, epsilon=self.weights.epsilon)

    def first_only(self, x: str, number: int) -> tuple[str, str]:
        """A last layer's attention for the first token alone: (its mixture (B, 1, d), its input (B, 1, d))."""
        self.node("Gather", [x, self.constant("zeroth", np.array([0]))], "first.x", axis=1)
        q = self.joint("first.x", self.attention_parts(number, "query"))
        kv = self.joint(x, self.attention_parts(number, "key", "value"))
        return self.attend([*q, *kv], f"{number}.mixed"), "first.x"

    def all_tokens(self, x: str, number: int) -> tuple[str, str]:
        qkv = self.joint(x, self.attention_parts(number, "query", "key", "value"))
        return self.attend(qkv, f"{number}.mixed"), x

    def attention_parts(self, number: int, *parts: str) -> list[tuple[str, Array, Array]]:
        """(output, kernel, bias) of the named parts. Values come evened out for the product after attention, which
        mixes them and scales none."""
        t, name = self.weights.tensors, f"encoder.layer.{number}.attention"
        found = []
        for part in parts:
            kernel, bias = t[f"{name}.self.{part}.kernel"], t[f"{name}.self.{part}.bias"]
            if part == "value" and self.products != "float":
                smooth = self.smoothing(f"{number}.mixed", t[f"{name}.output.dense.kernel"])
                kernel, bias = kernel / smooth, bias / smooth
            found.append((f"{number}.{part}", kernel, bias))
        return found

    def attend(self, parts: list[str], output: str) -> str:
        """softmax(q k') v for each head, (B, T, d). Rows of one length need no mask, and without one ONNX Runtime has a
        faster kernel: the batch decides."""
        from onnx import TensorProto, helper

        def branch(name: str, inputs: list[str]) -> Any:
            mixed = f"{output}.{name}"
            node = helper.make_node(
                "MultiHeadAttention", inputs, [mixed], domain="com.microsoft", num_heads=self.weights.heads
            )
            return helper.make_graph(
                [node], mixed, [], [helper.make_tensor_value_info(mixed, TensorProto.FLOAT, None)]
            )

        return self.node(
            "If",
            ["ragged"],
            output,
            then_branch=branch("masked", [*parts, "", "lengths"]),
            else_branch=branch("whole", parts),
        )

    def layer(self, x: str, number: int, *, first_only: bool = False) -> str:
        name = f"encoder.layer.{number}"
        mixed, x = self.first_only(x, number) if first_only else self.all_tokens(x, number)
        out = self.dense(mixed, f"{name}.attention.output.dense", f"{number}.out", exact=True, evened=True)
        y = self.norm(out, x, f"{name}.attention.output", f"{number}.y")
        up = self.dense(y, f"{name}.intermediate.dense", f"{number}.up")
        gelu = self.node("Gelu", [up], f"{number}.gelu", contrib=True)
        down = self.dense(gelu, f"{name}.output.dense", f"{number}.down")
        return self.norm(down, y, f"{name}.output", f"{number}.z")

    def dense(self, x: str, name: str, output: str, **how: bool) -> str:
        t = self.weights.tensors
        return self.product(x, t[f"{name}.kernel"], output, bias=t[f"{name}.bias"], **how)

    def _count_tokens(self) -> None:
        from onnx import TensorProto

        self.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
        self.node("ReduceSum", ["mask", self.constant("axis", np.array([1]))], "lengths", keepdims=0)
        self.node("ReduceMin", ["mask"], "least", keepdims=0)
        self.node("Equal", ["least", self.constant("none", np.array(0, np.int32))], "ragged")

    def embeddings(self, *, typed: bool, whole_words: bool) -> str:
        """LayerNorm(word + position + token type), (B, T, d)."""
        from onnx import TensorProto, helper

        w, t = self.weights, self.weights.tensors
        words = t["embeddings.word_embeddings.weight"]
        positions = t["embeddings.position_embeddings.weight"][w.first_position :]
        kinds = t["embeddings.token_type_embeddings.weight"]
        norm = [self.tensor(f"embeddings.LayerNorm.{part}") for part in ("weight", "bias")]
        if not typed:
            positions = positions + kinds[0]
        if not whole_words:
            self.node("Cast", ["input_ids"], "ids", to=TensorProto.INT32)
            inputs = ["ids", "", self.constant("words", words), self.constant("positions", positions), ""]
            if typed:
                inputs[1] = self.node("Cast", ["token_type_ids"], "types", to=TensorProto.INT32)
                inputs[4] = self.constant("kinds", kinds)
            self.nodes.append(
                helper.make_node(
                    "EmbedLayerNormalization", [*inputs, *norm], ["x", "unused"], domain="com.microsoft",
                    epsilon=w.epsilon,
                )
            )  # fmt: skip
            return "x"
        scale = np.maximum(np.abs(words).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
        self.node(
            "Gather", [self.constant("words", np.rint(words / scale).astype(np.int8)), "input_ids"], "word8"
        )
        self.node("Cast", ["word8"], "wide", to=TensorProto.FLOAT)
        self.node("Gather", [self.constant("scales", scale), "input_ids"], "scale")
        x = self.node("Mul", ["wide", "scale"], "word")
        zero = self.constant("zero", np.array([0]))
        self.node("Shape", ["input_ids"], "length", start=1, end=2)
        self.node("Slice", [self.constant("positions", positions), zero, "length", zero], "position")
        x = self.node("Add", [x, "position"], "placed")
        if typed:
            x = self.node(
                "Add",
                [x, self.node("Gather", [self.constant("kinds", kinds), "token_type_ids"], "kind")],
                "typed",
            )
        return self.node("LayerNormalization", [x, *norm], "x", axis=-1, epsilon=w.epsilon)

    def encoder(self, pooling: Head, *, whole_words: bool = False, outputs: Sequence[str] = ()) -> bytes:
        from onnx import TensorProto

        w, t = self.weights, self.weights.tensors
        self._count_tokens()
        x = self.embeddings(typed=pooling == "classify", whole_words=whole_words)
        first_only = pooling in ("cls", "classify")
        for number in range(w.layers):
            x = self.layer(x, number, first_only=first_only and number + 1 == w.layers)
        if first_only:
            self.node("Squeeze", [x, "axis"], "pooled")
        if pooling == "classify":
            weight, bias = (self.tensor(name) for name in _POOLER)
            self.node("Tanh", [self.node("Gemm", ["pooled", weight, bias], "dense", transB=1)], "tanh")
            weight, bias = (self.tensor(name) for name in _CLASSIFIER)
            self.node("Gemm", ["tanh", weight, bias], "logits", transB=1)
            inputs, labels = ("input_ids", "attention_mask", "token_type_ids"), len(t["classifier.bias"])
            return self._serialise(inputs, ("logits", labels), outputs)
        if pooling == "tokens":
            self.compare_tokens(x)
            return self._serialise(("input_ids", "attention_mask", "token_type_ids"), ("logits", 1), outputs)
        if pooling == "mean":
            # (B, 1, T) @ (B, T, d) / T' : the sum over real tokens is one product
            self.node("Cast", ["attention_mask"], "weights", to=TensorProto.FLOAT)
            self.node("Unsqueeze", ["weights", "axis"], "row")
            self.node("MatMul", ["row", x], "sums")
            self.node("Squeeze", ["sums", "axis"], "sum")
            self.node("ReduceSum", ["weights", "axis"], "total", keepdims=1)
            self.node("Div", ["sum", "total"], "pooled")
        elif pooling != "cls":
            raise ValueError(f"pooling {pooling!r} is not an encoder's")
        return self._serialise(("input_ids", "attention_mask"), ("pooled", w.hidden), outputs)

    def compare_tokens(self, x: str) -> None:
        """`qmd.vembed.rerank.tokens.TokenHead`: x (B, T, d) -> logits (B, 1)."""
        from onnx import TensorProto

        t = self.weights.tensors
        axes = {n: self.constant(f"axis{n}", np.array([n])) for n in (-1, 1)}
        one = self.constant("one", np.array(1, np.float32))

        def unit(name: str, output: str) -> str:
            length = self.node("ReduceL2", [name], f"{output}.length", axes=[-1], keepdims=1)
            least = self.constant(f"{output}.least", np.array(1e-12, np.float32))
            return self.node("Div", [name, self.node("Max", [length, least], f"{output}.safe")], output)

        def line(name: str, output: str) -> str:
            kernel = self.constant(f"{output}.w", t[f"tokens.{name}.weight"].T)
            product = self.node("MatMul", [x, kernel], f"{output}.p")
            return self.node("Add", [product, self.constant(f"{output}.b", t[f"tokens.{name}.bias"])], output)

        def far(side: str, by: float, output: str) -> str:
            away = self.node("Sub", [side, one], f"{output}.away")
            return self.node("Mul", [away, self.constant(f"{output}.by", np.array(by, np.float32))], output)

        self.node("Mul", ["attention_mask", "token_type_ids"], "text_ids")
        self.node("Sub", ["attention_mask", "text_ids"], "query_ids")
        sides = [self.node("Cast", [f"{side}_ids"], side, to=TensorProto.FLOAT) for side in ("query", "text")]
        rows = [self.node("Unsqueeze", [side, axes[1]], f"{side}_row") for side in sides]
        unit(x, "unit")
        self.node("Transpose", ["unit"], "turned", perm=[0, 2, 1])
        self.node("MatMul", ["unit", "turned"], "cosines")
        self.node("Add", ["cosines", far(rows[1], 4.0, "no_text")], "of_text")
        self.node("ReduceMax", ["of_text"], "best", axes=[2], keepdims=0)
        self.node("Squeeze", [line("weigh", "weighed"), axes[-1]], "weights_all")
        self.node("Add", ["weights_all", far("query", 1e4, "no_query")], "weights_query")
        self.node("Softmax", ["weights_query"], "weight", axis=1)
        self.node("Mul", ["best", "weight"], "best_weighed")
        self.node("ReduceSum", ["best_weighed", axes[1]], "near", keepdims=1)
        means = [unit(self.node("MatMul", [row, x], f"{row}.sum"), f"{row}.mean") for row in rows]
        self.node("Mul", means, "products")
        self.node("ReduceSum", ["products", axes[-1]], "whole_row", keepdims=0)
        self.node("Concat", ["near", "whole_row"], "both", axis=1)
        self.node("MatMul", ["both", self.constant("shares", t["tokens.shares"][:, None])], "compared")
        at = self.constant("zeroth", np.array([0]))
        self.node("Gather", [line("first", "read"), at], "read_first", axis=1)
        self.node("Squeeze", ["read_first", axes[1]], "first")
        self.node("Add", ["compared", "first"], "logits")

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
