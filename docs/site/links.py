"""Links to files and folders of the repository lead to the pages that stand for them."""

from __future__ import annotations

import posixpath

import components
from docutils import nodes
from myst_parser.slugs import github_slugify
from sphinx import addnodes
from sphinx.application import Sphinx


def lead_to_pages(app: Sphinx, document: nodes.document) -> None:
    """`../study` is the page study/README, and `../examples/bandit.yaml` a part of the page examples."""
    for link in list(document.findall(addnodes.pending_xref)):
        if link["reftype"] != "myst" or link["refdomain"] == "doc":
            continue
        target, _, anchor = link["reftarget"].partition("#")
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(link["refdoc"]), target))[1:]
        folder, name = posixpath.split(path)
        for page, part in ((f"{path}/README", anchor), (path, anchor), (folder, github_slugify(name))):
            if page in app.env.found_docs:
                link.attributes.update(refdomain="doc", reftarget=page, reftargetid=part or None)
                break


def name_components(app: Sphinx, document: nodes.document) -> None:
    """In tables whose first column is of components, each leads to its page."""
    known = components.addresses()
    for table in document.findall(nodes.table):
        heads = [entry.astext() for head in table.findall(nodes.thead) for entry in head.findall(nodes.entry)]
        if not {"component", "components"} & set(heads):
            continue
        for literal in list(table.findall(nodes.literal)):
            cell = literal.parent.parent
            column = heads[cell.parent.index(cell) % len(heads)] if isinstance(cell, nodes.entry) else ""
            if column in ("component", "components") and literal.astext() in known:
                page = known[literal.astext()]
                link = addnodes.pending_xref(
                    "",
                    refdomain="doc",
                    reftype="myst",
                    reftarget=page,
                    reftargetid=None,
                    refdoc=app.env.docname,
                    refexplicit=True,
                )
                literal.replace_self(link)
                link += literal


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", lead_to_pages)
    app.connect("doctree-read", name_components)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
