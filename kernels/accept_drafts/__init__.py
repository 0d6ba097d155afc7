"""How many drafted tokens are right."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.accept_drafts.torch_op import accept_drafts_torch
from kernels.dispatch import Backend, choose_backend

__all__ = ["accept_drafts"]


def accept_drafts(token_ids: Tensor, drafts: Tensor, starts: Tensor, *, backend: Backend = "auto") -> Tensor:
    """How many of the drawn tokens each request says: as far as its drafts are what was drawn, and one more.

    Every row is drawn as if the drafts before it were right. So the token after the last right draft was drawn for the
    answer without drafts too, and those after a wrong one were not.

    Args:
        token_ids: [R] int64, what was drawn in each row; a request has 1 + its number of drafts rows, at least one.
        drafts: [R] int64, the draft that follows each row; what stands in the last row of a request is not looked at.
        starts: [B + 1] int64, ascending: request b has the rows from starts[b] to starts[b + 1].
        backend: "auto" takes Triton on a GPU, and torch where there is none and on a CPU. Neither waits for the device.
    Returns: [B] int64, from 1 to a request's number of rows.
    Raises: ValueError when shapes, dtypes or devices disagree; RuntimeError for a backend that is absent.
    """
    tensors = (token_ids, drafts, starts)
    if (
        any(each.dim() != 1 or each.dtype != torch.int64 or each.device != starts.device for each in tensors)
        or not all(each.is_contiguous() for each in tensors)
        or len(token_ids) != len(drafts)
        or len(starts) == 0
    ):
        seen = ", ".join(f"{tuple(each.shape)} {each.dtype} on {each.device}" for each in tensors)
        raise ValueError(
            f"accept_drafts: token_ids, drafts, starts {seen}; contiguous int64 [R], [R] and [B + 1] on one device fit"
        )
    if len(starts) == 1:
        return starts[:0].clone()
    if choose_backend("accept_drafts", backend, starts.device, has_triton=True, has_native=False) == "torch":
        return accept_drafts_torch(token_ids, drafts, starts)
    from kernels.accept_drafts.triton_op import accept_drafts_triton

    return accept_drafts_triton(token_ids, drafts, starts)
