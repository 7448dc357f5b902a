"""Globs, against a matcher that walks pattern and name side by side."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.glob import matcher


def walk(pattern: str, name: str, *, start: bool = True) -> bool:
    """Whether a pattern of letters, ``*``, ``?``, ``/`` and ``**`` matches; ``start``: a folder begins here."""
    if not pattern:
        return not name
    if pattern.startswith("**/"):
        rest = pattern[3:]
        if start and walk(rest, name):
            return True
        return any(walk(rest, name[index + 1 :]) for index, char in enumerate(name) if char == "/")
    if pattern.startswith("**"):
        return any(walk(pattern[2:], name[index:], start=False) for index in range(len(name) + 1))
    if pattern[0] == "*":
        within = name.partition("/")[0]
        return any(walk(pattern[1:], name[index:], start=False) for index in range(len(within) + 1))
    if not name or (pattern[0] != name[0] and (pattern[0] != "?" or name[0] == "/")):
        return False
    return walk(pattern[1:], name[1:], start=pattern[0] == "/")


@settings(deadline=None, max_examples=500)
@given(
    pattern=st.lists(st.sampled_from(["a", "b", "*", "?", "/", "**", "**/", "/**/"]), min_size=1, max_size=6),
    name=st.text("ab/", max_size=8),
)
def test_stars_match_as_the_walk_says(pattern: list[str], name: str) -> None:
    text = "".join(pattern)
    if "***" in text:
        text = text.replace("***", "**")
    if "***" in text:
        return
    expected = walk(text, name if "/" in text else name.rpartition("/")[2])
    assert matcher([text])(name) == expected


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.jpg", ["a.jpg", "x/y/a.jpg", "s3://b/c.jpg"], ["a.JPG", "a.jpg/b", "a.jpeg"]),
        ("2024/*.jpg", ["2024/a.jpg"], ["2024/b/a.jpg", "x/2024/a.jpg"]),
        ("**/2024/*.jpg", ["2024/a.jpg", "x/y/2024/a.jpg"], ["12024/a.jpg"]),
        ("train/**", ["train/a", "train/b/c"], ["train", "mytrain/a"]),
        ("s3://bucket/**/*.png", ["s3://bucket/a.png", "s3://bucket/x/y/a.png"], ["s3://bucketeer/a.png"]),
        ("[ab]-?.jpg", ["a-1.jpg", "x/b-2.jpg"], ["c-1.jpg", "a-12.jpg"]),
        ("[!a-c].jpg", ["d.jpg", "x/^.jpg"], ["a.jpg", "b.jpg", "c.jpg"]),
        ("a+b (1)#%.jpg", ["a+b (1)#%.jpg"], ["aab (1)#%.jpg"]),
        ("[x.jpg", ["[x.jpg"], ["x.jpg"]),
        ("[^a].jpg", ["^.jpg", "a.jpg"], ["b.jpg"]),
    ],
)
def test_a_pattern_without_slash_is_about_the_last_part_and_one_with_it_about_the_whole(
    pattern: str, matching: list[str], others: list[str]
) -> None:
    matches = matcher([pattern])
    assert [name for name in matching if not matches(name)] == []
    assert [name for name in others if matches(name)] == []
