"""Sampling where little is left to draw from: masked rows, rows of no numbers, ties, no rows, what does not fit."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import NEEDS_TRITON, WITH_TRITON
from sampling_checks import NO_TOKEN, greedy, keys, parameters
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.accept_drafts import accept_drafts
from kernels.dispatch import Backend
from kernels.penalise import penalise
from kernels.sampling import sample
from kernels.sampling.reference import sample_reference


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_temperature_zero_takes_the_lowest_id_of_the_best_whatever_the_seed(backend: Backend, dtype: torch.dtype):
    logits = torch.zeros(4, 9)
    logits[:, [4, 7]] = 1.0
    drawn = sample(logits.to(dtype), *parameters((0.0, 1, 0.5, 0.9), 4), *keys(4), backend=backend)
    assert drawn.tolist() == [4] * 4


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("settings_", [(2.0, 0, 1.0, 0.0), (2.0, 30, 1.0, 0.0), (2.0, 30, 0.999, 0.0)])
def test_tokens_at_minus_infinity_are_never_drawn(backend: Backend, settings_):
    count = 40
    logits = torch.full((count, 77), NO_TOKEN)
    logits[:, [3, 30]] = 0.0
    drawn = sample(logits, *parameters(settings_, count), *keys(count), backend=backend)
    assert set(drawn.tolist()) == {3, 30}


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_numbers_beside_the_rows_are_not_read(backend: Backend, dtype: torch.dtype):
    held = torch.full((5, 90), float("nan"), dtype=dtype)
    held[:, :70] = torch.randn(5, 70, generator=torch.Generator().manual_seed(6)).to(dtype)
    columns = (*parameters((1.0, 20, 0.9, 0.01), 5), *keys(5))
    drawn = sample(held[:, :70], *columns, backend=backend)
    assert drawn.tolist() == sample_reference(held[:, :70], *columns).tolist()


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_no_rows_draw_nothing(backend: Backend):
    columns = (*parameters((1.0, 0, 1.0, 0.0), 0), *keys(0))
    assert sample(torch.zeros(0, 9), *columns, backend=backend).shape == (0,)


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 400, 49152])
def test_best_token_is_the_first_of_equals_wherever_it_lies(backend: Backend, dtype: torch.dtype, width: int):
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(6, width, generator=generator).sub(3).to(dtype)
    logits[1] = -0.0  # equal to 0
    logits[1, width // 2] = 0.0
    logits[2, -1] = 1e4
    logits[3, width // 3 :] = 7.0
    logits[4] = NO_TOKEN
    logits[4, width // 2] = -5.0
    expected = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert sample(logits, *greedy(6), backend=backend).tolist() == expected


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", ["nan", "-nan", "inf", "all -inf"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_row_without_a_finite_maximum_is_refused_or_has_no_id(
    backend: Backend, dtype: torch.dtype, bad: str, temperature: float
):
    columns = (*parameters((temperature, 0, 0.9, 0.0), 3), *keys(3))
    for place in (0, 9, 32):
        logits = torch.zeros(3, 33, dtype=dtype)
        if bad == "all -inf":
            logits[1] = NO_TOKEN
        else:
            logits[1, place] = float(bad)
        if bad == "-nan":  # conversions lose the sign
            bits = logits.view(torch.int16 if dtype == torch.bfloat16 else torch.int32)
            bits[1, place] |= -1 << (8 * dtype.itemsize - 1)
            assert logits[1, place].signbit() and logits[1, place].isnan()
        with pytest.raises(ValueError, match="row 1 of the logits has no finite maximum"):
            sample(logits, *columns, backend=backend)
        ids = sample(logits, *columns, is_checked=False, backend=backend).tolist()
        assert ids[1] == -1 and ids[0] >= 0 and ids[2] >= 0


class Asked(TorchDispatchMode):
    """Fails where a tensor's values are asked for, as waiting for a device does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


@NEEDS_TRITON
def test_operations_of_a_recorded_step_ask_for_no_value():
    logits, starts = torch.randn(3, 70), torch.tensor([0, 2, 3])
    seen, strengths = torch.tensor([[0], [4], [2]], dtype=torch.int32), torch.ones(3, 3)
    columns = (*parameters((1.0, 5, 0.9, 0.1), 3), *keys(3))
    with Asked():
        penalise(logits, seen, strengths, backend="triton")
        ids = sample(logits, *columns, is_checked=False, backend="triton")
        accept_drafts(ids, ids, starts, backend="triton")
        accept_drafts(ids, ids, starts, backend="torch")
    with Asked(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        sample(logits, *columns, backend="triton")


def test_what_does_not_fit_is_refused_and_named():
    logits, columns = torch.zeros(2, 9), list(greedy(2))
    for place, bad in ((0, columns[0].double()), (1, columns[1].int()), (4, columns[4][:1]), (5, columns[5].float())):
        with pytest.raises(ValueError, match=r"sample: logits .* six columns \[N\]"):
            sample(logits, *columns[:place], bad, *columns[place + 1 :])
    for other in (logits.double(), logits[0], logits[:, :0], torch.zeros(9, 2).T):
        with pytest.raises(ValueError, match=r"sample: logits .* six columns \[N\]"):
            sample(other, *columns)
