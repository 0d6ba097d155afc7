"""Compile the kernels that choose tokens for an H100, which needs none. Run in a process that does not interpret them.

The interpreter runs Python as it is; the compiler also wants each variable to keep its type in branches and loops.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.accept_drafts.triton_op import _accept
from kernels.penalise.triton_op import _penalise
from kernels.sampling.triton_op import _best_of_parts, _draws_of_parts, _settle

LOGITS = ("*bf16", "*fp32", "*fp16")
KEY_BITS = {"*bf16": 16, "*fp32": 32, "*fp16": 19}
CONSTANTS = {"BLOCK": 128, "PARTS": 4, "RANGE": 27.0}
TYPES = {
    **dict.fromkeys(("peaks", "scores", "temperature", "top_p", "min_p", "strengths"), "*fp32"),
    **dict.fromkeys(("ids", "peak_ids", "score_ids", "seen"), "*i32"),
    **dict.fromkeys(("seed", "position", "top_k", "chosen"), "*i64"),
    **dict.fromkeys(("num_accepted", "token_ids", "drafts", "starts"), "*i64"),
}


def compile_for_gpu(kernel: Any, logits: str) -> None:
    """Raises: whatever the compiler says."""
    constants = {**CONSTANTS, "KEY_BITS": KEY_BITS[logits]}
    known = {**TYPES, **dict.fromkeys(constants, "constexpr"), "logits": logits}
    signature = {name: known.get(name, "i32") for name in kernel.arg_names}
    used = {name: value for name, value in constants.items() if name in signature}
    triton.compile(ASTSource(kernel, signature, used), target=GPUTarget("cuda", 90, 32))


if __name__ == "__main__":
    for kernel in (_best_of_parts, _draws_of_parts, _settle, _penalise):
        for logits in LOGITS:
            compile_for_gpu(kernel, logits)
    compile_for_gpu(_accept, LOGITS[0])
    print("compiled")
