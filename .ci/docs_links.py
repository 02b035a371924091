"""A hook of MkDocs: links from doc/ to other files of the checkout lead to the repository on the site."""

from __future__ import annotations

import re
from typing import Any

LINK = re.compile(r"\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Return the text of a page with links to the repository."""
    return LINK.sub(lambda match: f"]({config['repo_url']}/blob/main/{match[1]})", markdown)
