"""What a browser may keep of files that this server sends, and whether it has them already."""

from __future__ import annotations

from collections.abc import Mapping

YEAR_S = 31_536_000

PRIVATE_FOR_GOOD = f"private, max-age={YEAR_S}, immutable"
"""Of what takes a key, under an address that never means anything else."""
PUBLIC_FOR_GOOD = f"public, max-age={YEAR_S}, immutable"

NO_PAGE: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
    # Pages of other sites cannot find out by an <img> what there is.
    "Cross-Origin-Resource-Policy": "same-site",
    # What was fetched with a key is not shown from the browser's cache to whoever has none.
    "Vary": "Authorization, X-Attune-Api-Key, X-Attune-Admin-Key",
}
"""Headers of a picture or a sound that takes a key, and must not become a page of its own."""


def is_current(if_none_match: str, tag: str) -> bool:
    """Whether the header offers `tag`, compared weakly (RFC 9110, 13.1.2)."""
    offered = (part.strip().removeprefix("W/") for part in if_none_match.split(","))
    return any(part in (tag.removeprefix("W/"), "*") for part in offered)
