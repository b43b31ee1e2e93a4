"""The page that a person sees who opens the service in a browser."""

from __future__ import annotations

import html
import json
from pathlib import Path
from string import Template

from mmfusion.serving.plain import ROUTES
from mmfusion.serving.served_model import ServedModel

SAFE = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
"""Headers of the page: it loads nothing from elsewhere."""


def page(model: ServedModel) -> str:
    """The page, with what the model can do.

    Args:
        model: The model.

    Returns:
        HTML that needs nothing else.
    """
    signatures = {name: signature for name, signature in model.signatures.items() if name in ROUTES}
    rows = [
        f"<tr><td><code>POST /{name}</code></td><td>{html.escape(', '.join(signature.inputs))}</td>"
        f"<td>{html.escape(', '.join(signature.outputs))}</td></tr>"
        for name, signature in signatures.items()
    ]
    frames = model.predictor.frames
    seen = "It sees single pictures." if frames == 1 else f"It sees up to {frames} pictures at a time."
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        name=html.escape(model.name),
        seen=seen,
        rows="\n".join(rows),
        options="".join(f"<option>{name}</option>" for name in signatures),
        takes=json.dumps({name: list(signature.inputs) for name, signature in signatures.items()}),
    )
