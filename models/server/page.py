"""The page /docs: every method with its fields, in plain HTML, which loads nothing from elsewhere."""

from html import escape

from models.server.methods import METHODS, Field, Method

STYLE = "body{font:16px system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td{padding:.2em 1em .2em 0}"


def page(name: str) -> str:
    """HTML of the page for a model of this name."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>OFA</title><style>{STYLE}</style>'
        f"<h1>OFA: {escape(name)}</h1><p>POST JSON or a form (multipart/form-data), get JSON. "
        'The same for programs: <a href="openapi.json">openapi.json</a>. '
        '<a href="health">health</a>, <a href="metrics">metrics</a>.</p>'
        + "".join(_method(method) for method in METHODS.values())
        + "</html>"
    )


def _method(method: Method) -> str:
    rows = "".join(_row(field) for field in method.fields)
    return (
        f"<h2>POST /{method.name}</h2><p>{escape(method.help)} Answer: <code>{escape(', '.join(method.returns))}</code>"
        f"</p><table>{rows}</table>"
    )


def _row(field: Field) -> str:
    kind = {"names": "list of texts", "decoding": "object"}.get(field.kind, field.kind)
    needed = "needed" if field.needed else ""
    return f"<tr><td><code>{field.name}</code><td>{kind}<td>{needed}<td>{escape(field.help)}"
