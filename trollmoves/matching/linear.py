"""Regular expressions of file name patterns, matched in linear time.

Python's ``re`` tries all divisions of a name between the fields, which takes exponential time for some names. Here an
expression is a list of parts: one for each field, each wildcard and each literal text. Where the first division that
``re`` finds is the only useful one, it is made final by an atomic group. If other fields remain, ``re`` only gets names
that are short enough for it. Longer ones are matched by a program that never repeats a step (the BitState algorithm of
RE2). Both give the same groups as ``re``.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MAX_LENGTH = 4096  # characters of a name; longer paths do not exist on Linux
MAX_RE_STEPS = 200_000  # steps of ``re`` for one name, about 2 ms; longer names of ambiguous expressions go elsewhere
MAX_STEPS_PER_CHARACTER = 100  # with a field that occurs twice; beyond them, a name does not match

_parser: Any = importlib.import_module("re._parser")
_REFERENCE = re.compile(r"\(\?P=(\w+)\)")
_CATEGORIES: Mapping[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_NOT_SPACE": lambda char: not char.isspace(),
    "CATEGORY_SPACE": str.isspace,
}

Groups = tuple[str | None, ...]
Step = tuple[str, Any, Any]
_Branch = tuple[int, int, tuple[int, ...]]  # step, position in the name, starts and ends of the groups so far


class LinearExpression:
    """A regular expression that takes linear time. Thread-safe. Raises re.error or OverflowError if it is invalid.

    Args:
        parts: the expression in parts. A reference to a group is a part.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        text, ambiguous = _with_atomic_groups([_Part.of(part, parts) for part in parts if part])
        self._re = re.compile(text, re.DOTALL)
        self._max_re_length = int(MAX_RE_STEPS ** (1 / (ambiguous + 1))) if ambiguous else MAX_LENGTH
        self._parts = parts
        self.groupindex: Mapping[str, int] = {name: number - 1 for name, number in self._re.groupindex.items()}

    def groups(self, name: str) -> Groups | None:
        """Return the groups in a name (indexes: ``groupindex``); None if the whole name does not match."""
        if len(name) <= self._max_re_length:
            found = self._re.fullmatch(name)
            return found.groups() if found else None
        return self._program.run(name) if len(name) <= MAX_LENGTH else None

    @functools.cached_property
    def _program(self) -> _Program:
        return _Program("".join(self._parts))


class _Part(NamedTuple):
    """One part of an expression. ``repeated`` is the node of its character class, if it only repeats one."""

    text: str
    group: str
    is_fixed: bool  # always matches the same number of characters
    literal: str  # the text, if it is one
    is_lazy: bool = False
    optional: Any = None  # the node of an optional character before the repeated ones
    repeated: Any = None

    @classmethod
    def of(cls, text: str, parts: Sequence[str]) -> _Part:
        reference = _REFERENCE.fullmatch(text)
        if reference:  # as long as the group
            group = next(part for part in parts if part.startswith(f"(?P<{reference[1]}>"))
            return cls(text, "", cls.of(group, ()).is_fixed, "")
        parsed = _parser.parse(text, re.DOTALL)
        nodes, group = list(parsed), next(iter(parsed.state.groupdict), "")
        if group:
            nodes = list(nodes[0][1][3])
        low, high = parsed.getwidth()
        if low == high:
            is_literal = all(str(op) == "LITERAL" for op, _ in nodes)
            return cls(text, group, True, "".join(chr(char) for _, char in nodes) if is_literal else "")
        optional = None
        if len(nodes) == 2 and str(nodes[0][0]) == "MAX_REPEAT" and nodes[0][1][:2] == (0, 1):
            optional = _single(nodes.pop(0)[1][2])
        op, value = nodes[0]
        repeated = _single(value[2]) if len(nodes) == 1 and str(op) in ("MIN_REPEAT", "MAX_REPEAT") else None
        return cls(text, group, False, "", str(op) == "MIN_REPEAT" and value[0] == 0, optional, repeated)

    def may_contain(self, char: str) -> bool:
        """Return True if this part, which is not fixed, may contain a character."""
        nodes = [node for node in (self.optional, self.repeated) if node is not None]
        return self.repeated is None or any(_predicate(*node)(char) for node in nodes)

    def absorbs(self, other: _Part, between: Sequence[_Part]) -> bool:
        """Return True if this part may contain each text of ``other`` and of the fixed parts between the two."""
        if not self.is_lazy or self.optional or self.repeated is None:
            return False
        if str(self.repeated[0]) == "ANY":
            return True
        return other.repeated == self.repeated and all(
            part.literal and all(map(self.may_contain, part.literal)) for part in between
        )


def _single(nodes: Any) -> Any:
    """Return the only node of a sequence if it matches one character, else None."""
    single = len(nodes) == 1 and str(nodes[0][0]) in ("LITERAL", "NOT_LITERAL", "ANY", "IN")
    return (nodes[0][0], nodes[0][1]) if single else None


def _with_atomic_groups(parts: Sequence[_Part]) -> tuple[str, int]:
    """Return the expression with atomic groups, and the number of parts that still have several divisions."""
    referenced = {match[1] for part in parts if (match := _REFERENCE.fullmatch(part.text))}
    variable = [number for number, part in enumerate(parts) if not part.is_fixed]
    text = "".join(part.text for part in (parts[: variable[0]] if variable else parts))
    ambiguous = 0
    for start, end in zip(variable, [*variable[1:], None], strict=False):
        piece = "".join(part.text for part in parts[start:end])
        if parts[start].repeated is None:
            ambiguous += 2  # it has several parts itself
        elif end is not None:
            if _first_division_is_final(parts[start : end + 1], referenced):
                piece = f"(?>{piece})"
            else:
                ambiguous += 1
        text += piece
    return text, ambiguous


def _first_division_is_final(parts: Sequence[_Part], referenced: set[str]) -> bool:
    """Return True if the first match of a variable part and the fixed ones after it is the only one to try.

    Either the variable part must end at the next character. Or the next variable part (the last one of ``parts``) can
    absorb the text by which a later match is longer, and no reference depends on it.
    """
    first, *between, following = parts
    if between and between[0].literal and not first.may_contain(between[0].literal[0]):
        return True
    is_referenced = any(part.group in referenced for part in parts)
    return first.is_lazy and not first.optional and not is_referenced and following.absorbs(first, between)


class _Program:
    """The steps of an expression, run with backtracking that takes no branch twice at one character."""

    def __init__(self, text: str) -> None:
        parsed = _parser.parse(text, re.DOTALL)
        self._n_groups = parsed.state.groups  # one more, so that marks are never empty
        self._steps: list[Step] = []
        self._referenced = set[int]()
        self._compile(parsed)
        self._steps.append(("match", None, None))

    def run(self, name: str) -> Groups | None:
        """Return the groups in a name, None if the whole name does not match."""
        branches: list[_Branch] = [(0, 0, (-1,) * (2 * self._n_groups))]
        seen = set[tuple[int, ...]]()
        budget = MAX_STEPS_PER_CHARACTER * (len(name) + 1)
        while branches and (not self._referenced or len(seen) < budget):
            marks = self._follow(name, branches, seen)
            if marks:
                return tuple(
                    name[start:end] if end >= 0 else None
                    for start, end in zip(marks[:-2:2], marks[1:-2:2], strict=True)
                )
        return None

    def _follow(self, name: str, branches: list[_Branch], seen: set[tuple[int, ...]]) -> tuple[int, ...]:
        """Follow the last branch; return its marks, or an empty tuple if the whole name does not match."""
        at, position, marks = branches.pop()
        while True:
            kind, first, second = self._steps[at]
            at += 1
            if kind == "branch":
                key = (at, position, *(marks[mark] for mark in self._referenced))
                if key in seen:
                    return ()
                seen.add(key)
                branches.append((second, position, marks))
                at = first
            elif kind == "jump":
                at = first
            elif kind == "mark":
                marks = (*marks[:first], position, *marks[first + 1 :])
            elif kind == "match":
                return marks if position == len(name) else ()
            else:
                width = self._width(kind, first, name, position, marks)
                if width < 0:
                    return ()
                position += width

    @staticmethod
    def _width(kind: str, value: Any, name: str, position: int, marks: Sequence[int]) -> int:
        """Return the number of characters that a step matches, negative if it does not match."""
        if kind == "char":
            return 1 if position < len(name) and value(name[position]) else -1
        if kind == "ahead":  # that many characters must follow
            return 0 if position + value <= len(name) else -1
        text = name[marks[2 * value] : marks[2 * value + 1]] if kind == "reference" else value
        return len(text) if name.startswith(text, position) else -1

    def _compile(self, nodes: Any) -> None:
        for op, value in nodes:
            self._compile_node(str(op), value)

    def _compile_node(self, op: str, value: Any) -> None:
        if op in ("MIN_REPEAT", "MAX_REPEAT"):
            self._compile_repeat(*value, lazy=op == "MIN_REPEAT")
        elif op == "SUBPATTERN":
            mark = 2 * (value[0] - 1) if value[0] else -1
            self._mark(mark)
            self._compile(value[3])
            self._mark(mark + 1 if value[0] else -1)
        elif op == "BRANCH":
            self._compile_branches(value[1])
        elif op == "ASSERT":
            self._steps.append(("ahead", value[1].getwidth()[0], None))
        elif op == "GROUPREF":
            self._referenced |= {2 * (value - 1), 2 * (value - 1) + 1}
            self._steps.append(("reference", value - 1, None))
        elif op == "LITERAL":
            self._steps.append(("text", chr(value), None))
        else:
            self._steps.append(("char", _predicate(op, value), None))

    def _mark(self, mark: int) -> None:
        if mark >= 0:
            self._steps.append(("mark", mark, None))

    def _compile_branches(self, branches: Any) -> None:
        ends = []
        for branch in branches[:-1]:
            start = len(self._steps)
            self._steps.append(("branch", start + 1, 0))
            self._compile(branch)
            ends.append(len(self._steps))
            self._steps.append(("jump", 0, None))
            self._steps[start] = ("branch", start + 1, len(self._steps))
        self._compile(branches[-1])
        for end in ends:
            self._steps[end] = ("jump", len(self._steps), None)

    def _compile_repeat(self, low: int, high: Any, nodes: Any, *, lazy: bool) -> None:
        for _ in range(low):
            self._compile(nodes)
        is_unlimited = str(high) == "MAXREPEAT"
        for _ in range(1 if is_unlimited else high - low):
            start = len(self._steps)
            self._steps.append(("branch", 0, 0))
            self._compile(nodes)
            if is_unlimited:
                self._steps.append(("jump", start, None))
            after = len(self._steps)
            self._steps[start] = ("branch", after, start + 1) if lazy else ("branch", start + 1, after)


def _predicate(op: object, value: Any) -> Callable[[str], bool]:
    """Return the function that tests one character by a node of the parser."""
    name = str(op)
    if name == "ANY":
        return lambda char: True  # noqa: ARG005
    if name == "LITERAL":
        return chr(value).__eq__
    if name == "NOT_LITERAL":
        return chr(value).__ne__
    if name == "RANGE":
        return lambda char: value[0] <= ord(char) <= value[1]
    if name == "CATEGORY":
        return _CATEGORIES[str(value)]
    is_negated = str(value[0][0]) == "NEGATE"
    tests = [_predicate(*node) for node in value[is_negated:]]
    return lambda char: any(test(char) for test in tests) != is_negated
