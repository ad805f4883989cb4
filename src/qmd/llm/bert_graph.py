"""Rewrite a BERT encoder as a fused graph, in float or with int8 products.

Reads the weights of any ONNX export of BERT or XLM-RoBERTa by their names, and writes the same network with ONNX Runtime's
fused operators: one product for query, key and value, attention, bias + GELU, residual + layer norm, and pooling at
the end. Quantised: weights int8 per output channel, activations uint8 per tensor, at run time
(`DynamicQuantizeMatMul`). The attention output product keeps unsigned weights where asked, because processors without
int8 dot products saturate on signed ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qmd.types import Pooling

Array = NDArray[Any]
Products = Literal["float", "signed", "mixed", "unsigned"]
_LAYER = "encoder.layer.0.attention.self.query.bias"


@dataclass(frozen=True, slots=True)
class BertWeights:
    """`tensors` by their transformers name; products are stored (K, N) under `.kernel`."""

    tensors: dict[str, Array]
    layers: int
    heads: int
    hidden: int
    first_position: int
    epsilon: float


def read_bert(path: Path, *, heads: int | None = None, first_position: int = 0) -> BertWeights | None:
    """The weights of a BERT-shaped graph, or None when the graph is another network.

    Weight-only int8 (a Cast and a Mul before each product) is widened to float. Without `heads`, 64 values a head
    are assumed, or 32 below a width of 512; whoever uses the result compares its vectors with the original's.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    values = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    maker = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].astype(np.float32)
        elif node.op_type == "Mul" and node.input[0] in values and node.input[1] in values:
            values[node.output[0]] = values[node.input[0]] * values[node.input[1]]
    anchor = next((name for name in values if name.endswith(_LAYER)), None)
    if anchor is None or any(node.op_type == "Tanh" for node in model.graph.node):
        return None
    prefix = anchor[: -len(_LAYER)]
    tensors = {name[len(prefix) :]: a for name, a in values.items() if name.startswith(prefix)}
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


def write_bert(weights: BertWeights, *, products: Products, pooling: Pooling) -> bytes:
    """A serialised graph: input_ids, attention_mask (B, T) int64, right-padded -> `pooled` (B, d) float32.

    Token types are taken as all zero. Raises KeyError when a weight of the architecture is missing.
    """
    return _Writer(weights, products).encoder(pooling)


class _Writer:
    def __init__(self, weights: BertWeights, products: Products) -> None:
        self.weights = weights
        self.products = products
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
        """x @ kernel (+ bias). `exact` products use unsigned weights in mixed mode."""
        if self.products == "float":
            product = self.node(
                "MatMul", [x, self.constant(f"{output}.w", kernel)], output if bias is None else f"{output}.p"
            )
            if bias is None:
                return product
            return self.node("Add", [product, self.constant(f"{output}.b", bias)], output)
        unsigned = self.products == "unsigned" or (self.products == "mixed" and exact)
        scale = np.maximum(np.abs(kernel).max(axis=0) / 127, 1e-12).astype(np.float32)
        rounded = np.clip(np.rint(kernel / scale), -127, 127)
        whole = (rounded + 128).astype(np.uint8) if unsigned else rounded.astype(np.int8)
        inputs = [x, self.constant(f"{output}.q", whole), self.constant(f"{output}.s", scale)]
        inputs.append(self.constant(f"{output}.z", np.full(scale.shape, 128, np.uint8)) if unsigned else "")
        inputs.append(self.constant(f"{output}.b", bias) if bias is not None else "")
        while not inputs[-1]:
            inputs.pop()
        return self.node("DynamicQuantizeMatMul", inputs, output, contrib=True)

    def norm(self, x: str, residual: str, name: str, output: str) -> str:
        """LayerNorm(x + bias of the dense before it + residual)."""
        gain, shift = self.tensor(f"{name}.LayerNorm.weight"), self.tensor(f"{name}.LayerNorm.bias")
        inputs = [x, residual, gain, shift, self.tensor(f"{name}.dense.bias")]
        return self.node("SkipLayerNormalization", inputs, output, contrib=True, epsilon=self.weights.epsilon)

    def layer(self, x: str, number: int) -> str:
        t, name = self.weights.tensors, f"encoder.layer.{number}"
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        kernel = np.concatenate([t[f"{part}.kernel"] for part in parts], axis=1)
        bias = np.concatenate([t[f"{part}.bias"] for part in parts])
        joint = self.product(x, kernel, f"{number}.qkv", bias=bias)
        from onnx import helper

        names = [f"{number}.{part}" for part in "qkv"]
        self.nodes.append(
            helper.make_node("Split", [joint, "thirds"], names, name=f"{number}.split", axis=-1)
        )
        mixed = self.node(
            "MultiHeadAttention",
            [*names, "", "lengths"],
            f"{number}.mixed",
            contrib=True,
            num_heads=self.weights.heads,
        )
        out = self.product(mixed, t[f"{name}.attention.output.dense.kernel"], f"{number}.out", exact=True)
        y = self.norm(out, x, f"{name}.attention.output", f"{number}.y")
        up = self.product(y, t[f"{name}.intermediate.dense.kernel"], f"{number}.up")
        gelu = self.node(
            "BiasGelu", [up, self.tensor(f"{name}.intermediate.dense.bias")], f"{number}.gelu", contrib=True
        )
        down = self.product(gelu, t[f"{name}.output.dense.kernel"], f"{number}.down")
        return self.norm(down, y, f"{name}.output", f"{number}.z")

    def encoder(self, pooling: Pooling) -> bytes:
        from onnx import TensorProto, helper

        w, t = self.weights, self.weights.tensors
        positions = t["embeddings.position_embeddings.weight"][w.first_position :]
        types = t["embeddings.token_type_embeddings.weight"][0]
        self.node("Cast", ["input_ids"], "ids", to=TensorProto.INT32)
        self.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
        self.node("ReduceSum", ["mask", self.constant("axis", np.array([1]))], "lengths", keepdims=0)
        self.constant("thirds", np.array([w.hidden] * 3))
        inputs = [
            "ids",
            "",
            self.tensor("embeddings.word_embeddings.weight"),
            self.constant("positions", positions + types),
        ]
        inputs += ["", self.tensor("embeddings.LayerNorm.weight"), self.tensor("embeddings.LayerNorm.bias")]
        self.nodes.append(
            helper.make_node(
                "EmbedLayerNormalization", inputs, ["x", "unused"], domain="com.microsoft", epsilon=w.epsilon
            )
        )
        x = "x"
        for number in range(w.layers):
            x = self.layer(x, number)
        if pooling == "cls":
            self.node("Gather", [x, self.constant("first", np.array(0))], "pooled", axis=1)
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
        shape = ["B", "T"]
        graph = helper.make_graph(
            self.nodes,
            "bert",
            [
                helper.make_tensor_value_info(n, TensorProto.INT64, shape)
                for n in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["B", w.hidden])],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
