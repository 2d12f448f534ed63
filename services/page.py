"""The page at `/`: the viewer of `common.viewer` with its form. One file, nothing from elsewhere.

What enters: nothing. What leaves: the response, with a policy that lets the browser run this script only.
"""

import base64
import hashlib

from starlette.responses import Response

from common.viewer.page import script, style, write_page


def page_response() -> Response:
    """Return the page."""
    sources = {
        "default-src": "'none'",
        "script-src": _hash(script()),
        "style-src": _hash(style()),
        "connect-src": "'self'",
        "img-src": "data:",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    policy = "; ".join(f"{name} {value}" for name, value in sources.items())
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return Response(write_page(None), headers=headers, media_type="text/html; charset=utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
