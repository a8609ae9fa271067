"""Values as JSON that a person can read and diff, and back: one strict way for all files that hold dataclasses.

Reading runs no code, bounds every size, checks every field and guesses nothing. What is refused is a BadPlanFile that
names the file and the field at fault.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, override

from planner.errors import BadPlanFile, PlannerError, clip

MAX_BYTES = 16 * 2**20
MAX_TEXT = 2**16
MAX_ITEMS = 100_000
MAX_INT, MAX_FLOAT = 2**100, 1e30

Signed = Annotated[float, "may be negative"]
"""A float of either sign; all other numbers in files are at least 0."""

Hook = Callable[[Any, Any], Any]
"""Takes what was parsed and a type, and returns a value of the type; raises _Fault."""

Upgrade = Callable[[Any, str], Any]
"""Takes what was parsed of a file of any version, and its name, and returns the same with the fields of today."""

T = TypeVar("T")


def to_json(value: Any) -> str:
    """Return a dataclass as indented JSON, its fields in order; ``from_json`` reads it back."""
    return json.dumps(_CONVERTER.unstructure(value), indent=1, allow_nan=False) + "\n"


def from_json(text: str, cls: type[T], name: str, upgrade: Upgrade = lambda parsed, _: parsed) -> T:
    """Read a value of a dataclass from JSON; raises BadPlanFile and what ``upgrade`` raises. name: of the file."""
    parsed = upgrade(_parse(text, name), name)
    try:
        return _CONVERTER.structure(parsed, cls)
    except _Fault as fault:
        raise BadPlanFile(name, str(fault)) from None


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a file of UTF-8 that is not too large; raises BadPlanFile."""
    name = str(path)
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise BadPlanFile(name, f"it is larger than {MAX_BYTES >> 20} MiB")
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadPlanFile(name, error.strerror or "it cannot be opened") from error
    except UnicodeDecodeError as error:
        raise BadPlanFile(name, "it is not text") from error


def _parse(text: str, name: str) -> Any:
    """Parse JSON; raises BadPlanFile, also for a repeated key and for NaN and Infinity, which json would let pass."""

    def refuse(constant: str) -> Any:
        raise BadPlanFile(name, f"it holds {constant}")

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict[str, Any]()
        for key, value in pairs:
            if key in record:
                raise BadPlanFile(name, f"it repeats {clip(key)!r}")
            record[key] = value
        return record

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=distinct)
    except PlannerError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadPlanFile(name, f"it is not JSON: {str(error)[:80]}") from error


class _Fault(ValueError):
    """What is wrong with a value, and the steps that lead to it: ``.decisions``, ``[3]``, ``.queries``.

    of_field: whether the text is said of the innermost field; else it is whole.
    """

    def __init__(self, text: str, steps: tuple[str, ...] = (), of_field: bool = True) -> None:
        super().__init__(text)
        self.text, self.steps, self.of_field = text, steps, of_field

    def after(self, step: str) -> _Fault:
        """Return the fault of the value to which the step leads."""
        return _Fault(self.text, (step, *self.steps), self.of_field)

    def __str__(self) -> str:
        border = len(self.steps)
        if self.of_field:
            border = max((at for at, step in enumerate(self.steps) if step.startswith(".")), default=0)
        place, field = ("".join(part).removeprefix(".") for part in (self.steps[:border], self.steps[border:]))
        subject = repr(field) if field else "it"
        text = f"{subject} {self.text}" if self.of_field else self.text
        return f"{text}, at {place}" if place else text


def _after(step: str, hook: Hook, value: Any, cls: Any) -> Any:
    """Read a value to which a step leads; a fault of it says so."""
    try:
        return hook(value, cls)
    except _Fault as fault:
        raise fault.after(step) from None


def _dataclass_hook(cls: Any) -> Hook:
    """Return what reads a dataclass: an object with its fields, all of them and no others."""
    names = [field.name for field in fields(cls)]
    hints = get_type_hints(cls, include_extras=True)
    overrides: dict[str, Any] = {name: override(struct_hook=_field_hook(name, hints[name])) for name in names}
    make = make_dict_structure_fn(cls, _CONVERTER, **overrides)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise _Fault("is not an object")
        different = sorted(value.keys() ^ set(names))
        if different:
            fault = f"{clip(different[0])!r} is {'missing' if different[0] in names else 'none of them'}"
            raise _Fault(f"the fields of a {cls.__name__} are {', '.join(names)}; {fault}", of_field=False)
        return make(value, cls)

    return structure


def _field_hook(name: str, hint: Any) -> Hook:
    """Return what reads a field of a dataclass."""
    hook = _CONVERTER.get_structure_hook(hint)
    return lambda value, _: _after(f".{name}", hook, value, hint)


def _tuple_hook(cls: Any) -> Hook:
    """Return what reads a list of equal types as a tuple."""
    item = get_args(cls)[0]
    hook = _CONVERTER.get_structure_hook(item)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, list):
            raise _Fault("is not a list")
        _require_few(value)
        return tuple(_after(f"[{number}]", hook, each, item) for number, each in enumerate(value))

    return structure


def _mapping_hook(cls: Any) -> Hook:
    """Return what reads an object whose values are of one type as a dictionary by text."""
    item = get_args(cls)[1]
    hook = _CONVERTER.get_structure_hook(item)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise _Fault("is not an object")
        _require_few(value)
        return {_str(key): _after(f"[{clip(key)!r}]", hook, each, item) for key, each in value.items()}

    return structure


def _require_few(items: Any) -> None:
    if len(items) > MAX_ITEMS:
        raise _Fault(f"has {len(items)} items, more than {MAX_ITEMS}")


def _str(value: Any, _: Any = str) -> str:
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        return value
    raise _Fault("is no str in range")


def _bool(value: Any, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _Fault("is no bool")


def _int(value: Any, _: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_INT:
        return value
    raise _Fault("is no int in range")


def _signed(value: Any, _: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and -MAX_FLOAT < value < MAX_FLOAT:
        return float(value)
    raise _Fault("is no float in range")


def _float(value: Any, _: Any) -> float:
    number = _signed(value, float)
    if number >= 0:
        return number
    raise _Fault("is no float in range")


_CONVERTER = Converter(detailed_validation=False)
for _type, _hook in {str: _str, bool: _bool, int: _int, float: _float}.items():
    _CONVERTER.register_structure_hook(_type, _hook)
_CONVERTER.register_structure_hook_factory(is_dataclass, _dataclass_hook)
_CONVERTER.register_structure_hook_factory(lambda cls: get_origin(cls) is tuple, _tuple_hook)
_CONVERTER.register_structure_hook_factory(lambda cls: get_origin(cls) is Mapping, _mapping_hook)
_CONVERTER.register_structure_hook_func(lambda cls: cls == Signed, _signed)
