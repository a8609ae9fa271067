import contextlib
import ctypes
import math
import struct
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from kernel_specs import SPECS

from planner.codegen.tiling.boxes import View
from planner.errors import BadAttentionInput
from planner.runtime.attention.cpu import grouped_sdpa
from planner.runtime.attention.dispatch import attend
from planner.runtime.cuda import driver, launch, parameters
from planner.runtime.kernels import select as kernels
from planner.runtime.kernels.cache import build
from planner.runtime.kernels.select import attention


@pytest.fixture
def encoded(monkeypatch):
    """Record what the driver is asked to describe, without a driver."""
    asked = []

    def encode(address, dtype, sizes, strides, box, swizzle):
        asked.append((address, dtype, tuple(sizes), tuple(strides), tuple(box), swizzle))
        made = ctypes.create_string_buffer(128)
        return made, made

    monkeypatch.setattr(parameters, "encode_tensor_map", encode)
    return asked


def packet(spec, heads_last=True):
    made = build(spec)

    def rows(name, heads, tokens):
        dtype = spec.dtypes.of(name).of_tensors
        if heads_last:
            return torch.empty(spec.batch, tokens, heads, spec.head_dim, dtype=dtype).transpose(1, 2)
        return torch.empty(spec.batch, heads, tokens, spec.head_dim, dtype=dtype)

    tensors = {name: rows(name, spec.heads, spec.queries) for name in "qo"}
    tensors |= {name: rows(name, spec.kv_heads, spec.keys) for name in "kv"}
    tensors |= {f"{letter}_scale": torch.ones(()) for letter in spec.scales}
    tensors |= {"lse": torch.empty(1), "key_mask": torch.empty(1)}
    workspace = parameters.Workspace(*(torch.empty(1) for _ in range(4)))
    return parameters.Packet(made.emitted, made.binary, tensors, workspace, 0.5), tensors, made


@pytest.mark.parametrize(
    "name",
    [
        "hopper_flux_grat_b",
        "hopper_planes_gqa_64",
        "triton_any_group",
        "triton_planes_masked_96",
        "triton_cross",
        "triton_scaled",
    ],
)
def test_parameters_are_those_that_the_machine_code_takes(encoded, name):
    made, _, kernel = packet(SPECS[name])
    assert len(made.pointers) == len(kernel.binary.parameters)
    scale = next(value for value in made._values if isinstance(value, ctypes.c_float))
    assert scale.value == pytest.approx(0.5 / math.log(2))


def test_tensor_maps_describe_the_grid_where_the_model_has_it(encoded):
    _, tensors, _ = packet(SPECS["hopper_flux_grat_b"])
    grid = next(asked for asked in encoded if len(asked[2]) == 4)
    address, dtype, sizes, strides, box, swizzle = grid
    row = 24 * 128
    assert address == tensors["q"].data_ptr() + 512 * row * 2
    assert (dtype.name, sizes, strides) == ("bfloat16", (24, 64, 64, 128), (128, 64 * row, row, 1))
    assert math.prod(box) * 2 == 64 * 128
    assert swizzle == 3
    text = [asked for asked in encoded if asked[2] == (24, 512, 128)]
    assert len(text) == 2  # the queries and the output of the text, so that no row beyond it is written


def test_heads_lie_in_the_last_axis_where_batch_and_heads_are_not_one():
    apart = torch.empty(2, 100, 3, 64, dtype=torch.bfloat16).transpose(1, 2)
    assert parameters.why_not_boxes(apart, 64) is None
    assert not parameters.heads_merge(apart)
    assert "not one axis" in str(parameters.why_not_boxes(apart[..., ::1][:, :, :, :48], 64))
    assert parameters.heads_merge(apart.contiguous())
    assert "not contiguous" in str(parameters.why_not_boxes(apart.transpose(2, 3), 64))
    assert "expanded" in str(parameters.why_not_boxes(apart[:, :1].expand(2, 3, 100, 64), 64))
    odd = torch.empty(1, 2, 100, 65, dtype=torch.bfloat16)[..., :64]
    assert "16 bytes" in str(parameters.why_not_boxes(odd, 64))
    assert "16 bytes" in str(parameters.why_not_rows(torch.empty(1, 2, 9, 8).flatten()[1:129].view(1, 1, 16, 8)))


class Driver:
    """The device's side of a launch, replaced: which stream and device are current, and what is launched."""

    def __init__(self, monkeypatch):
        self.stream, self.device, self.capturing, self.entered, self.launches = 7, 0, False, [], []
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: self.stream, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: self.device, raising=False)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "device", self.enter)
        monkeypatch.setattr(launch, "Function", lambda *args: self)

    @contextlib.contextmanager
    def enter(self, device):
        self.entered.append(device)
        yield

    def launcher(self, programs, stream, pointers):
        return lambda: self.launches.append((programs, stream, pointers))


def test_launches_remember_what_depends_on_addresses_alone(encoded, monkeypatch):
    spec = SPECS["hopper_flux_grat_b"]
    driver, made = Driver(monkeypatch), build(spec)
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: torch.empty(1))
    kernel = launch.Kernel(made.emitted, made.binary, torch.device("cpu"))
    kernel._index = 0
    q, k, v, out = (torch.empty(1, 24, 4608, 128, dtype=torch.bfloat16) for _ in range(4))
    lse = torch.empty(1, 24, 4608)
    kernel(q, k, v, out, 0.1, lse)
    described = len(encoded)
    kernel(q, k, v, out, 0.1, lse)
    assert len(encoded) == described
    assert driver.launches[0] == driver.launches[1]
    assert driver.launches[0][:2] == (132, 7)
    kernel(q, k, v, out, 0.2, lse)
    kernel(q, k.transpose(1, 2).contiguous().transpose(1, 2), v, out, 0.1, lse)
    assert len(encoded) == 3 * described
    assert len(kernel._workspaces) == 1
    driver.stream = 8
    kernel(q, k, v, out, 0.1, lse)
    assert len(kernel._workspaces) == 2
    driver.capturing = True
    remembered = len(kernel._launches)
    driver.stream = 9
    kernel(q, k, v, out, 0.1, lse)
    assert (len(kernel._launches), len(kernel._workspaces)) == (remembered, 2)
    entered = len(driver.entered)
    driver.device = 1
    kernel(q, k, v, out, 0.1, lse)
    assert driver.entered[entered:] == [0]


@pytest.mark.parametrize("waits", [False, True])
def test_the_driver_is_told_whether_a_kernel_waits_itself(monkeypatch, waits):
    asked = []

    def start(config, function, parameters, extra):
        asked.append((ctypes.string_at(config, 56), function, parameters, extra))
        return 0

    named = ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute"]
    library = SimpleNamespace(**dict.fromkeys(named, lambda *args: 0), cuLaunchKernelEx=start)
    monkeypatch.setattr(driver, "_library", lambda: library)
    parameters = (ctypes.c_void_p * 1)()
    launch = driver.Function(b"", "attention", 12, 200_000, waits).launcher(132, 7, parameters)
    launch()
    (config, _, given, extra), *others = asked
    *sizes, stream, attributes, count = struct.unpack("7I4xQQI4x", config)
    assert (sizes, stream) == ([132, 1, 1, 384, 1, 1, 200_000], 7)
    assert (given, extra, others) == (parameters, None, [])
    assert count == int(waits)
    if waits:  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, and that it is allowed
        assert struct.unpack("i4xi60x", ctypes.string_at(attributes, 72)) == (6, 1)


def test_axes_of_one_element_get_strides_that_the_driver_takes():
    one = torch.empty(1, 1, 100, 64, dtype=torch.bfloat16).as_strided((1, 1, 100, 64), (3, 5, 64, 1))
    sizes, strides, _ = parameters._view(one, View(20, ((1, 80), (80, 1))), 64)
    assert (sizes, strides) == ([1, 1, 80, 64], [64, 64, 64, 1])


def test_cpu_tensors_are_refused_by_kernels_and_served_by_runs():
    q, k, v = (torch.randn(1, 2, 20, 16) for _ in range(3))
    spelled = "h:4 w:5", "crisscross{axes=lines,group=2x5}"
    with pytest.raises(BadAttentionInput, match="kernels run on CUDA devices, not on cpu"):
        attention(q, k, v, *spelled)
    assert torch.equal(attend(q, k, v, *spelled), grouped_sdpa(q, k, v, *spelled))


@pytest.mark.parametrize("found", [None, "triton"])
def test_triton_is_looked_for_once(found, monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "find_spec", lambda name: asked.append(name) or found)
    monkeypatch.setattr(kernels, "_can_compile", lru_cache(kernels._can_compile.__wrapped__))
    monkeypatch.setattr(kernels.sys, "platform", "linux")
    assert [kernels.has_kernels(torch.device("cuda")) for _ in range(3)] == [found is not None] * 3
    assert asked == ["triton"]
