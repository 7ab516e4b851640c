"""One HTML page of a study: nothing of it comes from anywhere else, and no name in it becomes markup."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from csham.report.drawing import COLOURS
from csham.report.study_material import Material
from csham.report.study_pictures import Family, Picture
from csham.report.tables import Table
from csham.study.findings import ClassDifference
from csham.study.statistics import FEW
from csham.words import counted

__all__ = ["inlined", "render", "render_page"]

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(
    material: Material,
    tables: Mapping[str, Table],
    differences: Picture | None,
    families: Sequence[Family],
    classes: Mapping[str, Sequence[ClassDifference]],
    files: Sequence[Mapping[str, Any]],
    warnings: Sequence[str] = (),
) -> str:
    """Return the page.

    Args:
        material: The study.
        tables: ``verdicts``, ``budget``, ``networks`` and ``runs``.
        differences: The picture beside the verdicts.
        families: Pictures of each backbone.
        classes: Under the label of each network.
        files: Mappings with ``what`` and ``paths``, relative to the page.
        warnings: More than the material's.
    """
    page = _page(material, tables, classes) | {
        "differences": inlined(differences) if differences else None,
        "families": [_family(family) for family in families],
        "files": files,
        "warnings": [*material.warnings, *warnings],
    }
    return render("study.html", page | {"sections": _sections(page)})


def render(template: str, page: Mapping[str, Any]) -> str:
    """Return a page made of one of the templates that extend ``page.html``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["unbroken"] = lambda text: text.replace("-", "\N{NON-BREAKING HYPHEN}")
    script = (_TEMPLATES / "study.js").read_text(encoding="utf-8")
    text = environment.get_template(template).render(
        page=page,
        style=Markup(environment.get_template("study.css").render(colours=COLOURS)),  # noqa: S704  our own file
        script=Markup(script),  # noqa: S704  our own file
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    return text.lstrip()


def _page(
    material: Material, tables: Mapping[str, Table], classes: Mapping[str, Sequence[ClassDifference]]
) -> dict[str, Any]:
    results, study = material.results, material.study
    return {
        "kind": "study",
        "title": material.path.resolve().name,
        "facts": _facts(material),
        "headline": results.headline,
        "cautions": _cautions(material),
        "verdicts": tables["verdicts"],
        "budget": tables["budget"],
        "networks": tables["networks"],
        "runs": tables["runs"],
        "sentences": [{"label": one.label, "text": one.sentence} for one in results.comparisons],
        "nothing": "the study has plain networks only.",
        "comparisons": len(results.comparisons),
        "margin": f"±{results.worthwhile:g} points",
        "costs_note": _costs_note(material),
        "per_class": _per_class(material, classes),
        "failures": _failures(material),
        "settings": _settings(material),
        "environments": _environments(material),
        "cost_machine": [(name, _value(value)) for name, value in material.costs.machine.items()],
        "command": study.command,
        "last": max((str(record.get("finished") or "") for record in material.records), default=""),
    }


def _facts(material: Material) -> str:
    study, data = material.study, material.study.data
    facts = [
        f"{data.source}: {data.images:,} images of {data.classes} classes at {data.image_size} px",
        counted(len(study.networks), "network"),
        counted(len(study.seeds), "seed"),
        f"recipe {study.settings.get('recipe')}, {_length(study.settings)}",
    ]
    images = {row.test_images for row in material.results.networks if row.test_images}
    if len(images) == 1:
        facts.append(f"measured on {images.pop():,} test images")
    return " · ".join(facts)


def _length(settings: Mapping[str, Any]) -> str:
    epochs, patience = counted(settings.get("epochs", 0), "epoch"), settings.get("patience")
    return epochs if patience is None else f"at most {epochs}, stopped early with patience {patience}"


def _cautions(material: Material) -> list[str]:
    results = material.results
    pairs = [one.n for one in results.comparisons if one.n]
    notes = []
    if pairs and max(pairs) < FEW:
        notes.append(
            f"{counted(max(pairs), 'seed')} can say little: only differences as large as “smallest detectable” in the "
            "table would have shown. Five are the least, ten are better; the same command with more seeds runs only "
            "the new ones."
        )
    errors = [row.test_se for row in results.networks if row.test_se]
    if pairs and errors:
        notes.append(
            "The networks of a seed are measured on the same test images, whose choice alone moves one accuracy by "
            f"±{max(errors):.2f} points (standard error). Intervals here are over seeds: where the data have no test "
            "part of their own, each seed draws one, and they hold that chance; else they do not."
        )
    return notes + _early_ends(material)


def _early_ends(material: Material) -> list[str]:
    if material.study.settings.get("patience") is None:
        return []
    took = sorted({len(run["history"]) for run in material.results.runs.values() if run.get("history")})
    if not took:
        return []
    span, planned = " to ".join(map(str, dict.fromkeys((took[0], took[-1])))), material.study.settings["epochs"]
    return [
        f"Runs may stop early, and took {span} of {counted(planned, 'epoch')}: accuracies are of each run's last "
        "epoch, and a curve's right end is of the runs that were still training."
    ]


def _costs_note(material: Material) -> str:
    rows = list(material.costs.rows.values())
    if not rows:
        return "Costs have not been measured side by side; “run, min” is what the runs took, busy machine or not."
    first = rows[0]
    return (
        "Train step, images/s, latency and memory: medians of interleaved rounds in one run, on "
        f"{first.get('device')}, batches of {first.get('batch_size')}, {first.get('precision')}, "
        f"{'compiled' if first.get('compiled') else 'eager'}. Ratios on another machine differ."
    )


def _per_class(material: Material, classes: Mapping[str, Sequence[ClassDifference]]) -> dict[str, Any] | None:
    against = {one.label: one.against for one in material.results.comparisons}
    networks = [
        {
            "label": label,
            "caption": f"{label} against {against[label]}, {counted(differences[0].n, 'seed')}, "
            f"{counted(len(differences), 'class', 'es')}.",
            "rows": [
                {
                    "name": one.name,
                    "plain": round(one.plain_recall, 4),
                    "network": round(one.recall, 4),
                    "difference": round(one.mean, 4),
                    "sd": None if one.sd is None else round(one.sd, 4),
                    "images": round(one.images, 1) if one.images % 1 else int(one.images),
                }
                for one in sorted(differences, key=lambda one: -one.mean)
            ],
        }
        for label, differences in classes.items()
        if differences
    ]
    return {"networks": networks} if networks else None


def _failures(material: Material) -> list[dict[str, str]]:
    failures = []
    for record in material.records:
        if record["status"] == "failed":
            error = record.get("error") or {}
            title = f"{record['label']}, seed {record['seed']}: {error.get('type')}: {error.get('message')}"
            failures.append({"title": title, "text": str(error.get("traceback") or "There is no traceback.")})
    return failures


def _settings(material: Material) -> list[tuple[str, str]]:
    study, data = material.study, material.study.data
    return [
        ("data", f"{data.source}, fingerprint {data.fingerprint}"),
        ("seeds", ", ".join(map(str, study.seeds))),
        ("worthwhile", f"{study.worthwhile:g} points of top-1"),
        *((name, _value(value)) for name, value in study.settings.items()),
    ]


# What every run has to itself.
_OWN = ("command", "started", "seed")


def _environments(material: Material) -> list[dict[str, Any]]:
    """Return each environment that runs were made in, with how many of them."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for record in material.records:
        entries = {k: v for k, v in (record.get("environment") or {}).items() if k not in _OWN}
        config = record.get("config") or {}
        entries |= {name: config[name] for name in ("precision", "compile", "channels_last") if name in config}
        if entries:
            key = tuple((name, _value(value)) for name, value in entries.items())
            groups.setdefault(key, []).append(f"{record['label']}, seed {record['seed']}")
    every = len(groups) == 1
    return [
        {
            "title": f"{'All ' if every and len(runs) > 1 else ''}{counted(len(runs), 'run')}"
            + ("." if every else f", such as {runs[0]}."),
            "entries": entries,
        }
        for entries, runs in groups.items()
    ]


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "none"
    return str(value)


def inlined(picture: Picture) -> dict[str, Any]:
    """Return what the templates read of a picture."""
    return vars(picture) | {"inline": Markup(picture.inline)}  # noqa: S704  made by ElementTree, which escapes


def _family(family: Family) -> dict[str, Any]:
    return vars(family) | {name: [inlined(one) for one in getattr(family, name)] for name in ("curves", "points")}


def _sections(page: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    sections = [
        ("verdicts", "Verdicts", True),
        ("networks", "Networks and costs", True),
        ("costs", "Accuracy against cost", page["families"]),
        ("curves", "Learning curves", page["families"]),
        ("per-class", "Class by class", page["per_class"]),
        ("runs", "Every run", True),
        ("settings", "Settings and machine", True),
        ("again", "Run this again", True),
        ("method", "What the numbers mean", True),
        ("files", "Files", True),
    ]
    return [(name, title) for name, title, there in sections if there]
