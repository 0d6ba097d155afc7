"""Operations on a GPU, also in bfloat16, in which Triton's interpreter does not compute."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from loadtest.gpu import operations
from loadtest.gpu.record import Budget, Record

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.mark.parametrize("dtype", operations.DTYPES)
@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_operation_on_the_gpu_stays_within_the_earned_tolerance(name, dtype):
    error, allowed = operations.errors(operations.OPERATIONS[name], "cuda", dtype)
    assert error <= allowed


def test_search_and_sampling_on_the_gpu_give_what_their_definitions_give():
    record = Record("gpu", None, Budget(300), Console(quiet=True))
    operations.check_exact(record, "cuda")
    assert not record.failed
