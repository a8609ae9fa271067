import sys
from importlib.metadata import EntryPoint

import pytest

from planner import registry
from planner.errors import BadPlugin, UnknownName
from planner.registry import GROUP, Registry, plugins


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Let modules of given sources be plug-ins, as if they were installed, until the test ends."""
    monkeypatch.syspath_prepend(tmp_path)
    installed = []

    def add(name, source, value=None):
        (tmp_path / f"{name}.py").write_text(source)
        installed.append(EntryPoint(name, value or name, GROUP))
        monkeypatch.setattr(registry, "entry_points", lambda group: [e for e in installed if e.group == group])
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        plugins.cache_clear()

    yield add
    plugins.cache_clear()
    for entry in installed:
        sys.modules.pop(entry.module, None)


def test_entries_are_in_the_order_of_their_names_and_know_them():
    fruit = Registry("fruit")
    fruit.register("pear")(pear := object())
    fruit.register("apple")(apple := object())
    assert dict(fruit) == {"apple": apple, "pear": pear}
    assert list(fruit) == ["apple", "pear"]
    assert fruit.name_of(pear) == "pear"
    assert "plum" not in fruit
    with pytest.raises(UnknownName, match="there is no fruit 'plumm'"):
        fruit.name_of("plumm")


def test_an_unknown_name_is_a_key_error_that_suggests_the_nearest():
    fruit = Registry("fruit")
    fruit.register("apple")(object())
    with pytest.raises(KeyError) as error:
        fruit["aple"]
    assert str(error.value) == (
        "UnknownName: there is no fruit 'aple'.\n  Known: apple.\n  Did you mean 'apple'?"
    )  # fmt: skip
    assert fruit.get("aple") is None


def test_a_name_is_registered_once():
    fruit = Registry("fruit")
    entry = fruit.register("apple")(object())
    fruit.register("apple")(entry)
    with pytest.raises(BadPlugin, match="registers the fruit 'apple', which builtins has"):
        fruit.register("apple")(object())


def test_a_module_that_is_imported_again_registers_again():
    def define():
        class Apple:
            pass

        return Apple

    fruit = Registry("fruit")
    fruit.register("apple")(define())
    again = fruit.register("apple")(define())
    assert fruit["apple"] is again


def test_every_module_of_a_package_is_imported(install, tmp_path):
    sys.modules["fruit_table"] = type(sys)("fruit_table")
    sys.modules["fruit_table"].FRUIT = fruit = Registry("fruit", builtin=["fruit_basket"])
    (tmp_path / "fruit_basket").mkdir()
    for name in ("apple", "pear"):
        source = f"from fruit_table import FRUIT\nFRUIT.register({name!r})(1)\n"
        (tmp_path / "fruit_basket" / f"{name}.py").write_text(source)
    install("fruit_basket/__init__", "", "json")
    assert list(fruit) == ["apple", "pear"]
    for name in ("fruit_table", "fruit_basket", "fruit_basket.apple", "fruit_basket.pear"):
        del sys.modules[name]


def test_modules_are_imported_when_the_registry_is_looked_into_and_may_look_into_it(install):
    fruit = Registry("fruit", builtin=["fruit_own"])
    sys.modules["fruit_table"] = type(sys)("fruit_table")
    sys.modules["fruit_table"].FRUIT = fruit
    install("fruit_own", "from fruit_table import FRUIT\nFRUIT.register('apple')(list(FRUIT))\n", "json")
    install("fruit_plugin", "from fruit_table import FRUIT\nFRUIT.register('pear')(list(FRUIT))\n")
    assert "fruit_own" not in sys.modules
    assert dict(fruit) == {"apple": [], "pear": ["apple"]}
    del sys.modules["fruit_table"], sys.modules["fruit_own"]


@pytest.mark.parametrize(
    ("source", "value", "fault"),
    [
        ("1 / 0", "bad_fruit", "importing bad_fruit raised ZeroDivisionError: division by zero."),
        ("", "no_such_fruit", "importing no_such_fruit raised ModuleNotFoundError"),
        ("apple = 1", "bad_fruit:apple", "bad_fruit:apple is no module."),
    ],
)
def test_a_plug_in_that_fails_is_named_at_every_look(install, source, value, fault):
    install("bad_fruit", source, value)
    fruit = Registry("fruit")
    for _ in range(2):
        with pytest.raises(BadPlugin) as error:
            len(fruit)
        assert "the plug-in bad_fruit cannot be used" in str(error.value)
        assert fault in str(error.value)
