"""Element types: one table, spellings that parse back, and what a kernel can be asked for."""

import itertools
from dataclasses import replace

import pytest
import torch
from kernel_specs import FLUX, problem

from planner.codegen.emit.bodies import emit
from planner.codegen.spec.body import make_spec
from planner.codegen.spec.candidates import candidates, choose_config
from planner.codegen.spec.dtypes import DTYPES, Dtypes, dtype_of
from planner.codegen.spec.feasibility import why_not
from planner.errors import BadSpelling, MalformedValue, NoKernel, UnknownName

PATTERN = "crisscross{axes=lines,group=16x16}"


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_table_agrees_with_torch(dtype):
    assert dtype.bytes == dtype.of_tensors.itemsize
    assert dtype.largest == torch.finfo(dtype.of_tensors).max
    powers = torch.tensor([2.0**dtype.exponent, 2.0**dtype.exponent * 2], dtype=torch.float64)
    assert (powers.to(dtype.of_tensors).double() == powers).tolist() == [True, False]  # infinite, or no number
    assert dtype_of(dtype.of_tensors, dtype.name == "tf32") == dtype


def test_a_type_that_kernels_do_not_take_is_none():
    assert dtype_of(torch.float64) is None


@pytest.mark.parametrize("names", list(itertools.product(DTYPES, repeat=4)))
def test_spellings_parse_back(names):
    dtypes = Dtypes(*(DTYPES[name] for name in names))
    assert Dtypes.parse(str(dtypes)) == dtypes
    assert str(dtypes).count("=") == sum(name != names[0] for name in names[1:])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("bfloat17", UnknownName, "Did you mean 'bfloat16'"),
        ("bfloat16{out=float33}", UnknownName, "Did you mean 'float32'"),
        ("bfloat16{}", BadSpelling, "a name with, in braces, tensors of other types"),
        ("bfloat16{q=float32}", BadSpelling, "not those of k, v and out, each once"),
        ("bfloat16{k=float32,k=float16}", BadSpelling, "not those of k, v and out, each once"),
    ],
)
def test_what_is_no_spelling_says_so(text, error, message):
    with pytest.raises(error, match=message):
        Dtypes.parse(text)
    with pytest.raises(error, match=message):
        problem(FLUX, PATTERN, dtype=text)


def test_a_problem_has_one_spelling():
    with pytest.raises(MalformedValue, match=r"dtype 'bfloat16\{k=bfloat16\}' is spelled 'bfloat16'"):
        problem(FLUX, PATTERN, dtype="bfloat16{k=bfloat16}")
    with pytest.raises(MalformedValue, match="scales 'vk' are not some of q, k and v, in this order"):
        problem(FLUX, PATTERN, scales="vk")


@pytest.mark.parametrize(("dtype", "scales"), [("bfloat16{out=float32}", ""), ("bfloat16", "kv")])
def test_the_body_that_takes_a_combination_is_chosen(dtype, scales):
    asked = problem(FLUX, PATTERN, dtype=dtype, scales=scales)
    config = choose_config(asked)
    assert config.body == "triton"
    arguments = {argument.name: argument.signature for argument in emit(make_spec(asked, config)).arguments}
    assert {name: arguments[name] for name in "qkvo"} == {
        "q": "*bf16", "k": "*bf16", "v": "*bf16", "o": "*fp32" if "out" in dtype else "*bf16"
    }  # fmt: skip
    assert [name for name in arguments if name.endswith("_scale")] == [f"{letter}_scale" for letter in scales]


WHY_NOT = [
    ("sm90", {"dtype": "bfloat16{out=float32}"}, "its queries, keys, values and output are of one type"),
    ("sm90", {"scales": "k"}, "it takes no scales"),
    ("triton", {"dtype": "bfloat16{k=float32}"}, "keys of float32 would be rounded to bfloat16"),
    ("triton", {"dtype": "float16{v=bfloat16}"}, "values of bfloat16 would be rounded to float16"),
    ("triton", {"scales": "v", "pattern": PATTERN[:-1] + ",pooled=mean}"}, "means of groups have no scales"),
]


@pytest.mark.parametrize(("body", "changes", "reason"), WHY_NOT)
def test_a_body_that_cannot_take_a_combination_says_why(body, changes, reason):
    usual = problem(FLUX, PATTERN)
    config = next(each for each in candidates(usual) if each.body == body)
    assert why_not(config, usual) is None
    assert reason in str(why_not(config, replace(usual, **changes)))
    if body == "triton":
        with pytest.raises(NoKernel, match=f"(?i){reason}"):
            choose_config(replace(usual, **changes))
