from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from clipsep_jax.schema import MOST_LEVELS, SchemaError, checked, shown


@dataclass(frozen=True)
class Part:
    name: str
    size: int


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    mode: Literal["a", "b"]
    best: float | None = None
    names: dict[str, Part] = field(default_factory=dict)
    more: Any = None


def test_what_describes_a_type_becomes_it():
    value = {"parts": [{"name": "x", "size": 3}], "mode": "b", "best": 2, "names": {"y": {"name": "z", "size": 0}}}
    whole = checked(Whole, value)
    assert whole == Whole((Part("x", 3),), "b", 2.0, {"y": Part("z", 0)})
    assert type(whole.best) is float
    assert checked(list[Part], [whole.parts[0]]) == [Part("x", 3)]
    assert checked(Any, {"any": [1, None]}) == {"any": [1, None]}


WHOLE = {"parts": [], "mode": "a"}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Whole, [], "it is [], not an object"),
        (Whole, WHOLE | {"parts": 3}, "parts is 3, not a list"),
        (Whole, WHOLE | {"parts": [{"name": "x", "size": True}]}, "parts[0].size is True, not a whole number"),
        (Whole, WHOLE | {"parts": [{"name": "x", "size": 2**70}]}, "parts[0].size is too large a number"),
        (Whole, WHOLE | {"parts": [{"name": ["x"], "size": 1}]}, "parts[0].name is ['x'], not text"),
        (Whole, WHOLE | {"parts": [{"name": "x"}]}, "parts[0] lacks 'size'"),
        (Whole, WHOLE | {"colour": 1}, "it has an unknown 'colour'"),
        (Whole, WHOLE | {"mode": "c"}, "mode is 'c', not one of 'a', 'b'"),
        (Whole, WHOLE | {"mode": []}, "mode is [], not one of 'a', 'b'"),
        (Whole, WHOLE | {"best": float("nan")}, "best is not a finite number"),
        (Whole, WHOLE | {"best": 10**400}, "best is not a finite number"),
        (Whole, WHOLE | {"best": "1"}, "best is '1', not a number"),
        (Whole, WHOLE | {"names": {"\x1b": 0}}, "names.'\\x1b' is 0, not an object"),
        (dict[str, int], {"a": 1.0}, "a is 1.0, not a whole number"),
        (str, 3, "it is 3, not text"),
        (bool, 1, "it is 1, not true or false"),
    ],
)
def test_what_does_not_is_named(kind, value, message):
    with pytest.raises(SchemaError) as caught:
        checked(kind, value)
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", [Any, dict, list])
def test_lists_within_lists_have_a_limit(kind):
    value: Any = 0
    for _ in range(MOST_LEVELS + 1):
        value = {"a": value} if kind is dict else [value]
    with pytest.raises(SchemaError, match="within each other"):
        checked(kind, value)


def test_what_is_shown_is_short_and_printable():
    for value in ("\x1b[31m" * 100, ["x" * 10_000] * 100, {"a": [[[[[]]]]]}, 10**50, float("inf"), b"\0" * 1000):
        text = shown(value)
        assert len(text) < 500
        assert text.isprintable()
