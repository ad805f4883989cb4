"""Write a causal transformer (LLaMA, Qwen2, Qwen3) as an ONNX graph of ONNX Runtime's fused operators.

One product for query, key and value, grouped-query attention with rotation and cache inside, gate and up in one
product, residual + RMS norm in one operator. Products are float, or 8- or 4-bit blocks of 32 weights (`MatMulNBits`)
whose inputs are rounded to int8 on the way. Names and shapes are those of the hub's exports, so one reader serves both,
except that logits come for the last real tokens of each row only: as many as `num_logits_to_keep` asks for.

A single new token takes attention together with a row of zeros that is dropped again: ONNX Runtime adds up in another
order for one row than for several. With 8-bit blocks everything else gives a row the same bits whatever rows stand
beside it, so that tokens checked together get the logits that one-by-one decoding gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qmd.llm.decoder import KEEP

Array = NDArray[Any]
Precision = Literal["fp32", "int8", "q4"]
BLOCK = 32
INT8_COMPUTE = 4
"""MatMulNBits' `accuracy_level` at which inputs are rounded to int8 block by block."""


@dataclass(frozen=True, slots=True)
class CausalShape:
    """The sizes of a network. `interleaved`: rotation pairs neighbours (GGUF's LLaMA), not halves."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int
    positions: int
    rope_base: float
    epsilon: float
    interleaved: bool = False


Weights = Callable[[str], Array | None]
"""Name as in GGUF (`blk.0.attn_q.weight`, (N, K) float32) -> weights, or None where the network has none."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Quantised rows of a (N, K) matrix: packed (N, K / 32, bytes), scales and zero points per block."""

    packed: Array
    scales: Array
    zeros: Array | None
    bits: int


def quantise_rows(matrix: Array, bits: int) -> Blocks:
    """Round (N, K) float32 to `bits` in blocks of 32 along K.

    8 bits: symmetric around 128. 4 bits: scale and zero point per block, the best of a few ranges by squared error.
    """
    n, k = matrix.shape
    blocks = matrix.reshape(n, k // BLOCK, BLOCK)
    if bits == 8:
        scales = np.abs(blocks).max(axis=2) / 127
        steps = np.where(scales == 0, 1, scales)[:, :, None]
        whole = (np.rint(blocks / steps) + 128).clip(0, 255).astype(np.uint8)
        return Blocks(whole, scales.astype(np.float32), None, 8)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    best = np.full(low.shape, np.inf, np.float32)
    whole = np.zeros(blocks.shape, np.uint8)
    scales = np.ones(low.shape, np.float32)
    zeros = np.zeros(low.shape, np.uint8)
    for shrink in (1.0, 0.92, 0.84):
        step = np.maximum((high - low) * shrink / 15, 1e-8)
        zero = np.rint(-low * shrink / step).clip(0, 15)
        rounded = (np.rint(blocks / step[:, :, None]) + zero[:, :, None]).clip(0, 15)
        lost = (((rounded - zero[:, :, None]) * step[:, :, None] - blocks) ** 2).sum(axis=2)
        better = lost < best
        best[better] = lost[better]
        whole[better] = rounded[better]
        scales[better] = step[better]
        zeros[better] = zero[better]
    packed = whole[:, :, 0::2] | (whole[:, :, 1::2] << 4)
    if zeros.shape[1] % 2:
        zeros = np.concatenate([zeros, np.zeros((n, 1), np.uint8)], axis=1)
    return Blocks(packed, scales, zeros[:, 0::2] | (zeros[:, 1::2] << 4), 4)


def write_causal(shape: CausalShape, weights: Weights, *, precision: Precision) -> bytes:
    """The serialised graph.

    input_ids (B, T), attention_mask (B, past + T), past_key_values.N.key / .value (B, kv heads, past, head width),
    num_logits_to_keep R -> logits (B, R, vocabulary) of each row's last R tokens, present.N.key / .value. Token N of a
    row has position N: pad nothing on the left. Buffers that are written in place need room for one token more. The
    head and the embedding share one matrix where the file has one; in q4 it keeps 8 bits.
    Raises KeyError when a weight of the architecture is missing.
    """
    return _Writer(shape, weights, precision).graph()


class _Writer:
    def __init__(self, shape: CausalShape, weights: Weights, precision: Precision) -> None:
        self.shape = shape
        self.weights = weights
        self.precision = precision
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def need(self, name: str) -> Array:
        found = self.weights(name)
        if found is None:
            raise KeyError(name)
        return found

    def constant(self, name: str, value: Array) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(
        self, op: str, inputs: list[str], *outputs: str, contrib: bool = False, **attributes: Any
    ) -> str:
        from onnx import helper

        domain = "com.microsoft" if contrib else ""
        self.nodes.append(
            helper.make_node(op, inputs, list(outputs), domain=domain, name=outputs[0], **attributes)
        )
        return outputs[0]

    def product(
        self, x: str, kernel: Array, output: str, *, bias: Array | None = None, bits: int | None = None
    ) -> str:
        """x (B, T, K) @ kernel (N, K).T (+ bias)."""
        bits = bits or {"fp32": 32, "int8": 8, "q4": 4}[self.precision]
        name = output if bias is None else f"{output}.p"
        if bits == 32:
            self.node("MatMul", [x, self.constant(f"{output}.w", kernel.T)], name)
        else:
            blocks = quantise_rows(kernel, bits)
            inputs = [
                x,
                self.constant(f"{output}.q", blocks.packed),
                self.constant(f"{output}.s", blocks.scales.reshape(-1)),
            ]
            if blocks.zeros is not None:
                inputs.append(self.constant(f"{output}.z", blocks.zeros.reshape(-1)))
            self.node(
                "MatMulNBits", inputs, name, contrib=True, K=kernel.shape[1], N=kernel.shape[0], bits=bits,
                block_size=BLOCK, accuracy_level=INT8_COMPUTE,
            )  # fmt: skip
        if bias is not None:
            self.node("Add", [name, self.constant(f"{output}.b", bias)], output)
        return output

    def head_norm(self, x: str, gain: Array, heads: int, output: str) -> str:
        """RMS norm of each head's values (Qwen3): (B, T, heads * width) -> the same."""
        width = self.shape.head_width
        split = self.node(
            "Reshape", [x, self.constant(f"{output}.split", np.array([0, 0, heads, width]))], f"{output}.4"
        )
        self.node(
            "SimplifiedLayerNormalization",
            [split, self.constant(f"{output}.g", gain)],
            f"{output}.n",
            axis=-1,
            epsilon=self.shape.epsilon,
        )
        joined = self.constant(f"{output}.join", np.array([0, 0, heads * width]))
        return self.node("Reshape", [f"{output}.n", joined], output)

    def attention(self, x: str, layer: int) -> str:
        s, name = self.shape, f"blk.{layer}"
        parts = [self.need(f"{name}.attn_{p}.weight") for p in "qkv"]
        biases = [self.weights(f"{name}.attn_{p}.bias") for p in "qkv"]
        bias = np.concatenate([b for b in biases if b is not None]) if biases[0] is not None else None
        joint = self.product(x, np.concatenate(parts), f"{layer}.qkv", bias=bias)
        joint = self.node("Pad", [joint, "pads"], f"{layer}.paired")
        q_gain, k_gain = (
            self.weights(f"{name}.attn_q_norm.weight"),
            self.weights(f"{name}.attn_k_norm.weight"),
        )
        inputs = [joint, "", ""]
        if q_gain is not None and k_gain is not None:
            sizes = np.array([s.heads * s.head_width, s.kv_heads * s.head_width, s.kv_heads * s.head_width])
            self.node(
                "Split",
                [joint, self.constant(f"{layer}.sizes", sizes)],
                *(f"{layer}.{p}" for p in "qkv"),
                axis=-1,
            )
            inputs = [
                self.head_norm(f"{layer}.q", q_gain, s.heads, f"{layer}.qn"),
                self.head_norm(f"{layer}.k", k_gain, s.kv_heads, f"{layer}.kn"),
                f"{layer}.v",
            ]
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        self.node(
            "GroupQueryAttention", [*inputs, *past, "paired last", "paired total", "cos", "sin"], f"{layer}.both",
            *present, contrib=True, num_heads=s.heads, kv_num_heads=s.kv_heads, do_rotary=1,
            rotary_interleaved=int(s.interleaved),
        )  # fmt: skip
        self.node("Slice", [f"{layer}.both", "nothing", "given", "axis"], f"{layer}.mixed")
        return self.product(f"{layer}.mixed", self.need(f"{name}.attn_output.weight"), f"{layer}.out")

    def feed_forward(self, x: str, layer: int) -> str:
        name = f"blk.{layer}"
        gate, up = self.need(f"{name}.ffn_gate.weight"), self.need(f"{name}.ffn_up.weight")
        joint = self.product(x, np.concatenate([gate, up]), f"{layer}.wide")
        self.node("Split", [joint], f"{layer}.gate", f"{layer}.up", axis=-1, num_outputs=2)
        self.node("QuickGelu", [f"{layer}.gate"], f"{layer}.silu", contrib=True, alpha=1.0)
        self.node("Mul", [f"{layer}.silu", f"{layer}.up"], f"{layer}.inner")
        return self.product(f"{layer}.inner", self.need(f"{name}.ffn_down.weight"), f"{layer}.down")

    def embed(self, table: Array) -> str:
        if self.precision == "fp32":
            return self.node("Gather", [self.constant("words", table), "input_ids"], "x")
        blocks = quantise_rows(table, 8)
        quantised = self.constant("words.q", blocks.packed.reshape(table.shape))
        inputs = [quantised, "input_ids", self.constant("words.s", blocks.scales)]
        return self.node(
            "GatherBlockQuantized", inputs, "x", contrib=True, bits=8, block_size=BLOCK, quantize_axis=1, gather_axis=0
        )  # fmt: skip

    def graph(self) -> bytes:
        from onnx import TensorProto

        s = self.shape
        angles = np.arange(s.positions)[:, None] / s.rope_base ** (
            np.arange(0, s.head_width, 2)[None, :] / s.head_width
        )
        self.constant("cos", np.cos(angles).astype(np.float32))
        self.constant("sin", np.sin(angles).astype(np.float32))
        self.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
        self.node("ReduceSum", ["mask", self.constant("axis", np.array([1]))], "lengths", keepdims=0)
        self.node("Sub", ["lengths", self.constant("one", np.array(1, np.int32))], "last")
        self.node("Shape", ["attention_mask"], "size", start=1, end=2)
        self.node("Squeeze", ["size"], "width")
        self.node("Cast", ["width"], "total", to=TensorProto.INT32)
        self.node("Shape", ["input_ids"], "given", start=1, end=2)
        self.pair_single()
        table = self.need("token_embd.weight")
        x = self.embed(table)
        norm = self.need("blk.0.attn_norm.weight")
        y = self.node(
            "SimplifiedLayerNormalization", [x, self.constant("0.norm.g", norm)], "0.norm", axis=-1, epsilon=s.epsilon
        )  # fmt: skip
        for layer in range(s.layers):
            out = self.attention(y, layer)
            y, x = self.skip(x, out, f"blk.{layer}.ffn_norm.weight", f"{layer}.mid")
            down = self.feed_forward(y, layer)
            after = "output_norm.weight" if layer + 1 == s.layers else f"blk.{layer + 1}.attn_norm.weight"
            y, x = self.skip(x, down, after, f"{layer}.end")
        # the last real token of each row: lengths - past - 1, counted from the start of this call's tokens
        self.node("Sub", ["size", "given"], "past")
        self.node("Cast", ["last"], "last64", to=TensorProto.INT64)
        self.node("Sub", ["last64", "past"], "at")
        self.node("Unsqueeze", ["at", "axis"], "at2")
        # and the R - 1 tokens before it: (B, 1) + (1 - R, ..., 0) -> (B, R, 1)
        unit = self.constant("unit", np.array(1, np.int64))
        self.node("Sub", [unit, KEEP], "from")
        self.node("Range", ["from", unit, unit], "back")
        self.node("Add", ["at2", "back"], "rows")
        self.node("Unsqueeze", ["rows", self.constant("inner axis", np.array([2]))], "rows3")
        self.node("GatherND", [y, "rows3"], "final", batch_dims=1)
        head = self.weights("output.weight")
        self.product(
            "final", table if head is None else head, "logits", bits=32 if self.precision == "fp32" else 8
        )
        return self.finish()

    def pair_single(self) -> None:
        """`pads`: (0, 0, 0, 0, one row if this call brings one token in all, 0); and the lengths with that row."""
        from onnx import TensorProto

        nothing = self.constant("nothing", np.array([0]))
        self.node("Size", ["input_ids"], "count")
        self.node("Sub", [self.constant("two", np.array([2])), "count"], "lack")
        self.node("Max", ["lack", nothing], "spare")
        self.node("Concat", [self.constant("front", np.zeros(4, np.int64)), "spare", nothing], "pads", axis=0)
        self.node("Cast", ["spare"], "spare32", to=TensorProto.INT32)
        self.node("Add", ["last", "spare32"], "paired last")
        self.node("Squeeze", ["spare32"], "spare0")
        self.node("Add", ["total", "spare0"], "paired total")

    def skip(self, x: str, added: str, gain: str, output: str) -> tuple[str, str]:
        """(RMS norm of x + added, x + added)."""
        inputs = [x, added, self.constant(f"{output}.g", self.need(gain))]
        self.node(
            "SkipSimplifiedLayerNormalization", inputs, output, "", "", f"{output}.sum", contrib=True,
            epsilon=self.shape.epsilon,
        )  # fmt: skip
        return output, f"{output}.sum"

    def finish(self) -> bytes:
        from onnx import TensorProto, helper

        s = self.shape
        names = [f"{layer}.{part}" for layer in range(s.layers) for part in ("key", "value")]
        cache: list[str | int | None] = ["B", s.kv_heads, "P", s.head_width]
        grown: list[str | int | None] = ["B", s.kv_heads, "S", s.head_width]
        inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "T"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "S"]),
            *(helper.make_tensor_value_info(f"past_key_values.{n}", TensorProto.FLOAT, cache) for n in names),
            helper.make_tensor_value_info(KEEP, TensorProto.INT64, []),
        ]
        outputs = [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "R", s.vocabulary]),
            *(helper.make_tensor_value_info(f"present.{n}", TensorProto.FLOAT, grown) for n in names),
        ]
        graph = helper.make_graph(self.nodes, "causal", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        helper.set_model_props(model, {"qmd.cache": "one buffer"})
        return bytes(model.SerializeToString())
