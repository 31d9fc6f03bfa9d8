"""Jinja for chat templates, closed in: no attribute that reaches Python; steps, seconds and sizes bounded; marks kept.

A template is a stranger's program. Jinja's own sandbox keeps it from attributes and from changing what it is given;
here each loop turn, call, filter and operation is counted, and what could grow without end is measured before it is
done. Every place where Jinja makes text of texts goes through `traced`, so that a message's characters stay known as
such. Globals, filters and options are those that the field's templates expect: trimmed blocks, loop controls,
`generation` blocks, `raise_exception`, `strftime_now`, a `tojson` without HTML escapes.
"""
# pyright: basic

import datetime
import json
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, operators
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, _PassArg

from temaki.tokens import traced
from temaki.tokens.budget import SIZE, Budget, Refused

LEFT_OUT = frozenset({"forceescape", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"})
"""Filters of Jinja's that no chat template needs: HTML, chance, and slow ones."""
HANDED_ON = frozenset(
    {"attr", "batch", "d", "default", "dictsort", "first", "groupby", "items", "last", "list", "map", "max", "min"}
    | {"reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort", "sum", "unique"}
)
"""Filters that hand on what they were given, marks and all."""
WITHOUT_LOOKING = frozenset(
    {"batch", "count", "d", "default", "first", "items", "join", "last", "length", "list", "map", "reject"}
    | {"rejectattr", "reverse", "select", "selectattr", "slice", "tojson"}
)
"""Filters that do not compare or write what is in a list, or measure it themselves."""
FOLLOWED = frozenset(
    {"capitalize", "center", "join", "lower", "replace", "safe", "string", "tojson", "trim", "truncate", "upper"}
)
"""Filters whose marks are right as they come: made by methods of a text alone."""
WITHOUT_MARKS = frozenset({"encode", "maketrans", "translate"})
"""Methods of text that would lose the marks, and are not offered."""

SCOPES = frozenset({"_loop_vars", "_block_vars"})
"""What Jinja's own code adds to the arguments of a call."""


class Raised(jinja2.TemplateRuntimeError):
    """What a template says against the messages."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template. Renderings come one after another, each counted for itself."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        self.blocks = False
        """Whether the template says itself what is generated."""
        self._moment: datetime.datetime | None = None
        self.budget = Budget()
        self._lock = threading.Lock()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", Generation],
            finalize=self.written,
            cache_size=0,
        )
        self.code_generator_class = Generator
        self.concat = self.joined  # type: ignore[assignment]
        self.globals = {
            "range": self.globals["range"],
            "dict": lambda *args, **named: dict(*args, **named),
            "namespace": Names,
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "raise_exception": self._raise,
            "strftime_now": self._now,
        }
        own = {"tojson": self._to_json, "safe": self.written, "join": self._join, "replace": self._replace}
        offered = {name: one for name, one in (self.filters | own).items() if name not in LEFT_OUT}
        self.filters = {name: self._guarded(name, one) for name, one in offered.items()}
        self.tests = {name: self._measured(one) for name, one in self.tests.items()}

    def render(
        self, template: jinja2.Template, values: dict[str, Any], moment: datetime.datetime | None = None
    ) -> traced.Traced:
        """What a template of this environment writes; `moment` is what `strftime_now` tells, by default the time it is.

        Raises Refused, Raised, and what faults of a template raise.
        """
        with self._lock:
            self._moment = moment
            self.budget.start()
            try:
                return self.joined(template.root_render_func(template.new_context(values)))
            finally:
                self.budget.end()

    def step(self) -> None:
        """A turn of a loop."""
        self.budget.step()

    def compared(self, value: Any) -> Any:
        """The value, which is about to be compared."""
        return self.budget.compared(value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item or attribute; what is looked up by is measured."""
        return super().getitem(obj, self.budget.compared(argument))

    def written(self, value: Any) -> str:
        """A value as text; a text is left as it is."""
        if isinstance(value, str):
            return value
        if value is None or isinstance(value, bool | int | float | jinja2.Undefined):
            return str(value)
        self.budget.measured(value)
        return traced.blended(str(value), value)

    def joined(self, parts: Iterable[str]) -> traced.Traced:
        """Texts, one after another."""
        known: list[str] = []
        size = 0
        for part in parts:
            known.append(part)
            size += len(part)
            if size > SIZE:
                break
        self.budget.spend(size)
        return traced.joined(known)

    def concatenated(self, values: Iterable[Any]) -> str:
        """What `~` makes: the values as text, one after another."""
        self.budget.step()
        return self.joined(map(self.written, values))

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """A slice of a text or list."""
        self.budget.step()
        found = value[start:stop:step]
        self.budget.spend(len(found))
        return found

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Refuses, beside what Jinja refuses, methods in which marks are lost."""
        return super().is_safe_attribute(obj, attr, value) and not (isinstance(obj, str) and attr in WITHOUT_MARKS)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`format` and `format_map` of a text, through Jinja's safe formatter, bounded and marked."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        def formatted(*args: Any, **named: Any) -> str:  # not given SCOPES: Jinja leaves them out for functions
            self.budget.format(value.__self__, "{", (args, named))
            return traced.blended(str.__str__(safe(*args, **named)), value.__self__, args, named)

        return formatted

    def call(__self, __context: Any, __obj: Any, *args: Any, **named: Any) -> Any:  # noqa: N805
        """Call what a template calls, counted; what a method of a text makes of marked texts is marked."""
        __self.budget.step()
        text = __obj.__self__ if isinstance(__obj, types.BuiltinMethodType | types.MethodType) else None
        given = {name: value for name, value in named.items() if name not in SCOPES}
        __self._measure(__obj, (*args, *given.values()))
        if not isinstance(text, str):
            found = super().call(__context, __obj, *args, **named)
        elif __obj.__name__ == "join":
            found = __self._join(*args, d=text, **given)
        elif __obj.__name__ == "replace":
            found = __self._replace(text, *args, **given)
        else:
            __self.budget.arguments(__obj.__name__, text, (*args, *given.values()))
            found = super().call(__context, __obj, *args, **named)
            if type(found) is str:
                found = traced.blended(found, text, args, given)
        if isinstance(found, str | list | tuple | dict):
            __self.budget.spend(len(found))
        return found

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation between two values, counted and bounded."""
        self.budget.operation(operator, left, right)
        if operator == "%" and isinstance(left, str):
            self.budget.format(left, "%", right)
            return traced.blended(traced.plain(left) % right, left, right)
        return super().call_binop(context, operator, left, right)

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        """The code of a parsed template, with a step counted at each turn of a loop."""
        for node in source.find_all(nodes.EvalContextModifier):
            raise jinja2.TemplateSyntaxError("a chat template cannot switch escaping", node.lineno)
        for loop in source.find_all(nodes.For):
            call = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(call))
            loop.set_lineno(loop.lineno)
        source.set_environment(self)
        return super()._generate(source, name, filename, defer_init)

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter, counted and bounded, whose text is marked where it was made of marked ones."""
        passed = _PassArg.from_obj(function)

        def guarded(*args: Any, **named: Any) -> Any:
            self.budget.step()
            sources = args if passed is None else args[1:]
            self.budget.arguments(name, sources[0] if sources else None, (*sources[1:], *named.values()))
            if name == "format" and sources:
                self.budget.format(self.written(sources[0]), "%", (sources[1:], named))
            for value in (*sources[name in WITHOUT_LOOKING :], *named.values()):
                self.budget.compared(value)
            found = function(*args, **named)
            if isinstance(found, types.GeneratorType):
                return self._counted(found)
            if isinstance(found, str | list | tuple | dict):
                self.budget.spend(len(found))
            if not isinstance(found, str) or name in HANDED_ON:
                return found
            if name in FOLLOWED and isinstance(found, traced.Traced):
                return found
            return traced.blended(str.__str__(found), sources, named)

        if passed is not None:
            guarded.jinja_pass_arg = passed  # type: ignore[attr-defined]
        return guarded

    def _measure(self, called: Any, given: Iterable[Any]) -> None:
        """Measure what a call may compare, hash or write: its arguments, and what the method belongs to."""
        if not isinstance(called, Macro):
            owner = called.__self__ if isinstance(called, types.BuiltinMethodType) else None
            for value in (owner, *given):
                self.budget.compared(value)

    def _measured(self, function: Callable[..., bool]) -> Callable[..., bool]:
        """A test, what it may compare measured."""
        passed = _PassArg.from_obj(function)

        def measured(*args: Any) -> bool:
            for value in args if passed is None else args[1:]:
                self.budget.compared(value)
            return function(*args)

        if passed is not None:
            measured.jinja_pass_arg = passed  # type: ignore[attr-defined]
        return measured

    def _counted(self, items: Iterable[Any]) -> Iterable[Any]:
        for item in items:
            self.budget.step()
            yield self.budget.compared(item)

    def _join(self, values: Iterable[Any], d: str = "", attribute: Any = None) -> traced.Traced:
        """The filter and method of that name."""
        if attribute is not None:
            values = map(make_attrgetter(self, attribute), values)
        if isinstance(values, str):
            self.budget.apart("join", values)
        texts = [self.written(value) for value in values]
        self.budget.spend(sum(map(len, texts)) + len(d) * len(texts))
        return traced.Traced(d, traced.marks(d)).join(texts)

    def _replace(self, value: Any, old: str, new: str, count: int | None = None) -> traced.Traced:
        """The filter and method of that name."""
        text, old, new = self.written(value), self.written(old), self.written(new)
        self.budget.spend(len(text) + text.count(old) * len(new))
        return traced.Traced(text, traced.marks(text)).replace(old, new, -1 if count is None else count)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> traced.Traced:
        """The filter of that name: JSON as it is, nothing escaped for HTML."""
        if (indent if isinstance(indent, int) else len(indent or "")) > 16 or len("".join(separators or ())) > 16:
            raise Refused("the template writes JSON with more than 16 characters between its parts")
        self.budget.spend(64 * self.budget.measured(value))
        made = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return traced.blended(made, value)

    def _now(self, how: str) -> str:
        moment = self._moment or datetime.datetime.now()
        return traced.blended(moment.strftime(str.__str__(how)), how)

    def _raise(self, message: Any = "") -> str:
        raise Raised(str(message))


class Generator(CodeGenerator):
    """Writes what makes text of texts as calls of the sandbox."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802
        """`a ~ b`."""
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Any) -> None:  # noqa: N802
        """`a < b == c`, what is compared measured."""
        self.write("(environment.compared(")
        self.visit(node.expr, frame)
        for op in node.ops:
            self.write(f") {operators[op.op]} environment.compared(")
            self.visit(op.expr, frame)
        self.write("))")

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:  # noqa: N802
        """`{a: b}`, keys measured."""
        self.write("{")
        for item in node.items:
            self.write("environment.compared(")
            self.visit(item.key, frame)
            self.write("): ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("}")

    def visit_Getitem(self, node: nodes.Getitem, frame: Any) -> None:  # noqa: N802
        """`a[b:c:d]`; anything else as Jinja does it."""
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.sliced(")
        self.visit(node.node, frame)
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            if bound is None:
                self.write("None")
            else:
                self.visit(bound, frame)
        self.write(")")


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: what the model is to learn to write."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        """The block as a call of `mark` with its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        self.environment.blocks = True  # type: ignore[attr-defined]
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Callable[[], str]) -> str:
        """What the block wrote, marked."""
        return traced.marked(caller(), traced.GENERATION)


class Names(Namespace):
    """A namespace whose names do not begin with an underscore, which reach into Python."""

    def __init__(*args: Any, **named: Any) -> None:  # `self` may be a name
        given = dict(*args[1:], **named)
        for name in given:
            _check_name(name)
        Namespace.__init__(args[0], given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the template names something {name!r} in a namespace")
