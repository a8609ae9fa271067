"""Emitted Hopper kernels run on the CPU: the language's words in plain Python, a thread for each group of warps.

Barriers have phases and count bytes as the hardware does, copies arrive late, and products are made only when they are
waited for; so a buffer that is given back too early, a phase that is missed and a deadlock all show. What is not
checked: layouts, precision (all is float32), and the order of memory accesses within a warpgroup.
"""

import operator
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import SimpleNamespace

import torch

from planner.codegen.spec.emitted import ViewArgument

PATIENCE = 10.0
"""Seconds after which a wait is a deadlock."""


class Block(torch.Tensor):
    """A tensor of the language: it has a type, whose layout means nothing here."""

    type = SimpleNamespace(layout=None)


class Scalar(int):
    """A whole number of the language: division rounds towards zero."""

    def __floordiv__(self, other):
        return Scalar(abs(int(self)) // abs(int(other)) * (1 if (self < 0) == (other < 0) else -1))

    def __mod__(self, other):
        return Scalar(int(self) - int(self // other) * int(other))

    def __add__(self, other):
        return self._with(other, int(self) + other)

    def __sub__(self, other):
        return self._with(other, int(self) - other)

    def __rsub__(self, other):
        return self._with(other, other - int(self))

    def __mul__(self, other):
        return self._with(other, int(self) * other)

    def __and__(self, other):
        return Scalar(int(self) & int(other))

    def __rshift__(self, other):
        return Scalar(int(self) >> int(other))

    def _with(self, other, value):
        return Scalar(value) if isinstance(other, int) else value

    def to(self, dtype):
        return self

    __radd__, __rmul__ = __add__, __mul__


def block(values):
    """Values as the language has them."""
    return values.as_subclass(Block)


class Pointer:
    """An address in a tensor that lies flat in memory."""

    def __init__(self, memory, at=0):
        self.memory, self.at = memory, at

    def __add__(self, more):
        return Pointer(self.memory, self.at + more)

    def __sub__(self, less):
        return Pointer(self.memory, self.at - less)

    def load(self, mask=None, other=0):
        if isinstance(self.at, int):
            value = self.memory[self.at].item()
            return Scalar(value) if isinstance(value, int) else value
        known = torch.ones_like(self.at, dtype=torch.bool) if mask is None else mask
        found = self.memory[torch.where(known, self.at, 0).as_subclass(torch.Tensor)]
        return block(torch.where(known, found, torch.as_tensor(other, dtype=found.dtype)))

    def store(self, values, mask=None):
        if isinstance(self.at, int):
            self.memory[self.at] = values
            return
        at, values = torch.broadcast_tensors(self.at, torch.as_tensor(values))
        known = torch.ones_like(at, dtype=torch.bool) if mask is None else mask
        self.memory[at[known].as_subclass(torch.Tensor)] = values[known].as_subclass(torch.Tensor)


class Barrier:
    """An mbarrier: a phase ends when so many have arrived and all expected bytes are there."""

    def __init__(self):
        self.changed = threading.Condition()

    def init(self, count):
        self.count, self.missing, self.bytes, self.phase = count, count, 0, 0
        self.here = set()

    def move(self, arrivals, size):
        """Count arrivals and bytes (expected ones are positive)."""
        with self.changed:
            self.missing -= arrivals
            self.bytes += size
            assert self.missing >= 0, "more have arrived than a phase waits for"
            if arrivals:
                assert threading.get_ident() not in self.here, "a phase in which somebody arrives twice misses somebody"
                self.here.add(threading.get_ident())
            if self.missing == 0 and self.bytes == 0:
                self.missing, self.phase, self.here = self.count, self.phase + 1, set()
                self.changed.notify_all()

    def wait(self, parity):
        with self.changed:
            assert self.changed.wait_for(lambda: self.phase & 1 != parity, PATIENCE), "a deadlock"


class Shared:
    """Shared memory: buffers of one shape."""

    def __init__(self, values):
        self.values = values
        self.dtype = values.dtype

    def index(self, at):
        assert 0 <= at < len(self.values)
        return Shared(self.values[at])

    @property
    def shape(self):
        return self.values.shape

    def permute(self, order):
        return Shared(self.values.permute(*order))

    def slice(self, start, length):
        return Shared(self.values[start : start + length])

    def reinterpret(self, dtype, shape, layout):
        count, rows, channels = shape if len(shape) == 3 else (0, 0, 0)
        if count > len(self.values) and self.values.dim() == 3:
            return Boxes(self.values, rows, channels)
        return Shared(self.values.view(*shape))

    def load(self, layout):
        return block(self.values.clone())

    def store(self, values):
        self.values.copy_(values)


class Boxes:
    """Buffers cut into boxes as they lie in memory: some channels of all rows, then the next ones."""

    def __init__(self, values, rows, channels):
        parts = [part for tile in values for part in tile.split(channels, 1)]
        self.boxes = [box for part in parts for box in part.split(rows)]

    def index(self, at):
        assert 0 <= at < len(self.boxes)
        return Shared(self.boxes[at])


class Barriers:
    """Shared memory that holds barriers."""

    def __init__(self, count):
        self.barriers = [Barrier() for _ in range(count)]

    def index(self, at):
        return self.barriers[at]


def box_rows(argument, at):
    """(row of the tensor for each row of a view's box that begins at some place, whether it lies in the view)"""
    box = torch.stack(torch.meshgrid(*map(torch.arange, argument.box), indexing="ij"), -1).flatten(0, -2)
    sizes, strides = (torch.tensor(x) for x in zip(*argument.view.axes, strict=True))
    places = box + torch.tensor([int(x) for x in at])
    inside = ((places >= 0) & (places < sizes)).all(-1)
    return argument.view.origin + (places * strides).sum(-1), inside


class View:
    """A tensor map: tokens of (outer, tokens, channels) seen as a box, as its argument says."""

    def __init__(self, tensor, argument):
        self.tensor, self.argument = tensor, argument
        self.dtype, self.layout = tensor.dtype, None
        self.block_type = SimpleNamespace(shape=[1, *argument.box, argument.channels])


class Pending:
    """A product that is made when it is waited for."""

    def __init__(self, a, b, acc):
        self.operands, self.value = (a, b, acc), None

    def make(self):
        a, b, acc = (x.value if isinstance(x, Pending) else x for x in self.operands)
        a, b = (x.values.clone() if isinstance(x, Shared) else x for x in (a, b))
        self.value = block(a.reshape(a.shape[-2:]) @ b.reshape(b.shape[-2:]).to(a.dtype) + (0 if acc is None else acc))


class Machine:
    """One CTA: its threads, their pending products, TMA; CTAs share the memory's lock."""

    def __init__(self, seed, width, cta, lock):
        self.random, self.width = random.Random(seed), width
        self.here, self.lock, self.cta = threading.local(), lock, cta
        self.copies, self.failed = SimpleQueue(), list[BaseException]()
        self.may_touch = False

    def dawdle(self):
        if self.random.random() < 0.05:
            time.sleep(0.0005)

    def multiply(self, a, b, acc, use_acc=True, is_async=True):
        pending = Pending(a, b, acc if use_acc else None)
        self.here.pending.append(pending)
        return pending

    def products(self, left, deps):
        while len(self.here.pending) > left:
            self.here.pending.pop(0).make()
        made = tuple(pending.value for pending in deps)
        assert all(value is not None for value in made)
        return made[0] if len(made) == 1 else made

    def load_box(self, view, at, bar, target):
        outer, *at, last = at
        self.copies.put((view, int(outer), at, int(last), bar, target))

    def tma(self):
        while (copy := self.copies.get()) is not None:
            view, outer, at, last, bar, target = copy
            self.dawdle()
            rows, inside = box_rows(view.argument, at)
            found = view.tensor[outer, torch.where(inside, rows, 0)] * inside[:, None]
            found = found[:, last : last + view.argument.channels]
            target.values.copy_(found.view(target.values.shape))
            bar.move(0, -found.numel() * self.width)

    def store_box(self, view, at, source):
        outer, *at, last = at
        assert last == 0
        assert all(x >= 0 for x in at), "TMA writes no box that begins outside"
        rows, inside = box_rows(view.argument, at)
        view.tensor[int(outer), rows[inside]] = source.values.flatten(0, -2)[inside].clone()

    def wait(self, bar, parity, pred=True):
        self.dawdle()
        if pred:
            bar.wait(int(parity))

    def wait_for_what_comes_before(self):
        self.may_touch = True

    def touching(self, run):
        def touch(*args, **kwargs):
            assert self.may_touch, "memory is touched while a kernel before this one may still use it"
            return run(*args, **kwargs)

        return touch

    def specialize(self, parts, warps, registers):
        def run(function, arguments):
            self.here.pending = []
            try:
                function(*arguments)
            except BaseException as error:
                self.failed.append(error)

        threads = [threading.Thread(target=run, args=part, daemon=True) for part in parts]
        engine = threading.Thread(target=self.tma, daemon=True)
        for thread in (engine, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        self.copies.put(None)
        engine.join()

    def allocate(self, dtype, shape, layout):
        return Barriers(shape[0]) if dtype == torch.int64 else Shared(torch.full(shape, 77, dtype=dtype))

    def atomic(self, combine):
        def run(pointer, value, sem, scope):
            with self.lock:
                before = pointer.load()
                pointer.store(int(combine(before, value)))
                return before

        return run

    def names(self):
        """Return what emitted source imports."""

        def where(condition, a, b):
            if any(isinstance(x, torch.Tensor) for x in (condition, a, b)):
                return block(torch.where(*map(torch.as_tensor, (condition, a, b))))
            return a if condition else b

        def reduced(how):
            def run(x, axis):
                made = how(x, axis).to(x.dtype)
                return block(made) if made.dim() else number(made.item())

            return run

        def greater(a, b):
            return block(torch.maximum(a, torch.as_tensor(b, dtype=a.dtype)))

        def lesser(a, b):
            return block(torch.minimum(a, torch.as_tensor(b, dtype=a.dtype)))

        def assembly(_text, _constraints, args, **_options):
            scores, words, bits = args
            return block(scores.masked_fill((words & bits) == 0, -torch.inf))

        def number(value):
            return Scalar(value) if isinstance(value, int) and not isinstance(value, bool) else value

        def of_two(of_numbers, of_blocks, a, b):
            a, b = (b, a) if isinstance(b, torch.Tensor) else (a, b)
            return of_blocks(a, b) if isinstance(a, torch.Tensor) else number(of_numbers(a, b))

        language = SimpleNamespace(
            constexpr=number, to_tensor=number, where=where, maximum=greater, minimum=lesser,
            sum=reduced(torch.sum), max=reduced(torch.amax), min=reduced(torch.amin),
            inline_asm_elementwise=assembly,
            load=self.touching(lambda pointer, mask=None, other=0: pointer.load(mask, other)),
            store=self.touching(lambda pointer, values, mask=None: pointer.store(values, mask)),
            arange=lambda start, stop, layout: block(torch.arange(int(start), int(stop), dtype=torch.int32)),
            join=lambda a, b: block(torch.stack((a, b), -1)), permute=lambda x, order: block(x.permute(*order)),
            reshape=lambda x, shape: block(x.reshape([int(n) for n in shape])),
            exp2=lambda x: block(torch.exp2(x)), log2=lambda x: block(torch.log2(x)),
            expand_dims=lambda x, axis: block(x.unsqueeze(axis)), convert_layout=lambda x, layout: x,
            zeros=lambda shape, dtype, layout: block(torch.zeros(*map(int, shape))),
            full=lambda shape, value, dtype, layout: block(torch.full(list(map(int, shape)), float(value))),
            num_warps=lambda: 4, static_range=lambda *ends: map(Scalar, range(*ends)),
            program_id=lambda axis: Scalar(self.cta), allocate_shared_memory=self.allocate,
            warp_specialize=self.specialize, atomic_add=self.touching(self.atomic(operator.add)),
            atomic_or=self.touching(self.atomic(operator.or_)),
            atomic_xchg=self.touching(self.atomic(lambda before, value: value)),
            int32=torch.int32, uint32=torch.int64, int64=torch.int64, float32=torch.float32,
            NVMMASharedLayout=SimpleNamespace(get_default_for=lambda shape, dtype: None),
            **dict.fromkeys(
                ["NVMMADistributedLayout", "DotOperandLayout", "SliceLayout", "BlockedLayout", "SwizzledSharedLayout"],
                lambda *args, **kwargs: None,
            ),
        )  # fmt: skip
        return {
            "gl": language,
            "gluon": SimpleNamespace(jit=lambda function: function, constexpr_function=lambda function: function),
            "mbarrier": SimpleNamespace(
                MBarrierLayout=lambda: None,
                init=lambda bar, count: bar.init(count),
                wait=self.wait,
                expect=lambda bar, size: bar.move(1, int(size)),
                arrive=lambda bar, count=1, pred=True: bar.move(count, 0) if pred else None,
            ),
            "tma": SimpleNamespace(store_wait=lambda left: None),
            "async_load": self.touching(self.load_box),
            "async_store": self.touching(self.store_box),
            "reinterpret": lambda tiles, *how: tiles.reinterpret(*how),
            "thread_barrier": lambda: None,
            "fence_async_shared": lambda: None,
            "gdc_launch_dependents": lambda: None,
            "gdc_wait": self.wait_for_what_comes_before,
            "warpgroup_mma": self.multiply,
            "warpgroup_mma_wait": self.products,
            "range": lambda *ends: map(Scalar, range(*map(int, ends))),
            "min": lambda a, b: of_two(min, lesser, a, b),
            "max": lambda a, b: of_two(max, greater, a, b),
        }


def launch(emitted, given, seed=0):
    """Run all CTAs of an emitted Hopper kernel beside each other; tensors by the names of its arguments."""
    lock = threading.Lock()
    machines = [Machine(seed + cta, 2, cta, lock) for cta in range(emitted.grid)]
    code = compile(emitted.source[emitted.source.index("NUM_SMS =") :], emitted.spec.name, "exec")
    arguments = list[object]()
    for argument in emitted.arguments:
        value = given[argument.tensor if isinstance(argument, ViewArgument) else argument.name]
        if isinstance(argument, ViewArgument):
            value = View(value, argument)
        elif argument.signature.startswith("*"):
            value = Pointer(value.flatten())
        arguments.append(Scalar(value) if isinstance(value, int) else value)

    def run(machine):
        names = machine.names()
        exec(code, names)
        names["attention"](*arguments)

    with ThreadPoolExecutor(len(machines)) as ctas:
        list(ctas.map(run, machines))
    failed = [error for machine in machines for error in machine.failed]
    if failed:
        raise failed[0]
