"""The forward pass over a flat batch: the new tokens of many requests one after another, prefill and decode alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine.config import WeightFormat
from engine.generation.adapters.store import AdapterPlan, LayerSlots
from engine.generation.attention.base import Attention, HeadNorms
from engine.generation.decoder.codes import Codes
from engine.generation.decoder.loading import Checkpoint
from engine.generation.decoder.matrix import Matrix, choose_formats
from engine.generation.decoder.spec import DecoderSpec
from engine.generation.decoder.weight_format import WeightPacker
from engine.generation.parallel.group import Ranks
from engine.generation.parallel.split import Part, part_spec
from kernels.decoder_forward import AdapterStep, DecoderForward, LayerWeights, forward_absence
from kernels.lora_add import LoraPlan, LoraSlots, lora_add
from kernels.rms_norm import rms_norm
from kernels.silu_mul import silu_mul


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one decoder layer; q, k and v are one product, gate and up another."""

    attention_norm: Tensor  # [M]
    qkv: Matrix
    head_norms: HeadNorms | None
    output: Matrix
    mlp_norm: Tensor  # [M]
    gate_up: Matrix
    down: Matrix

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """All products of the layer."""
        return self.qkv, self.output, self.gate_up, self.down

    def weights(self, num_rows: int, window: int) -> LayerWeights:
        """In the formats that serve a step of so many rows."""
        query, key = (self.head_norms.query, self.head_norms.key) if self.head_norms else (None, None)
        qkv, output, gate_up, down = (matrix.form(num_rows) for matrix in self.matrices)
        return LayerWeights(self.attention_norm, query, key, self.mlp_norm, qkv, output, gate_up, down, window)


class Decoder:
    """Llama, SmolLM2, Mistral, Qwen2.5 or Qwen3, by its spec. Holds weights only: keys and values are `attention`'s.

    Of several ranks each holds its heads and its columns of the MLP (Megatron-LM, arXiv:1909.08053), and a run of the
    head's rows; embedding and norms are whole. They are not packed then, and a step runs operation by operation.
    """

    def __init__(
        self,
        path: Path,
        spec: DecoderSpec,
        *,
        dtype: torch.dtype,
        device: str,
        weights: WeightFormat = "auto",
        ranks: Ranks | None = None,
    ) -> None:
        """Load the checkpoint in folder `path`, of which `spec` was read; of `ranks`, this one's part.

        Raises: ModelSourceError; ConfigError when `weights` asks for a format that this machine or model has not, or
        the model cannot be split.
        """
        self._ranks = ranks or Ranks()
        whole, is_split = spec, self._ranks.size > 1
        part = Part(self._ranks.rank, self._ranks.size)
        self.spec = part_spec(spec, self._ranks.size)
        self.dtype = dtype
        self.device = torch.device(device)
        packer = WeightPacker("plain" if is_split else weights, dtype, self.device)
        with Checkpoint(path, dtype, device) as stored, Codes(path if packer.takes_codes else None) as codes:
            size = (self.spec.vocab_size, self.spec.hidden_size)
            self._embedding = stored.read("model.embed_tokens.weight", size)
            reader = _Reader(stored, codes, packer, part if is_split else None)
            self._layers = [_read_layer(reader, whole, index) for index in range(whole.num_layers)]
            self._norm = stored.read("model.norm.weight", (self.spec.hidden_size,))
            # A packed head is a second copy of a tied embedding: the lookup needs its rows as they are.
            name = "model.embed_tokens.weight" if self.spec.is_tied else "lm_head.weight"
            rows = part.of(size[0])
            head = self._embedding[rows] if self.spec.is_tied else stored.read(name, size, part if is_split else None)
            self._head = packer.pack_head(head, codes.read_stacked([name], head))
            stored.refuse_unread({"lm_head.weight"} if self.spec.is_tied else ())
        self._limits: frozenset[int] = frozenset()  # rows beyond which some matrix changes its format
        self._native: dict[int, DecoderForward | None] = {}  # by how many of those a step exceeds

    @property
    def product_bytes(self) -> int:
        """Bytes of the weights that a step multiplies by, each in its smallest format."""
        return sum(matrix.least_bytes for matrix in self._matrices)

    @property
    def _matrices(self) -> list[Matrix]:
        return [*(matrix for layer in self._layers for matrix in layer.matrices), self._head]

    def choose_formats(self) -> None:
        """Where weights are there in two formats, time both on this thread, and let the faster one serve."""
        choose_formats(self._matrices[:-1])
        choose_formats([self._head])
        self._native.clear()  # laid out anew by the next step

    def keep_packed(self) -> None:
        """Compute with packed weights alone, whatever is faster."""
        for matrix in self._matrices:
            matrix.keep_packed()
        self._native.clear()

    def forward(
        self, token_ids: Tensor, attention: Attention, plan: Any, rows: Tensor, adapters: AdapterPlan | None = None
    ) -> Tensor:
        """Logits [R, V] (the model's dtype) after the tokens at `rows` of the flat batch.

        `token_ids` [T] int64; `plan` is what `attention` made of the step; `rows` [R] int64 indices into T; `adapters`
        is None where no row uses one. Of several ranks, the first alone has logits; the others' result says nothing.
        """
        step = attention.native_step(plan) if self._ranks.size == 1 else None
        native = None if step is None else self._native_forward(len(token_ids))
        head = self._head.form(len(rows))
        if step is not None and native is not None and head.is_packed:
            changed = None if adapters is None else AdapterStep([each.all for each in adapters.layers], adapters.rows)
            if native.takes(step, changed):
                return native.run(token_ids, step, rows, head, changed)
        return self._forward_by_parts(token_ids, attention, plan, rows, adapters)

    def _forward_by_parts(
        self, token_ids: Tensor, attention: Attention, plan: Any, rows: Tensor, adapters: AdapterPlan | None
    ) -> Tensor:
        residual = functional.embedding(token_ids, self._embedding)  # [T, M]
        eps = self.spec.norm_eps
        x = rms_norm(residual, self._layers[0].attention_norm, eps)
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            slots = _NO_SLOTS if adapters is None else adapters.layers[index]
            lora_rows = None if adapters is None else adapters.rows
            qkv = _linear(x, layer.qkv, slots.qkv, lora_rows)
            attended = attention.run(index, qkv, layer.head_norms, plan)  # [T, H * D]
            x = self._ranks.sum(_linear(attended, layer.output, slots.output, lora_rows))
            x = rms_norm(x, layer.mlp_norm, eps, residual=residual)
            x = silu_mul(_linear(x, layer.gate_up, slots.gate_up, lora_rows))
            x = _linear(x, layer.down, slots.down, lora_rows)
            if index == last:
                # Only these rows are looked at; the others' last norm and logits would be thrown away.
                if len(rows) == 0:
                    return x.new_empty((0, self.spec.vocab_size))
                x, residual = self._ranks.sum(x[rows]), residual[rows]
                logits = self._head.multiply(rms_norm(x, self._norm, eps, residual=residual))
                return self._ranks.join_columns(logits, self.spec.vocab_size)
            x = rms_norm(self._ranks.sum(x), self._layers[index + 1].attention_norm, eps, residual=residual)
        raise AssertionError("a decoder has at least one layer")

    def _native_forward(self, num_rows: int) -> DecoderForward | None:
        if not self._native:
            self._limits = frozenset(matrix.packed_rows for layer in self._layers for matrix in layer.matrices)
        key = sum(num_rows > limit for limit in self._limits)
        if key not in self._native:
            self._native[key] = self._lay_out(num_rows)
        return self._native[key]

    def _lay_out(self, num_rows: int) -> DecoderForward | None:
        spec = self.spec
        layers = [layer.weights(num_rows, window) for layer, window in zip(self._layers, spec.windows, strict=True)]
        heads = (spec.num_heads, spec.num_kv_heads, spec.head_dim)
        weights = [weight for layer in layers for weight in layer.matrices]
        if self.dtype != torch.bfloat16 or forward_absence(weights, *heads) is not None:
            return None
        norms = self._layers[0].head_norms
        return DecoderForward(
            *(self._embedding, self._norm, layers),
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            eps=spec.norm_eps,
            head_eps=0.0 if norms is None else norms.eps,
        )


_NO_SLOTS = LayerSlots()


def _linear(x: Tensor, weight: Matrix, slots: LoraSlots | None, rows: LoraPlan | None) -> Tensor:
    out = weight.multiply(x)
    if slots is not None and rows is not None:
        lora_add(out, x, slots, rows)
    return out


@dataclass(frozen=True, slots=True)
class _Reader:
    """What a layer is read of."""

    weights: Checkpoint
    codes: Codes
    packer: WeightPacker
    part: Part | None

    def matrix(self, names: list[str], out: list[int], features: int, has_bias: bool, cut: int = 0) -> Matrix:
        """Several linears as one, along their outputs. `cut`: which dimension of each is split between ranks."""
        stored = [f"{name}.weight" for name in names]
        part = self.part and replace(self.part, dim=cut)
        weight = self.weights.read_stacked(stored, [(rows, features) for rows in out], part)
        bias = None
        if has_bias:
            # Ranks that split the inputs sum whole outputs, to which one of them adds the bias.
            of_bias = part if cut == 0 else None
            bias = self.weights.read_stacked([f"{name}.bias" for name in names], [(rows,) for rows in out], of_bias)
            bias = None if cut == 1 and part is not None and part.rank > 0 else bias
        return self.packer.pack(weight, bias, self.codes.read_stacked(stored, weight))


def _read_layer(reader: _Reader, spec: DecoderSpec, index: int) -> Layer:
    prefix = f"model.layers.{index}"
    hidden, inner, heads = spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim
    kv_heads = spec.num_kv_heads * spec.head_dim

    def read(block: str, names: list[str], out: list[int], features: int, has_bias: bool, cut: int = 0) -> Matrix:
        return reader.matrix([f"{prefix}.{block}.{name}_proj" for name in names], out, features, has_bias, cut)

    norms = None
    if spec.has_qk_norm:
        query, key = (reader.weights.read(f"{prefix}.self_attn.{name}_norm.weight", (spec.head_dim,)) for name in "qk")
        norms = HeadNorms(query, key, spec.norm_eps)
    return Layer(
        attention_norm=reader.weights.read(f"{prefix}.input_layernorm.weight", (hidden,)),
        qkv=read("self_attn", ["q", "k", "v"], [heads, kv_heads, kv_heads], hidden, spec.has_qkv_bias),
        head_norms=norms,
        output=read("self_attn", ["o"], [hidden], heads, spec.has_output_bias, cut=1),
        mlp_norm=reader.weights.read(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
        gate_up=read("mlp", ["gate", "up"], [inner, inner], hidden, spec.has_mlp_bias),
        down=read("mlp", ["down"], [hidden], inner, spec.has_mlp_bias, cut=1),
    )
