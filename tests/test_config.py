"""Options from tables and back: recipes set what they name, and a misspelt or misplaced value is a sentence."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sims.config import JSON, RECIPES, convert, differences, from_dict, load_recipe, nearest, override, to_dict, to_toml
from sims.errors import UserError
from sims.experiments.options import ImproveOptions
from sims.sampling import SamplerOptions


@dataclass(frozen=True)
class Inner:
    count: int = 1
    ratio: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    place: Path = Path("runs")
    limit: int | None = None
    share: float | None = None
    on: bool = False
    sizes: tuple[int, ...] = (1, 2)
    words: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


text = st.text(st.characters(exclude_categories=("C",)), max_size=20)
numbers = st.floats(allow_nan=False)
inners = st.builds(Inner, st.integers(-(2**63), 2**64 - 1), numbers, st.sampled_from(["a", "b"]))
outers = st.builds(
    Outer,
    name=text,
    place=text.filter(lambda name: "/" not in name).map(lambda name: Path("folder") / name),
    limit=st.none() | st.integers(-(2**63), 2**64 - 1),
    share=st.none() | numbers,
    on=st.booleans(),
    sizes=st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4).map(tuple),
    words=st.lists(text, max_size=4).map(tuple),
    inner=inners,
)


@given(outers)
def test_options_survive_plain_values(options: Outer) -> None:
    assert from_dict(Outer, to_dict(options)) == options


@given(outers)
def test_options_survive_toml(options: Outer) -> None:
    assert from_dict(Outer, tomllib.loads(to_toml(to_dict(options)))) == options


def test_the_options_of_the_main_job_survive_toml() -> None:
    options = ImproveOptions(methods=("base", "sims"), sampler=SamplerOptions(s_churn=1.0, sigma_min=0.01), seed=3)
    assert from_dict(ImproveOptions, tomllib.loads(to_toml(to_dict(options)))) == options
    assert math.isinf(options.sampler.s_max)  # the value that neither JSON nor to_dict keeps as it is


@given(outers, inners)
def test_override_changes_what_it_names_and_nothing_else(options: Outer, inner: Inner) -> None:
    changed = override(options, {"inner": {"ratio": inner.ratio}, "name": "new"})
    assert changed.inner == Inner(options.inner.count, inner.ratio, options.inner.kind)
    assert to_dict(changed) == {**to_dict(options), "name": "new", "inner": to_dict(changed.inner)}


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, float, 3.0),
        ("inf", float, math.inf),
        ("none", int | None, None),
        (None, int | None, None),
        (4, int | None, 4),
        (2, float | None, 2.0),
        ("runs/x", Path, Path("runs/x")),
        ("runs/x", Path | None, Path("runs/x")),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 0.5], tuple[float, ...], (1.0, 0.5)),
        ("b", Literal["a", "b"], "b"),
        (True, bool, True),
    ],
)
def test_convert(value: Any, kind: Any, expected: Any) -> None:
    converted = convert(value, kind, "option")
    assert converted == expected and type(converted) is type(expected)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nmae": "y"}, ["'nmae'", "did you mean 'name'?"]),
        ({"zzzzzz": 1}, ["'zzzzzz'", "known:", "sizes"]),
        ({"inner": {"cuont": 1}}, ["'inner.cuont'", "did you mean 'count'?"]),
        ({"inner": 3}, ["'inner'", "table", "[inner]"]),
        ({"inner": {"kind": "c"}}, ["'inner.kind'", "'c'"]),
        ({"limit": "many"}, ["'limit'", "'many'"]),
        ({"limit": 1.5}, ["'limit'", "1.5"]),
        ({"limit": True}, ["'limit'", "True"]),
        ({"on": 1}, ["'on'", "bool"]),
        ({"sizes": 3}, ["'sizes'", "3"]),
        ({"sizes": [1, "two"]}, ["'sizes[1]'", "'two'"]),
        ({"share": True}, ["'share'", "True"]),
        ({"name": 3}, ["'name'", "3", "str"]),
    ],
)
def test_wrong_values_name_the_option_and_the_value(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        from_dict(Outer, values)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_checks_of_the_options_hold_for_recipes_too() -> None:
    with pytest.raises(UserError, match="rounds is 0"):
        from_dict(ImproveOptions, {"rounds": 0})


def test_nearest_lists_what_is_known_where_nothing_is_near() -> None:
    assert nearest("heum", ["heun", "dpmpp2m"]) == "; did you mean 'heun'?"
    assert nearest("qqq", ["b", "a"]) == "; known: a, b"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_is_valid(path: Path) -> None:
    values = load_recipe(path.stem)
    options = from_dict(ImproveOptions, values)
    assert to_dict(override(options, values)) == to_dict(options)


def test_recipes_by_path_and_their_errors(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seed = 3\n[sampler]\nsteps = 5\n")
    assert load_recipe(str(file)) == {"seed": 3, "sampler": {"steps": 5}}
    file.write_text("seed = \n")
    with pytest.raises(UserError, match=r"mine\.toml is not valid TOML.*line 1"):
        load_recipe(str(file))
    with pytest.raises(UserError, match="no recipe 'digit'; did you mean 'digits'"):
        load_recipe("digit")


@dataclass(frozen=True)
class Document:
    """Plain values in a typed table."""

    about: dict[str, JSON] | None = None
    pairs: tuple[tuple[int, float], ...] = ()
    limits: tuple[float, float | None] = (0.0, None)


def test_plain_values_stay_as_they_are_and_pairs_have_a_type_for_each_place() -> None:
    about = {"a": [[1, None], {"b": "none"}], "c": {"d": [1.5]}}
    document = convert({"about": about, "pairs": [[1, 2], [3, 4.5]], "limits": [1, None]}, Document, "file")
    assert document == Document(about, ((1, 2.0), (3, 4.5)), (1.0, None))  # type: ignore[arg-type]
    for wrong, words in (({"pairs": [[1.5, 2]]}, r"file.pairs\[0\]\[0\]"), ({"limits": [1, 2, 3]}, "file.limits")):
        with pytest.raises(UserError, match=words):
            convert(wrong, Document, "file")


def test_differences_name_the_place() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": {}}, {"a": {"b": 1, "c": 3, "e": 4}, "d": {"f": 5}}
    assert list(differences(old, new)) == [("a.c", 2, 3), ("a.e", None, 4), ("d", {}, {"f": 5})]
    assert not list(differences(old, {**old}))
