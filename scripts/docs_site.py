"""Hooks of MkDocs: pages that lie outside of docs, a page of reference for each package, minutes of reading.

Links stay as they are right in the repository, and are turned to where the site has their targets; a file that is no
page, such as a report of a study, is copied.
"""

from __future__ import annotations

import ast
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = "docs"
HOME = "README.md"

PAGES = (
    *(HOME, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("benchmarks/README.md", "results/README.md", "results/claim/README.md", "results/open-gates/README.md"),
)
"""Pages of the site that lie outside of docs."""

PACKAGES = (
    *("csham", "csham.layers", "csham.attach", "csham.backbones", "csham.data", "csham.training", "csham.inference"),
    *("csham.study.run", "csham.study.setup", "csham.study.overview", "csham.study.verdict", "csham.explain"),
    *("csham.export", "csham.share", "csham.cost", "csham.ops", "csham.report", "csham.keras", "csham.errors"),
    "csham.memory",
)
"""Packages and modules that the reference has a page of; every name of their ``__all__`` is on it."""

WORDS_A_MINUTE = 220

_STYLE = ".md-typeset td, .md-typeset th { vertical-align: top; } .minutes { opacity: .6; }\n"


def on_config(config: Any) -> Any:
    """Put the pages of the reference into the navigation."""
    for section in config.nav:
        if "Reference" in section:
            section["Reference"] = [{name: _reference(name)} for name in PACKAGES]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what does not lie in docs."""
    for path in PAGES:
        files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    for name in PACKAGES:
        files.append(File.generated(config, _reference(name), content=_reference_page(name)))
    files.append(File.generated(config, "site.css", content=_STYLE))
    for path in sorted({target for source in _sources(files) for target in _files_linked_from(source)}):
        if files.get_file_from_path(_place(path)) is None:
            files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turn links to where the site has their targets, and say how long the page takes to read."""
    source = _source(page.file)
    if source is None:
        return markdown
    text = _LINK.sub(lambda link: link[1] + _turned(link[2], source, page.file.src_uri) + ")", markdown)
    if source.startswith(DOCS) or source == HOME:
        words = len(re.findall(r"\w+", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
        minutes = max(1, round(words / WORDS_A_MINUTE))
        said = f'<p class="minutes">{minutes} minute{"s" * (minutes > 1)} to read</p>'
        text = re.sub(r"\A(# [^\n]*\n)?", lambda head: f"{head[0]}\n{said}\n\n", text, count=1)
    return text


def on_page_content(html: str, page: Page, config: Any, files: Files) -> str:
    """Make links of what docstrings refer to in the way of Sphinx."""
    return _ROLE.sub(lambda role: f'<autoref optional identifier="{role[1]}"><code>{role[1]}</code></autoref>', html)


def on_post_build(config: Any) -> None:
    """Copy what lies beside the reports of studies: their Markdown tables are files there, no pages."""
    site = Path(config.site_dir)
    for report in [ROOT / DOCS / "claim", *ROOT.glob("results/*/report")]:
        shutil.copytree(report, site / _place(report.relative_to(ROOT).as_posix()), dirs_exist_ok=True)


_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?([\w.]+)</code>")
_LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)\s]+)\)")


def _sources(files: Files) -> list[str]:
    return [source for file in files.documentation_pages() if (source := _source(file)) is not None]


def _source(file: File) -> str | None:
    """Return where a page lies in the repository; None of one that is made here."""
    if file.abs_src_path is None:
        return None
    return Path(file.abs_src_path).relative_to(ROOT).as_posix()


def _place(path: str) -> str:
    """Return where the site has a file of the repository."""
    return "index.md" if path == HOME else path.removeprefix(f"{DOCS}/")


def _target(link: str, source: str) -> tuple[str, str]:
    """Return the path in the repository that a link of a page leads to, and the anchor."""
    path, mark, anchor = link.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), mark + anchor


def _files_linked_from(source: str) -> set[str]:
    """Return the files that are no pages and that a page outside of docs, or one that links out of docs, leads to."""
    links = [link[2] for link in _LINK.finditer((ROOT / source).read_text(encoding="utf-8"))]
    targets = {_target(link, source)[0] for link in links}
    found = {path for path in targets if (ROOT / path).is_file() and not path.endswith(".md")}
    return {path for path in found if not path.startswith(f"{DOCS}/")}


def _turned(link: str, source: str, place: str) -> str:
    path, anchor = _target(link, source)
    if not (ROOT / path).exists():
        return link  # MkDocs says so
    return posixpath.relpath(_place(path), posixpath.dirname(place) or ".") + anchor


def _reference(name: str) -> str:
    return f"reference/{name}.md"


def _reference_page(name: str) -> str:
    """Return a page with the docstring of a package and those of its public names."""
    parts = name.split(".")
    place = ROOT / "src" / Path(*parts)
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    public = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    head = f"# {name}\n\n::: {name}\n    options:\n      members: false\n      show_root_heading: false\n\n"
    if name == PACKAGES[0]:  # its names are on the pages of the packages that they come from
        origins = _origins(tree)
        return head + "\n".join(f"- [`csham.{one}`][{origins[one]}.{one}]" for one in public) + "\n"
    return head + "\n".join(f"::: {name}.{one}" for one in public) + "\n"


def _origins(tree: ast.Module) -> dict[str, str]:
    """Return the module that each name of the package is imported from."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}
