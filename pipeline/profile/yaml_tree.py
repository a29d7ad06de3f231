"""Parse YAML into a tree with the line and column of every key and value.

The syntax is read by PyYAML's C parser, or by its slower Python parser where PyYAML was built without
libyaml. The meaning is YAML 1.2's core schema: `1e-3` is a number,
`on`, `off`, `yes` and `no` are text, keys are always text. Anchors, aliases and the merge key `<<`
work; tags that name types of a programming language do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from pipeline.errors import Fault

BYTES_MAX = 1 << 20
DEPTH_MAX = 64
VALUES_MAX = 20_000

_TAG = "tag:yaml.org,2002:"
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)\Z")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)\Z")
_INT = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_NOT_PRINTABLE = yaml.reader.Reader.NON_PRINTABLE
_SCALAR_FORMS = {"bool": _BOOL, "null": _NULL, "int": _INT, "float": _FLOAT}


@dataclass(frozen=True)
class SourcePlace:
    """A position in a file.

    Attributes:
        file: The file's name; for an override `--set KEY`, for a default `default`.
        line: Counts from 1; 0 means not in a file.
        column: Counts from 1.
    """

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    def fault(self, message: str, *, key: str = "", hint: str = "") -> Fault:
        """Return a fault at this place."""
        return Fault(message, self.file, self.line, self.column, key, hint)


@dataclass(frozen=True)
class Tree:
    """A value of a YAML document.

    Attributes:
        value: A scalar, a `dict[str, Tree]` or a `list[Tree]`.
        place: Where the value is.
        key_place: Where its key is; None for an entry of a list.
    """

    value: Any
    place: SourcePlace
    key_place: SourcePlace | None = None

    @property
    def set_at(self) -> SourcePlace:
        """Return where it was set: the place of its key, for an entry of a list its own."""
        return self.key_place or self.place

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: tree.plain() for key, tree in self.value.items()}
        if isinstance(self.value, list):
            return [tree.plain() for tree in self.value]
        return self.value

    def walk(self, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Tree]]:
        """Yield every tree below this one with its path, parents first."""
        children: Iterator[tuple[str | int, Tree]] = iter(())
        if isinstance(self.value, dict):
            children = iter(self.value.items())
        elif isinstance(self.value, list):
            children = iter(enumerate(self.value))
        for step, tree in children:
            yield (*path, step), tree
            yield from tree.walk((*path, step))

    def nearest(self, path: tuple[str | int, ...]) -> tuple[Tree, int]:
        """Return the deepest tree on the way to `path`, and how many steps of the path lead to it."""
        tree = self
        for count, step in enumerate(path):
            inside = isinstance(tree.value, dict) and step in tree.value
            if isinstance(tree.value, list) and isinstance(step, int):
                inside = 0 <= step < len(tree.value)
            if not inside:
                return tree, count
            tree = tree.value[step]
        return tree, len(path)


class Unreadable(Exception):  # noqa: N818 - the fault is the error
    """The text cannot be read as YAML; `fault` has the reason and the place."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def parse(content: bytes | str, file: str, *, at: SourcePlace | None = None) -> tuple[Tree, list[Fault]]:
    """Parse one YAML document.

    Args:
        content: The document.
        file: The name of the file in places.
        at: One place for everything, for text that is not in a file.

    Returns:
        The tree, and the faults that leave it readable, such as duplicate keys.

    Raises:
        Unreadable: The document cannot be read.
    """
    text = _decoded(content, file, at)
    if bad := _NOT_PRINTABLE.search(text):
        place = at or _place_after(text[: bad.start()], file)
        raise Unreadable(place.fault("not YAML: control characters are not allowed"))
    try:
        _check_depth(text, file, at)
        node = _Loader(text).get_single_node()
    except yaml.YAMLError as error:
        if "nesting depth" in (getattr(error, "problem", None) or ""):
            # libyaml 0.2.6 has a limit of its own, which it meets while it looks ahead.
            _check_depth(text, file, at, _PythonLoader)
        raise Unreadable(_syntax_fault(error, text, file, at)) from None
    builder = _Builder(file, at)
    if node is None:
        return Tree(None, at or SourcePlace(file, 1, 1)), []
    return builder.build(node), builder.faults


class _PythonLoader(yaml.BaseLoader):
    """PyYAML's Python parser, with the trees and marks of the C parser; only its error texts differ."""

    def fetch_stream_end(self) -> None:
        """Give the end of the stream the C parser's mark: in a line of its own."""
        if self.column:
            self.line += 1
            self.column = 0
        super().fetch_stream_end()

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Compose a scalar; the tag `!` without a value is empty text, not null."""
        parser: Any = self  # the stubs have no types for it
        event = parser.peek_event()
        if event.tag == "!" and event.value == "" and not event.style:
            event.implicit = (False, True)
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        return node

    def scan_flow_scalar_non_spaces(self, double: bool, start_mark: Any) -> list[str]:
        """Scan a quoted scalar; refuse escapes outside of Unicode, with the C parser's text and mark."""
        fault = "found invalid Unicode character escape code"
        try:
            chunks: list[str] = super().scan_flow_scalar_non_spaces(double, start_mark)
            "".join(chunks).encode()
        except yaml.scanner.ScannerError as error:
            if error.problem and error.problem_mark and error.problem.startswith("found unknown escape"):
                error.problem_mark.column -= 1  # the backslash
            raise
        except ValueError:  # beyond Unicode, or half of a surrogate pair
            mark = self.get_mark()
            raise yaml.scanner.ScannerError(
                "while parsing a quoted scalar", start_mark, fault, mark
            ) from None
        return chunks


class _Loader(getattr(yaml, "CBaseLoader", _PythonLoader)):  # type: ignore[misc]
    """PyYAML's parser with YAML 1.2's rules for plain scalars."""


for _name, _form in _SCALAR_FORMS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _form, None)
_Loader.add_implicit_resolver(_TAG + "merge", re.compile(r"^<<$"), None)


def _decoded(content: bytes | str, file: str, at: SourcePlace | None) -> str:
    start = at or SourcePlace(file, 1, 1)
    if len(content) > BYTES_MAX:
        raise Unreadable(start.fault(f"more than {BYTES_MAX >> 20} MiB of text: this is not a profile"))
    try:
        if isinstance(content, str):
            content.encode()
            return content
        return content.decode().removeprefix("\ufeff")
    except UnicodeEncodeError:
        raise Unreadable(start.fault("not UTF-8 text")) from None
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()  # type: ignore[union-attr]
        place = at or _place_after(before, file)
        raise Unreadable(
            place.fault(f"not UTF-8 text: byte 0x{error.object[error.start]:02x}", hint="save it as UTF-8")
        ) from None


def _place_after(before: str, file: str) -> SourcePlace:
    return SourcePlace(file, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _place_at(mark: Any, file: str) -> SourcePlace:
    return SourcePlace(file, mark.line + 1, mark.column + 1) if mark else SourcePlace(file, 1, 1)


def _check_depth(
    text: str, file: str, at: SourcePlace | None, loader: type[yaml.BaseLoader] | None = None
) -> None:
    """Refuse deep nesting before the composer runs: its recursion in C would end the process."""
    parser = (loader or _Loader)(text)
    depth = 0
    while parser.check_event():
        event = parser.get_event()
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                place = at or _place_at(event.start_mark, file)
                raise Unreadable(place.fault(f"nested deeper than {DEPTH_MAX} levels"))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _syntax_fault(error: yaml.YAMLError, text: str, file: str, at: SourcePlace | None) -> Fault:
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = at or _place_at(mark, file)
    hint = ""
    lines = text.splitlines()
    if mark and mark.line < len(lines) and lines[mark.line][mark.column : mark.column + 1] == "\t":
        hint = "indent with spaces, not with tabs"
    elif problem.startswith("mapping values are not allowed"):
        hint = 'put quotes around a value that contains ": ", and check the indentation'
    return place.fault(f"not YAML: {problem}" + (f" ({context})" if context else ""), hint=hint)


class _Builder:
    """Turns composed nodes into trees, and collects the faults that leave the rest readable."""

    def __init__(self, file: str, at: SourcePlace | None) -> None:
        self.file = file
        self.at = at
        self.faults: list[Fault] = []
        self._count = 0
        self._above: list[yaml.Node] = []

    def place(self, node: yaml.Node) -> SourcePlace:
        """Return where a node is."""
        return self.at or _place_at(node.start_mark, self.file)

    def build(self, node: yaml.Node) -> Tree:
        """Return the tree of a node."""
        self._count += 1
        if self._count > VALUES_MAX:
            raise Unreadable(self.place(node).fault(f"its aliases unfold to more than {VALUES_MAX} values"))
        if node in self._above:
            raise Unreadable(self.place(node).fault("an alias refers to the value that contains it"))
        if len(self._above) > DEPTH_MAX:
            raise Unreadable(self.place(node).fault(f"nested deeper than {DEPTH_MAX} levels"))
        self._above.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                self._check_tag(node, "map")
                return Tree(self._mapping(node), self.place(node))
            if isinstance(node, yaml.SequenceNode):
                self._check_tag(node, "seq")
                return Tree([self.build(child) for child in node.value], self.place(node))
            assert isinstance(node, yaml.ScalarNode)
            return Tree(self._scalar(node), self.place(node))
        finally:
            self._above.pop()

    def _check_tag(self, node: yaml.Node, name: str) -> None:
        if node.tag != _TAG + name:
            self.faults.append(self.place(node).fault(f"the tag {_short(node.tag)} is not supported"))

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Tree]:
        own: dict[str, Tree] = {}
        merged: dict[str, Tree] = {}
        merge_place: SourcePlace | None = None
        for key_node, value_node in node.value:
            place = self.place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append(place.fault("a key must be text, found a list or a group of keys"))
                continue
            key = key_node.value
            is_merge = key_node.tag == _TAG + "merge"
            earlier = merge_place if is_merge else own[key].key_place if key in own else None
            if earlier is not None:
                since = f"; first in line {earlier.line}" if earlier.line else ""
                self.faults.append(place.fault(f"the key {key!r} appears twice{since}", key=key))
            elif is_merge:
                merge_place = place
                merged = self._merged(value_node)
            else:
                own[key] = replace(self.build(value_node), key_place=place)
        return {**merged, **own}

    def _merged(self, node: yaml.Node) -> dict[str, Tree]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Tree] = {}
        for source in sources:
            if isinstance(source, yaml.MappingNode):
                result = {**self.build(source).value, **result}
            else:
                self.faults.append(self.place(source).fault("<< takes a group of keys, or a list of them"))
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "merge"):
            return text
        form = _SCALAR_FORMS.get(kind) if node.tag.startswith(_TAG) else None
        if form is None:
            self.faults.append(self.place(node).fault(f"the tag {_short(node.tag)} is not supported"))
            return text
        if not form.match(text):
            self.faults.append(self.place(node).fault(f"{text!r} does not fit the tag {_short(node.tag)}"))
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        return self._number(kind, text, node)

    def _number(self, kind: str, text: str, node: yaml.ScalarNode) -> int | float:
        if kind == "int":
            if len(text) > 100:
                self.faults.append(self.place(node).fault(f"a number of {len(text)} digits is too large"))
                return 0
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        number = float(re.sub(r"\.(?=[iInN])", "", text))
        if not math.isfinite(number):
            self.faults.append(self.place(node).fault(f"{text} is not a finite number"))
            return 0.0
        return number


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
