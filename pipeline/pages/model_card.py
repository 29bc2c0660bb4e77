"""`MODEL_CARD.md`: the sections of Mitchell 2019 ("Model Cards for Model Reporting"), as far as a run knows what belongs there.

In: a `RunReport`. Out: Markdown (GitHub's, for the tables). All that comes from outside is escaped: a name can be no markup. What only the
authors can know is left to them, in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.metrics.names import METRICS
from pipeline.pages import run_words
from pipeline.pages.report_charts import with_interval
from pipeline.pages.report_content import RunReport
from pipeline.pages.report_tables import (
    OF_A_CLASS,
    Forest,
    class_rows,
    metric_rows,
    stress_forest,
    subgroup_forest,
)
from pipeline.wording import counted

TO_BE_STATED = "*to be stated by the authors*"
_ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "\\`*[]|"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def model_card(content: RunReport) -> str:
    """The card as Markdown."""
    facts = content.facts
    parts = [
        f"# Model card: {escaped(facts.name)}",
        f"**{escaped(facts.intended_use)}.**" + (f" **{escaped(facts.notice)}.**" if facts.notice else ""),
        *_section("Model details", _details(content)),
        *_section("Intended use", _intended_use(content)),
        *_section("Factors", _factors(content)),
        *_section("Metrics", _metrics(content)),
        *_section("Evaluation data", _evaluation_data(content)),
        *_section("Training data", _training_data(content)),
        *_section("Quantitative analyses", _analyses(content)),
        *_section("Ethical considerations", _ethics()),
        *_section("Caveats and recommendations", _caveats(content)),
        *_section("How to run", [_commands()]),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: object) -> str:
    """Plain text as Markdown shows it: on one line, and no sign of it markup."""
    shown = "".join(sign if sign.isprintable() else " " for sign in str(text))
    return " ".join(shown.split()).translate(_ESCAPED)


def listed(items: Iterable[object]) -> str:
    return "\n".join(f"- {escaped(item)}" for item in items)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _section(title: str, parts: Sequence[str]) -> list[str]:
    return [f"## {title}", *(part for part in parts if part)]


def _details(content: RunReport) -> list[str]:
    facts = content.facts
    members = f"an ensemble of {counted(len(facts.members), 'network')}" if facts.members else ""
    rows = [
        ("Architecture", run_words.architecture_words(facts.network)),
        ("Ensemble", members),
        ("Images to a case", run_words.pooling_words(facts)),
        ("Views", run_words.views_words(facts)),
        ("Begun from", run_words.weights_words(facts)),
        ("Classes", ", ".join(facts.classes)),
        ("Decision", run_words.threshold_words(facts, content.config)),
        ("Temperature", run_words.temperature_words(facts, content.config)),
        ("Weights, sha256", facts.weights_sha256),
        ("Trained with", f"radloop {facts.radloop_version}"),
        ("Environment", run_words.environment_words(content.environment)),
    ]
    return [
        table(["Fact", "Value"], [row for row in rows if row[1]]),
        f"Preprocessing:\n\n{listed(run_words.preprocessing_words(facts))}",
        "Training:\n\n"
        + listed(f"{name}: {words}" for name, words in run_words.training_words(content.config).items()),
        f"Developers, licence, contact, citation: {TO_BE_STATED}.",
    ]


def _intended_use(content: RunReport) -> list[str]:
    facts = content.facts
    scope = run_words.scope_words(facts.scope)
    return [
        f"{escaped(facts.intended_use)}: research on telling {escaped(', '.join(facts.classes))} apart, one prediction a {facts.unit}. "
        "Its output is no diagnosis, and no medical device has been made of it.",
        "Users: researchers. Out of scope: any clinical decision, and images of another kind than it was trained on:",
        listed(scope) if scope else "",
        "radloop marks a case outside this scope; it does not refuse it.",
    ]


def _factors(content: RunReport) -> list[str]:
    columns = list(dict.fromkeys(str(one["column"]) for one in content.record.get("subgroups") or []))
    if not columns:
        return [
            "No attribute was there by which cases make groups: how it does by sex, age, scanner or site is not known."
        ]
    return [f"Figures are given by {escaped(', '.join(columns))}; other factors were not looked at."]


def _metrics(content: RunReport) -> list[str]:
    given = content.config.evaluation
    return [
        "AUROC and average precision rank cases; accuracy, sensitivity, specificity and the rest hold at the threshold in use; Brier "
        "score and calibration error say whether probabilities can be believed.",
        f"Intervals: 95 %, from {given.resamples:,} bootstrap resamples of {content.who}, all cases of one together.",
    ]


def _evaluation_data(content: RunReport) -> list[str]:
    record, manifest = content.record, content.manifest
    where = (
        f"the {record['split']} split of {manifest.name}"
        if content.own_data
        else f"{manifest.name}, other data than it was made from"
    )
    independence = (
        run_words.disjoint_words(manifest)
        if content.own_data
        else "no patient or image of it was trained on, as far as known"
    )
    return [
        f"{counted(record['cases'], 'case')} of {content.of_whom}: {escaped(where)}.",
        escaped(manifest.description),
        f"Independence: {escaped(independence)}.",
        _flow(content),
    ]


def _flow(content: RunReport) -> str:
    flow = content.flow
    if not flow:
        return ""
    return (
        f"Of {flow['found']:,} files found, {flow['rejected']:,} were no usable images, {flow['excluded']:,} were left out by the rules "
        f"and {flow['unlabelled']:,} with their case; {flow['files']:,} make {counted(flow['cases'], 'case')}."
    )


def _training_data(content: RunReport) -> list[str]:
    manifest = content.manifest
    if not content.own_data:
        return ["See the report of the run's own test split, in the run's folder evaluation/."]
    return [
        f"The same dataset, {escaped(manifest.name)}, its training and validation splits: {escaped(run_words.split_words(manifest))}.",
        f"Labels: {escaped(run_words.labels_words(manifest))}.",
        listed(run_words.rules_words(manifest.rules)),
    ]


def _analyses(content: RunReport) -> list[str]:
    record = content.record
    rows = [(row["name"], with_interval(row["one"])) for row in metric_rows(record)]
    parts = ["Unitary results:", table(["Figure", "Value (95 % interval)"], rows)]
    classes = class_rows(record)
    if classes:
        head = ["Class", "Cases", *(METRICS[name] for name in OF_A_CLASS)]
        parts.append(table(head, [(row["name"], row["cases"], *row["cells"]) for row in classes]))
    groups, stress = subgroup_forest(record), stress_forest(record)
    if groups:
        parts += [f"By subgroup, {groups.title}:", _group_table(groups)]
    if stress:
        cells = [
            (row["name"], with_interval(row["one"]), with_interval(row["drop"]["one"]))
            for row in stress.groups[0]["rows"]
        ]
        parts += ["Under stress:", table(["Stress", stress.title, "Drop"], cells)]
    else:
        parts.append("Stress test: not made (`radloop evaluate --stress`).")
    return parts


def _group_table(groups: Forest) -> str:
    rows: list[tuple[Any, ...]] = [
        (group["title"], row["name"], row["cases"], with_interval(row["one"]), row["warning"])
        for group in groups.groups
        for row in group["rows"]
    ]
    return table(["Attribute", "Group", "Cases", groups.title, "Warning"], rows)


def _ethics() -> list[str]:
    return [
        "Patients are known to radloop by keyed hashes alone: no name, number or date of birth is in the run.",
        f"Consent, approval by an ethics board, and effects on groups of patients: {TO_BE_STATED}.",
    ]


def _caveats(content: RunReport) -> list[str]:
    warnings = [*(content.record.get("warnings") or []), *((content.audit or {}).get("warnings") or [])]
    return [
        listed(warnings) if warnings else "No warning was raised.",
        "A figure measured on one dataset says little of another: evaluate on your own cases before believing any. A heatmap shows "
        "what speaks for a class, not that it is the disease.",
        ""
        if content.audit
        else "The data were not audited for shortcuts (`radloop audit`), or the audit is not at hand.",
    ]


def _commands() -> str:
    return "```\nradloop infer RUN SOURCE --out OUT\nradloop evaluate RUN --data OTHER.yaml\n```"
