"""Folders and globs: which paths they name. Pure text.

A pattern is a folder (it ends in a slash and means all files in and below it) or a glob, in which ``*`` and ``?`` stay
within one segment of a path, ``[abc]`` is one of these characters and a segment ``**`` is any number of folders. As
in a shell, wildcards do not begin with a dot unless the pattern does.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

_WILD = re.compile(r"[*?\[]")
ANY_FOLDERS = "**"
_PRIVATE = ("_", ".")
"""Names that begin so are not data to readers of data sets such as pyarrow and Spark; our own manifest among them."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A folder or glob, taken apart.

    Attributes:
        root: the leading folders without wildcards, with a slash at the end; may be empty.
        segments: the rest of a glob; empty for a folder.
    """

    root: str
    segments: tuple[str, ...]

    @property
    def is_folder(self) -> bool:
        """Whether everything below the root is meant."""
        return not self.segments

    def may_hold(self, folder: str, *, everything: bool) -> bool:
        """Whether files below `folder`, seen from the root, may be meant; no promise that there are any."""
        names = folder.split("/")
        if self.is_folder:
            return everything or not is_private(names[-1])
        for name, segment in zip(names, self.segments, strict=False):
            if segment == ANY_FOLDERS:
                return not names[-1].startswith(".")
            if not segment_matches(name, segment):
                return False
        return len(names) < len(self.segments)

    def matches(self, relative: str, *, everything: bool) -> bool:
        """Whether a file at `relative`, seen from the root, is meant."""
        names = relative.split("/")
        if self.is_folder:
            return everything or not any(name.startswith(_PRIVATE) for name in names)
        # At its end, ** means files and not only the folders that they are in.
        ending = ("*",) if self.segments[-1] == ANY_FOLDERS else ()
        return _match(names, self.segments + ending)


def split_pattern(path: str) -> Pattern | None:
    """`path` as a pattern, or None if it is the name of one file."""
    segments = path.split("/")
    for index, segment in enumerate(segments):
        if _WILD.search(segment):
            if segments[-1] == "":
                segments[-1] = ANY_FOLDERS  # a folder by a glob: all that is below
            root = "/".join(segments[:index])
            return Pattern(root + "/" if index else "", tuple(segments[index:]))
    return Pattern(path, ()) if path.endswith("/") else None


def is_private(name: str) -> bool:
    """Whether a folder's content of that name is left out."""
    return name.startswith(_PRIVATE)


def segment_matches(name: str, segment: str) -> bool:
    """Whether one name meets one segment of a glob."""
    if name.startswith(".") and not segment.startswith("."):
        return False
    return fnmatch.fnmatchcase(name, segment)


def _match(names: list[str], segments: tuple[str, ...]) -> bool:
    """Dynamic programming over prefixes, so that many ``**`` cost no more than the product of the lengths."""
    reached = {0}  # segments that are used up by the names so far
    for position, name in enumerate(names):
        is_last = position == len(names) - 1
        following: set[int] = set()
        for index in _past_empty(reached, segments):
            if index == len(segments):
                continue
            if segments[index] == ANY_FOLDERS:
                if not name.startswith("."):
                    following.add(index)
            elif segment_matches(name, segments[index]):
                following.add(index + 1)
        if is_last:
            return len(segments) in following
        reached = following
    return False


def _past_empty(reached: set[int], segments: tuple[str, ...]) -> set[int]:
    """`reached`, and what is reached from there where ``**`` stands for no folder at all."""
    result = set()
    for start in reached:
        index = start
        result.add(index)
        while index < len(segments) and segments[index] == ANY_FOLDERS:
            index += 1
            result.add(index)
    return result
