"""`claim_checklist.md`: the items of CLAIM's 2024 update, each answered where the run knows the answer, else left to the authors.

Tejani AS, Klontzas ME, Gatti AA, et al. Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update. Radiol Artif Intell
2024;6(4):e240300. Numbers and sections are the paper's, topics are in our own words. No answer claims more than the run holds: a
method is named, whether it was the right one is the authors' to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.metrics.names import METRICS
from pipeline.pages import run_words
from pipeline.pages.model_card import TO_BE_STATED, escaped
from pipeline.pages.report_charts import with_interval
from pipeline.pages.report_content import RunReport
from pipeline.wording import counted

Answer = Callable[[RunReport], str]


@dataclass(frozen=True)
class Item:
    """`answer` gives text without markup, or '' where the run does not know."""

    number: int
    section: str
    topic: str
    answer: Answer = lambda _: ""


def claim_checklist(content: RunReport) -> str:
    """The checklist as Markdown, a table a section."""
    lines = [
        f"# CLAIM 2024 checklist: {escaped(content.facts.name)}",
        "",
        "Filled in by radloop where the run knows the answer; the rest is the authors'. The answers speak of the run, not of a paper: each "
        "needs its place in the manuscript, and a reader who checks it.",
    ]
    section = ""
    for item in ITEMS:
        if item.section != section:
            section = item.section
            lines += ["", f"## {section}", "", "| No. | Item | Answer |", "| --- | --- | --- |"]
        answer = escaped(item.answer(content))
        lines.append(f"| {item.number} | {item.topic} | {answer or TO_BE_STATED} |")
    return "\n".join(lines) + "\n"


def _technology(content: RunReport) -> str:
    return f"deep learning: classification of images by a {content.facts.network.architecture.removeprefix('timm:')}"


def _sources(content: RunReport) -> str:
    count = counted(len(content.manifest.sources), "source")
    about = f": {content.manifest.description}" if content.manifest.description else ""
    return f"dataset {content.manifest.name}, {count}{about}"


def _criteria(content: RunReport) -> str:
    return "; ".join(run_words.rules_words(content.manifest.rules)) or "every readable image with a label"


def _preprocessing(content: RunReport) -> str:
    return "; ".join(run_words.preprocessing_words(content.facts))


def _subsets(content: RunReport) -> str:
    crop, facts = content.facts.preprocessing.crop, content.facts
    part = "" if crop == "none" else f"each image is cropped to the {crop}"
    bag = f"{facts.network.bag_size} images a case in training" if facts.network.pooling != "mean" else ""
    return "; ".join(filter(None, (part, bag))) or "no part of an image or case was selected"


def _missing(content: RunReport) -> str:
    if not content.flow:
        return "files that cannot be read and cases without a label are left out and counted"
    return (
        f"left out and counted: {content.flow['rejected']:,} files that are no usable images, {content.flow['unlabelled']:,} files of "
        "cases without a label; attributes that are missing stay missing"
    )


def _acquisition(content: RunReport) -> str:
    scope = "; ".join(run_words.scope_words(content.facts.scope))
    return f"{scope}; protocols are to be stated by the authors" if scope else ""


def _reference(content: RunReport) -> str:
    return f"labels {run_words.labels_words(content.manifest)}; how they came about is to be stated by the authors"


def _partitions(content: RunReport) -> str:
    if not content.own_data:
        return "evaluated on other data than the run's; its own splits are in the report of its test split"
    return run_words.split_words(content.manifest)


def _disjoint(content: RunReport) -> str:
    if content.own_data:
        return run_words.disjoint_words(content.manifest)
    return "no patient or image that the model was trained or validated on, as far as patients are known"


def _sample(content: RunReport) -> str:
    record = content.record
    used = f"{counted(record['cases'], 'case')} of {content.of_whom}"
    return f"used: {used}; what was intended is to be stated by the authors"


def _model(content: RunReport) -> str:
    facts = content.facts
    sizes = f"input {facts.network.channels} × {facts.preprocessing.size} × {facts.preprocessing.size}"
    parts = [run_words.architecture_words(facts.network), sizes, f"output: probabilities of {', '.join(facts.classes)}"]
    return "; ".join(
        filter(None, [*parts, run_words.pooling_words(facts), run_words.threshold_words(facts, content.config)])
    )


def _software(content: RunReport) -> str:
    environment = run_words.environment_words(content.environment)
    return "; ".join(filter(None, (f"radloop {content.facts.radloop_version}", environment)))


def _training(content: RunReport) -> str:
    words = [f"{name.lower()}: {text}" for name, text in run_words.training_words(content.config).items()]
    return "; ".join([*words, f"seed {content.config.seed}"])


def _selection(content: RunReport) -> str:
    chosen = run_words.SELECTED[content.config.training.select]
    return (
        f"{chosen}; epoch {content.facts.best_epoch} was kept"
        if not content.facts.members
        else f"{chosen}, in each fold"
    )


def _ensemble(content: RunReport) -> str:
    facts = content.facts
    views = run_words.views_words(facts)
    members = f"mean of {counted(len(facts.members), 'network')}, one a fold" if facts.members else ""
    return "; ".join(filter(None, (members, views))) or "none"


def _metrics(content: RunReport) -> str:
    named = [METRICS[name] for name in METRICS if name in content.record["metrics"]]
    return f"{', '.join(named)}; {run_words.threshold_words(content.facts, content.config)}"


def _uncertainty(content: RunReport) -> str:
    return f"95 % intervals from {content.config.evaluation.resamples:,} bootstrap resamples of {content.who}"


def _robustness(content: RunReport) -> str:
    stresses = content.record.get("stress") or []
    groups = dict.fromkeys(str(one["column"]) for one in content.record.get("subgroups") or [])
    stressed = (
        f"{counted(len(stresses), 'stress test')}, with the drop of each" if stresses else "no stress test was made"
    )
    return f"{stressed}; subgroups by {', '.join(groups)}" if groups else f"{stressed}; no subgroups"


def _explained(_: RunReport) -> str:
    return (
        "heatmaps: the head's weights over the last feature map (class activation map; Zhou 2016), on one scale for the run; that they "
        "show the disease was not tested"
    )


def _internal(content: RunReport) -> str:
    whole = content.record.get("cross_validation")
    if not content.own_data:
        return "see the report of the run's own test split"
    folds = f"; {counted(whole['cases'], 'case')} of the folds by cross-validation" if whole else ""
    return f"the {content.record['split']} split, {counted(content.record['cases'], 'case')}{folds}"


def _external(content: RunReport) -> str:
    return "this report is of the run's own data" if content.own_data else f"{content.manifest.name}: this report"


def _included(content: RunReport) -> str:
    flow = content.flow
    if not flow:
        return ""
    return (
        f"{flow['found']:,} files found; {flow['rejected']:,} rejected, {flow['excluded']:,} left out by the rules, "
        f"{flow['unlabelled']:,} with their case; {counted(flow['cases'], 'case')}; reasons and a diagram are in report.html"
    )


def _characteristics(content: RunReport) -> str:
    if content.audit:
        return "by split, sex, age, device and place in the audit's page; clinical characteristics are to be stated by the authors"
    return "classes by split are in report.html; radloop audit gives the rest that headers hold"


def _performance(content: RunReport) -> str:
    metrics = content.record["metrics"]
    told = [
        f"{METRICS[name]} {with_interval(metrics[name])}" for name in ("auroc", "accuracy", "f1") if name in metrics
    ]
    return "; ".join(told)


def _diagnostic(content: RunReport) -> str:
    metrics = content.record["metrics"]
    names = ("sensitivity", "specificity", "ppv", "npv")
    return "; ".join(f"{METRICS[name]} {with_interval(metrics[name])}" for name in names if name in metrics)


def _failures(content: RunReport) -> str:
    failed = content.record.get("failed") or 0
    unpredicted = f"; {counted(failed, 'case')} could not be predicted" if failed else ""
    return f"the surest errors with heatmaps in report.html, each case in predictions.csv{unpredicted}; why is to be stated by the authors"


def _limitations(content: RunReport) -> str:
    return "; ".join(str(one).rstrip(".") for one in content.record.get("warnings") or [])


def _protocol(content: RunReport) -> str:
    return "config.yaml and manifest.yaml of the run hold every setting"


def _available(content: RunReport) -> str:
    return f"model with sha256 {content.facts.weights_sha256}; whether and where it is published is to be stated by the authors"


_OF = "Methods: "
ITEMS: tuple[Item, ...] = (
    Item(1, "Title and abstract", "Named as a study of AI, with its kind of technology", _technology),
    Item(2, "Title and abstract", "Abstract with design, methods, results and conclusions"),
    Item(3, "Introduction", "Background, intended use and role of the AI"),
    Item(4, "Introduction", "Aims and hypotheses"),
    Item(5, f"{_OF}study design", "Prospective or retrospective"),
    Item(6, f"{_OF}study design", "Goal of the study"),
    Item(7, f"{_OF}data", "Sources of the data", _sources),
    Item(8, f"{_OF}data", "Criteria by which cases are in or out", _criteria),
    Item(9, f"{_OF}data", "Preprocessing", _preprocessing),
    Item(10, f"{_OF}data", "Parts of the data that were selected", _subsets),
    Item(11, f"{_OF}data", "De-identification"),
    Item(12, f"{_OF}data", "Missing data", _missing),
    Item(13, f"{_OF}data", "Acquisition of the images", _acquisition),
    Item(14, f"{_OF}reference standard", "How it was obtained", _reference),
    Item(15, f"{_OF}reference standard", "Why it was chosen"),
    Item(16, f"{_OF}reference standard", "Who annotated"),
    Item(17, f"{_OF}reference standard", "Annotation of the test cases"),
    Item(18, f"{_OF}reference standard", "Variability between and within annotators"),
    Item(19, f"{_OF}partitions", "How cases were assigned", _partitions),
    Item(20, f"{_OF}partitions", "At which level partitions are disjoint", _disjoint),
    Item(21, f"{_OF}test data", "Sample size", _sample),
    Item(22, f"{_OF}model", "Description of the model", _model),
    Item(23, f"{_OF}model", "Software and versions", _software),
    Item(24, f"{_OF}model", "First values of the parameters", lambda content: run_words.weights_words(content.facts)),
    Item(25, f"{_OF}training", "Details of the training", _training),
    Item(26, f"{_OF}training", "How the final model was selected", _selection),
    Item(27, f"{_OF}training", "Ensembles", _ensemble),
    Item(28, f"{_OF}evaluation", "Metrics", _metrics),
    Item(29, f"{_OF}evaluation", "Uncertainty and significance", _uncertainty),
    Item(30, f"{_OF}evaluation", "Robustness", _robustness),
    Item(31, f"{_OF}evaluation", "Explanation of single results", _explained),
    Item(32, f"{_OF}evaluation", "Evaluation on internal data", _internal),
    Item(33, f"{_OF}evaluation", "Test on external data", _external),
    Item(34, f"{_OF}evaluation", "Registration as a clinical trial"),
    Item(35, "Results: data", "Patients or examinations in and out", _included),
    Item(36, "Results: data", "Characteristics of the cases of each partition", _characteristics),
    Item(37, "Results: performance", "Performance with its uncertainty", _performance),
    Item(38, "Results: performance", "Diagnostic performance with its precision", _diagnostic),
    Item(39, "Results: performance", "Analysis of the errors", _failures),
    Item(40, "Discussion", "Limitations", _limitations),
    Item(41, "Discussion", "What it means for practice", lambda content: f"{content.facts.intended_use}; the rest is the authors' to say"),
    Item(42, "Other information", "Protocol or technical details", _protocol),
    Item(43, "Other information", "Availability of software, model and data", _available),
    Item(44, "Other information", "Funding, and the funders' role"),
)  # fmt: skip
"""CLAIM 2024, items 1 to 44."""
