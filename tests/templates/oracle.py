"""jinja2 set up as transformers' apply_chat_template sets it up: what our interpreter must equal byte for byte."""
import copy
import datetime
import json

import jinja2
import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """The {% generation %} block, which marks the model's words for training; its text is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    def _support(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment():
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda f: datetime.datetime.now().strftime(f)
    return environment


def compile(template):
    """A compiled template, or the error's text."""
    try:
        return make_environment().from_string(template)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def render_compiled(compiled, context):
    """(text, None), or (None, the error's text)."""
    if isinstance(compiled, str):
        return None, compiled
    try:
        # A copy: some filters change lists in place (indent does `s += ...`).
        return compiled.render(**copy.deepcopy(context)), None
    except Exception as error:  # jinja2 lets Python's own errors through: all of them are refusals
        return None, f"{type(error).__name__}: {error}"


def render(template, context):
    return render_compiled(compile(template), context)
