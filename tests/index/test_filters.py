from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import BadFilter
from index.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, canonical, compile_filter

LAMP = {
    "colour": "red",
    "price": 3,
    "sold": True,
    "maker": None,
    "tags": ["new", "desk"],
    "size": {"width": 2.5, "box": {"weight": 7}},
    "added": "2026-11-02",
}


@pytest.mark.parametrize(
    ("filter_", "matches"),
    [
        ({}, True),
        ({"colour": "red"}, True),
        ({"colour": "blue"}, False),
        ({"colour": {"in": ["blue", "red"]}}, True),
        ({"colour": {"in": ["blue", 3]}}, False),
        ({"price": 3}, True),
        ({"price": 3.0}, True),
        ({"price": "3"}, False),
        ({"price": {"gte": 3}}, True),
        ({"price": {"gt": 3}}, False),
        ({"price": {"lte": 3}}, True),
        ({"price": {"lt": 3}}, False),
        ({"price": {"gte": 1, "lt": 5}}, True),
        ({"price": {"gte": 1, "lt": 2}}, False),
        ({"price": {"gte": "1"}}, False),
        ({"colour": {"gte": 1}}, False),
        ({"added": {"gte": "2026-01-01", "lt": "2027"}}, True),
        ({"sold": True}, True),
        ({"sold": 1}, False),
        ({"sold": {"gte": 0}}, False),
        ({"price": True}, False),
        ({"maker": None}, True),
        ({"missing": None}, False),
        ({"missing": {"lt": 3}}, False),
        ({"tags": "desk"}, True),
        ({"tags": {"in": ["old", "new"]}}, True),
        ({"tags": "old"}, False),
        ({"size.width": 2.5}, True),
        ({"size.box.weight": {"gt": 6}}, True),
        ({"size.box.height": 7}, False),
        ({"size": 2.5}, False),
        ({"colour.shade": "red"}, False),
        ({"not": {"colour": "red"}}, False),
        ({"not": {"missing": 1}}, True),
        ({"not": {}}, False),
        ({"any": [{"colour": "blue"}, {"price": 3}]}, True),
        ({"any": [{"colour": "blue"}, {"price": 4}]}, False),
        ({"colour": "red", "price": {"lt": 5}}, True),
        ({"colour": "red", "price": {"gt": 5}}, False),
        ({"any": [{"colour": "red", "price": 4}], "sold": True}, False),
    ],
    ids=json.dumps,
)
def test_filter_on_one_payload(filter_, matches):
    assert compile_filter(filter_)(LAMP) is matches


def test_range_must_hold_for_one_and_the_same_element_of_a_list():
    between = compile_filter({"prices": {"gt": 2, "lt": 8}})
    assert not between({"prices": [1, 9]})
    assert between({"prices": [1, 5, 9]})


def nested(depth):
    filter_ = {"colour": "red"}
    for _ in range(depth - 1):
        filter_ = {"not": filter_}
    return filter_


@pytest.mark.parametrize(
    ("filter_", "complaint"),
    [
        ("red", "an object"),
        ([], "an object"),
        (3, "an object"),
        ({"colour": ["red"]}, "a filter compares with"),
        ({"colour": {}}, "empty object"),
        ({"colour": {"like": "r%"}}, "unknown operator 'like'"),
        ({"colour": {"$gt": 1}}, "unknown operator"),
        ({"colour": {3: 1}}, "unknown operator 3"),
        ({"colour": {"in": "red"}}, "takes a list"),
        ({"colour": {"in": []}}, "takes a list"),
        ({"colour": {"in": [["red"]]}}, "a filter compares with"),
        ({"colour": {"in": [0] * (MAX_VALUES + 1)}}, "takes a list"),
        ({"price": {"lt": None}}, "a number or a text"),
        ({"price": {"lt": True}}, "a number or a text"),
        ({"price": {"lt": [1]}}, "a filter compares with"),
        ({"price": float("nan")}, "finite"),
        ({"price": {"lt": float("inf")}}, "finite"),
        ({"not": "red"}, "an object"),
        ({"not": [{"colour": "red"}]}, "an object"),
        ({"any": {"colour": "red"}}, "takes a list"),
        ({"any": []}, "takes a list"),
        ({"any": ["red"]}, "an object"),
        ({"": 1}, "a key is a text"),
        ({3: 1}, "a key is a text"),
        ({"k" * 257: 1}, "a key is a text"),
        ({"a..b": 1}, "empty step"),
        ({".a": 1}, "empty step"),
        ({"text": "x" * 5000}, "at most 4096 letters"),
        ({"any": [{"a": 1}] * MAX_CONDITIONS}, "at most 64 conditions"),
        (nested(MAX_DEPTH + 1), "at most 8 deep"),
        (nested(5000), "at most 8 deep"),
    ],
)
def test_anything_else_is_refused_with_a_reason(filter_, complaint):
    with pytest.raises(BadFilter, match=complaint) as raised:
        compile_filter(filter_)
    assert len(str(raised.value)) < 400


def test_deepest_and_largest_filters_are_accepted():
    assert compile_filter(nested(MAX_DEPTH))(LAMP) is False
    assert compile_filter({"any": [{"colour": "red"}] * (MAX_CONDITIONS - 1)})(LAMP)


def test_canonical_form_does_not_depend_on_the_order_of_keys():
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    assert canonical({"a": 1}) != canonical({"a": True})


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["a", "b", ""]))
KEYS = st.sampled_from(["x", "y", "z.w"])
CONDITIONS = st.one_of(
    st.tuples(KEYS, SCALARS),
    st.tuples(KEYS, st.fixed_dictionaries({"in": st.lists(SCALARS, min_size=1, max_size=3)})),
    st.tuples(KEYS, st.fixed_dictionaries({"gt": st.integers(-2, 2), "lte": st.sampled_from([0.5, 2])})),
)
FILTERS = st.recursive(
    st.lists(CONDITIONS, max_size=2).map(dict),
    lambda inner: st.one_of(
        inner.map(lambda f: {"not": f}), st.lists(inner, min_size=1, max_size=3).map(lambda f: {"any": f})
    ),
    max_leaves=5,
)
PAYLOADS = st.fixed_dictionaries(
    {},
    optional={
        "x": SCALARS | st.lists(SCALARS, max_size=3),
        "y": SCALARS,
        "z": SCALARS | st.fixed_dictionaries({"w": SCALARS}),
    },
)


def same(one, other):
    """JSON equality: the written forms agree (no floats are drawn that equal a whole number)."""
    return json.dumps(one) == json.dumps(other)


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def naive(filter_, payload):
    """The language's definition, condition by condition."""
    for key, wanted in filter_.items():
        if key == "not":
            holds = not naive(wanted, payload)
        elif key == "any":
            holds = any(naive(choice, payload) for choice in wanted)
        else:
            holds = naive_condition(key, wanted, payload)
        if not holds:
            return False
    return True


def naive_condition(key, wanted, payload):
    for step in key.split("."):
        if not isinstance(payload, dict) or step not in payload:
            return False
        payload = payload[step]
    values = payload if isinstance(payload, list) else [payload]
    if not isinstance(wanted, dict):
        return any(same(value, wanted) for value in values)
    if "in" in wanted:
        return any(same(value, choice) for value in values for choice in wanted["in"])
    return any(is_number(value) and wanted["gt"] < value <= wanted["lte"] for value in values)


@given(filter_=FILTERS, payload=PAYLOADS)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_filters_agree_with_the_definition(filter_, payload):
    assert compile_filter(filter_)(payload) is naive(filter_, payload)
