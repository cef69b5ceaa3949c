"""The engine of the rules. A rule is data, and so are the changes that must break it.

A rule about fields lists checks. A check is a field, its condition, and its controls:

    replicas_survive_a_zone = Rule(
        "Why the rule exists.",
        SERVERS,
        Check("spec.replicas", at_least(3), bad(2)),
    )

A rule about more than one field is a function of the object that returns the faults:

    @rule(SERVERS, removed("ConfigMap/settings", "Deployment/order"))
    def config_maps_exist(each: Item) -> list[str]:
        "Why the rule exists."

A control is the smallest change of an overlay that breaks the check: ``bad(value, at, on, says)``
sets the field ``at`` a path ``on`` an object, and the fault then ``says`` a text. By default the
field is that of the check, the object is the example of the rule's objects, and the text is the
object's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.unit.deploy.kubernetes.manifests import GONE, Item, Object, Overlay

# ---- conditions


@dataclass(frozen=True)
class Must:
    """A condition on a value."""

    text: str
    holds: Callable[[Any], bool]
    default: Any = None
    """What Kubernetes takes for an absent field."""


def equal(wanted: Any, default: Any = None) -> Must:
    return Must(f"{wanted!r}", lambda value: bool(value == wanted), default)


def at_least(least: float, default: Any = None) -> Must:
    return Must(f"at least {least:g}", lambda value: value is not None and value >= least, default)


def more_than(limit: float, default: Any = None) -> Must:
    return Must(f"more than {limit:g}", lambda value: value is not None and value > limit, default)


def between(least: float, most: float, default: Any = None) -> Must:
    text = f"{least:g} to {most:g}"
    return Must(text, lambda value: value is not None and least <= value <= most, default)


def one_of(*wanted: Any) -> Must:
    return Must(f"one of {wanted}", lambda value: value in wanted)


def matches(pattern: str) -> Must:
    return Must(f"like {pattern}", lambda value: bool(re.fullmatch(pattern, value or "")))


SET: Final = Must("set", bool)
UNSET: Final = Must("unset", lambda value: not value)


# ---- controls


@dataclass(frozen=True)
class Control:
    """The smallest change that breaks one check."""

    value: Any
    at: str | None = None
    on: str | None = None
    says: str | None = None
    overlay: str | None = None
    """By default the first that has the object: production, else local or the test overlay."""

    def __str__(self) -> str:
        return f"{self.on or ''}:{self.at or ''}"


bad: Final = Control


def removed(title: str, says: str | None = None, overlay: str | None = None) -> Control:
    return Control(GONE, "", title, says, overlay)


def added(new: Object, says: str | None = None, overlay: str | None = None) -> Control:
    return Control(new, "", f"{new['kind']}/{new['metadata']['name']}", says, overlay)


# ---- rules


@dataclass(frozen=True)
class Subjects:
    """The objects that a rule is about, and the one that its controls change."""

    select: Callable[[Overlay], Sequence[Item]]
    example: str = ""

    def where(self, holds: Callable[[Item], bool], example: str | None = None) -> Subjects:
        """Those of them for which this holds."""
        select = self.select
        return Subjects(
            lambda overlay: list(filter(holds, select(overlay))), example or self.example
        )

    def only(self, *overlays: str) -> Subjects:
        """The same in these overlays only."""
        return self.where(lambda each: each.overlay.name in overlays)


class Check:
    """A condition on a field, or on what a function computes from the object.

    The condition is a ``Must``, a value to be equal to, or a function of the object to either.
    """

    def __init__(self, field: str | Callable[[Item], Any], must: Any, *controls: Control) -> None:
        self.field = field
        self.must = must
        self.controls = controls
        self.name = field if isinstance(field, str) else field.__name__.replace("_", " ")

    def __str__(self) -> str:
        return self.name

    def faults(self, item: Item) -> Iterator[str]:
        must = self.must(item) if callable(self.must) else self.must
        must = must if isinstance(must, Must) else equal(must)
        values = item.values(self.field) if isinstance(self.field, str) else [self.field(item)]
        for value in values:
            if not must.holds(must.default if value is None else value):
                yield f"{item.title}: {self.name}: {value!r} is not {must.text}"


class _NoFault(Check):
    """The function of the object must return no fault."""

    def faults(self, item: Item) -> Iterator[str]:
        assert callable(self.field)
        yield from (f"{item.title}: {fault}" for fault in self.field(item))


class Rule:
    """Checks of some objects that belong together."""

    def __init__(self, why: str, of: Subjects, *checks: Check) -> None:
        self.why, self.of, self.checks = why, of, checks

    def faults(self, overlay: Overlay) -> list[str]:
        items = self.of.select(overlay)
        return [fault for check in self.checks for item in items for fault in check.faults(item)]

    def broken_by(
        self, control: Control, check: Check, overlays: Iterable[Overlay]
    ) -> tuple[str, list[str]]:
        """What a control expects, and the faults of its check after the change.

        The change is made in the first of the overlays that has the object, where the rule held.
        """
        on, adds = control.on or self.of.example, control.at == "" and control.value is not GONE
        overlay = next(each for each in overlays if self.of.select(each) and (adds or each.has(on)))
        assert self.faults(overlay) == []
        says = control.says or (on if adds else overlay.the(on).title)
        overlay.change(on, check.name if control.at is None else control.at, control.value)
        items = self.of.select(overlay)
        return says, [fault for item in items for fault in check.faults(item)]


def rule(of: Subjects, *controls: Control) -> Callable[[Callable[[Item], Iterable[Any]]], Rule]:
    """Make a function that returns faults a rule; its docstring says why."""

    def make(function: Callable[[Item], Iterable[Any]]) -> Rule:
        return Rule(function.__doc__ or "", of, _NoFault(function, None, *controls))

    return make


SERVERS: Final = Subjects(lambda overlay: overlay.servers, "Deployment/order")
MIGRATIONS: Final = Subjects(lambda overlay: overlay.migrations, "Job/order-migrate-*")
OWN: Final = Subjects(lambda overlay: overlay.servers + overlay.migrations, "Deployment/order")
"""Servers and migrations: the pods of Tally's image."""
WORKLOADS: Final = Subjects(lambda overlay: overlay.workloads, "Deployment/order")
LASTING: Final = WORKLOADS.where(lambda each: each.kind not in ("Job", "CronJob"))
OBJECTS: Final = Subjects(lambda overlay: overlay.items, "Service/order")
OVERLAY: Final = Subjects(
    lambda overlay: [Item(overlay, {"kind": "Overlay", "metadata": {"name": overlay.name}})]
)
"""The overlay as one object, for what its objects say together."""


def of_kind(kind: str, example: str = "order") -> Subjects:
    return Subjects(lambda overlay: overlay.of_kind(kind), f"{kind}/{example}")


def named(title: str) -> Subjects:
    """The one object of this kind and name, where there is one."""
    return OBJECTS.where(lambda each: each.title == title, title)


def controls_of(rules: dict[str, Rule]) -> list[tuple[str, Check, Control]]:
    """Every control with its check and the name of its rule. Each check must have one."""
    checks = [(name, check) for name, each in rules.items() for check in each.checks]
    for name, check in checks:
        assert check.controls, f"{name}: {check.name} has no control"
    return [(name, check, control) for name, check in checks for control in check.controls]
