import pytest
import torch

from planner.errors import NoGradient
from planner.runtime.attention.operator import grouped_attention

ARGUMENTS = (None, False, None, False, "text:3 | h:4 w:4", "crisscross{axes=lines,group=2x2}")


def tensors(dtype=torch.float32):
    return tuple(torch.randn(2, 3, 19, 8, dtype=dtype) for _ in range(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_is_well_behaved(dtype):
    torch.library.opcheck(
        grouped_attention, (*tensors(dtype), *ARGUMENTS), test_utils=["test_schema", "test_faketensor"]
    )


def test_operator_compiles_whole():
    compiled = torch.compile(
        lambda q, k, v: grouped_attention(q, k, v, *ARGUMENTS), backend="aot_eager", fullgraph=True
    )
    q, k, v = tensors()
    assert torch.equal(compiled(q, k, v), grouped_attention(q, k, v, *ARGUMENTS))


def test_backward_says_that_there_is_none():
    q, k, v = tensors()
    with pytest.raises(NoGradient, match=r"torch\.no_grad"):
        grouped_attention(q.requires_grad_(), k, v, *ARGUMENTS).sum().backward()
