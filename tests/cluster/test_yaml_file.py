"""YAML as people write it: what PyYAML makes of it, or a line that says what is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.yaml_file import BYTES_MAX, YamlError, parse_yaml, read_yaml

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=12,
)


@given(plain)
def test_what_says_nothing_twice_is_read_as_ever(document: Any) -> None:
    text = yaml.safe_dump(document)
    assert parse_yaml(text) == yaml.safe_load(text) == document


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\na: 2", 2, "a"),
        ("a: 1\n'a': 1", 2, "a"),
        ("x: {b: 1, c: 2,\n b: 3}", 2, "b"),
        ("- - {n: 1}\n  - n: 1\n    m: 2\n    n: 1", 4, "n"),
        ("7: 1\n8: 1\n7: 2", 3, "7"),
        ("base: &b {a: 1}\ntop:\n  <<: *b\n  a: 2\n  a: 3", 5, "a"),
    ],
)
def test_a_key_that_is_there_twice(text: str, line: int, key: str) -> None:
    with pytest.raises(YamlError) as told:
        parse_yaml(text)
    assert str(told.value) == f"line {line}: the key {key!r} is there twice"


def test_what_is_merged_in_is_there_to_be_overridden() -> None:
    text = "base: &b {a: 1, c: 1}\nmid: &m {<<: *b, a: 2}\ntop: {<<: *m, c: 3}\nagain: {<<: [*m, *b]}"
    read = parse_yaml(text)
    assert read == yaml.safe_load(text)
    assert read["top"] == {"a": 2, "c": 3}


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    for read, said in (
        (b"\xff\xfe\x00", "not YAML"),
        (b"a: [", "not YAML"),
        (b"k: 1\nk: 2", "line 2: the key 'k' is there twice"),
        (b"#" * (BYTES_MAX + 1), f"expected at most {BYTES_MAX} bytes"),
    ):
        path.write_bytes(read)
        with pytest.raises(YamlError) as told:
            read_yaml(path)
        assert str(told.value).startswith(f"{path}: {said}")
        assert "\n" not in str(told.value)
    with pytest.raises(YamlError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
