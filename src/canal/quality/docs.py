"""Great Expectations' Data Docs, made readable without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from canal.core.files import new_folder

_REMOTE = re.compile(
    r"<link\b[^>]*\bhref=[\"']https?://[^>]*>"
    r"|<script\b[^>]*\bsrc=[\"']https?://[^>]*>\s*</script>"
    r"|<img\b[^>]*\bsrc=[\"']https?://[^>]*>",
)
_REMOTE_STYLE = re.compile(r"url\(['\"]?https?://[^)]*\)")

# Bootstrap and Font Awesome, which the pages would fetch, hide dialogues and draw the marks; this stands in.
_STYLE = """<style>
body { font-family: sans-serif; margin: 1.5em; max-width: 90em }
.modal, .d-none, .navbar, .collapse, footer, button, .ge-index-page-tabs-container { display: none }
table { border-collapse: collapse } td, th { border: 1px solid #bbb; padding: .3em .6em; text-align: left }
.text-success { color: #18794e } .text-danger { color: #b42318 } .text-warning { color: #946800 }
.fa-check-circle::before { content: "\\2714" } .fa-times::before { content: "\\2718" }
.fa-exclamation-triangle::before { content: "!" }
</style>
</head>"""


@contextmanager
def publishing(context: Any, docs: Path | None) -> Iterator[None]:
    """Write what ``context`` validates in the block as pages into ``docs``, replacing it; None: nowhere."""
    if docs is None:
        yield
        return
    with new_folder(docs) as folder:
        context.add_data_docs_site("docs", _site(folder))
        yield
        context.build_data_docs(site_names=["docs"])
        _make_offline(folder)


def store_again(context: Any, outcome: Any) -> None:
    """Have the pages tell ``outcome``, the one that ``context`` holds, as it is now."""
    store = context.validation_results_store
    (key,) = store.list_keys()
    store.set(key, outcome)


def _site(folder: Path) -> dict[str, Any]:
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder.resolve()),
        },
    }


def _make_offline(folder: Path) -> None:
    """Take out of every page below ``folder`` what it would fetch, and do its work without that."""
    pages = sorted(folder.rglob("*.html"))
    for page in pages:
        text = _REMOTE.sub("", page.read_text(encoding="utf-8"))
        text = _REMOTE_STYLE.sub("none", text)
        page.write_text(text.replace("</head>", _STYLE, 1), encoding="utf-8")
    # A script that is not there any more would list the pages.
    index = folder / "index.html"
    links = [_link(page.relative_to(folder)) for page in pages if page != index]
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace("<body>", f"<body>\n<ul>{''.join(links)}</ul>", 1), encoding="utf-8")
    for animation in folder.rglob("*.gif"):
        animation.unlink()


def _link(page: Path) -> str:
    return f'<li><a href="{quote(page.as_posix())}">{escape(page.as_posix())}</a></li>'
