"""`GET /docs`: Swagger UI, from the package alone, so that it works without the internet."""

import base64
import gzip
import hashlib
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, HTTPException, Response
from fastapi import Request as Incoming
from fastapi.responses import HTMLResponse

router = APIRouter(prefix="/docs", include_in_schema=False)

ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}
"""Media type of each file of Swagger UI. The package has them compressed."""

ASSET_LIFETIME_S = 3600

START_SCRIPT = """
SwaggerUIBundle({
  url: "./openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  validatorUrl: null,
})
"""

PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Overpaint: HTTP API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="./docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="./docs/swagger-ui-bundle.js"></script>
<script>{START_SCRIPT}</script>
</body>
</html>
"""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "connect-src 'self'",
        "font-src data:",
        "img-src 'self' data: blob:",
        "script-src 'self' 'sha256-{}'",
        "style-src 'self' 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
).format(base64.b64encode(hashlib.sha256(START_SCRIPT.encode()).digest()).decode())
"""The page loads nothing from other hosts. Swagger UI sets styles of elements."""


@router.get("")
async def show_docs() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})


@router.get("/{asset}")
def get_asset(asset: str, incoming: Incoming) -> Response:
    """Return a file of Swagger UI."""
    if asset not in ASSETS:
        raise HTTPException(404, "The documentation has no such file.")
    packed = _read_asset(asset)
    headers = {"Cache-Control": f"max-age={ASSET_LIFETIME_S}", "Vary": "Accept-Encoding"}
    if "gzip" not in incoming.headers.get("accept-encoding", ""):
        return Response(gzip.decompress(packed), media_type=ASSETS[asset], headers=headers)
    headers["Content-Encoding"] = "gzip"
    return Response(packed, media_type=ASSETS[asset], headers=headers)


@cache
def _read_asset(name: str) -> bytes:
    return (files("overpaint") / "data" / "swagger-ui" / f"{name}.gz").read_bytes()
