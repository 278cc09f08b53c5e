"""Self-contained HTML pages from the templates, and the page about a run.

A page loads nothing from elsewhere. All text from models and files (answers, questions, names) is escaped: text by the
template, figures as JSON in which no `<` is left.
"""

from __future__ import annotations

import shlex
from collections.abc import Hashable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.errors import InputError
from em_interp.reports.findings import Findings
from em_interp.reports.run_figures import Source, control_in, findings_of, known_changes, run_of, timeline
from em_interp.results import local_name
from em_interp.run import trained_scale
from em_interp.transition.family import FAMILY_LEVEL
from em_interp.transition.find import TEST_LEVELS, against_control
from em_interp.utils.checks import checked
from em_interp.utils.files import check_free, read_text, write_text
from em_interp.utils.lock import write_lock

if TYPE_CHECKING:
    import jinja2
    import pandas as pd
    import plotly.graph_objects as go

    from em_interp.behaviour.curve import BehaviourCurve
    from em_interp.transition.result import Transition

MAIN_SIGNALS = ("rotation", "gradient_norm", "onset")  # whose verdicts come first
HIT_WITHIN = 15  # steps: a rotation as near as this to a known change has found it
EXAMPLES = {"out_of_domain": 3, "in_domain": 2, "broad": 2}  # example questions of each set; 2 of any other set
FILTERS = ("result_text", "offset_text", "readable", "p_value_text", "number")


def render(template: str, **contents: Any) -> str:
    """The page of `templates/<template>.html.j2`, with the code that draws its figures. A name missing is an error."""
    from plotly.offline import get_plotlyjs

    from em_interp.figures.export_files import CONTENT_POLICY

    page = _templates().get_template(f"{template}.html.j2")
    return page.render(contents, plotly_js=get_plotlyjs(), content_policy=CONTENT_POLICY.format(beside=""))


@cache
def _templates() -> jinja2.Environment:
    """The templates of this package, each read once."""
    import jinja2

    from em_interp.figures import style

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("em_interp.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(style, name) for name in FILTERS} | {"local_name": local_name}
    return environment


def embedded(figure: go.Figure) -> dict[str, Any]:
    """A figure for a template: title and subtitle in words, the rest as JSON that cannot end a script element."""
    from plotly.io import to_json

    from em_interp.figures.style import without_title

    meta, bare = figure.layout.meta, without_title(figure)
    json = to_json(bare, validate=False).replace("<", "\\u003c")  # plotly leaves "<" in where orjson is installed
    return {**{key: meta[key] for key in ("title", "subtitle", "least_width")}, "json": json}


@checked
def report(
    run: Source,
    control: Source | None = None,
    planted: Source | None = None,
    out: str | Path | None = None,
    *,
    answers: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the page of a run.

    Args:
        run: a run directory, a folder of checkpoints, a `Run`, or its findings.
        control: a run on careful data with the same questions, to compare with; with `answers` judged tables too.
        planted: a run whose training data changed at a known step, as a test with a known truth.
        out: where to write it; by default the run's `report.html`.
        answers: answers judged elsewhere, a table or a folder of them, in place of the run's own.
        columns: these tables' name for a column, by our name: `{"aligned": "my_score"}`.
        resume: leave a page that exists as it is.
        overwrite: replace a page that exists.

    Returns:
        Where the page is. What the run lacks (answers, scores, log, config, manifest) the page says.

    Raises:
        InputError: for a run without a path, where the page exists already (without `resume` or `overwrite`), and
            where it cannot be written.
    """
    file = Path(out) if out is not None else run_of(run).report_file
    check_free(file, resume, overwrite)
    if resume and file.exists():
        return file
    control_found = control_in(control)
    findings = findings_of(run, control_found, answers, columns)
    known = None if planted is None else findings_of(planted)
    control_run = control_found if isinstance(control_found, Findings) else None
    page = render("report", **_contents(findings, control_run, known))
    try:
        with write_lock(findings.run.path) if file == findings.run.report_file else nullcontext():
            write_text(file, page)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}") from error
    return file


def _contents(findings: Findings, control: Findings | None, planted: Findings | None) -> dict[str, Any]:
    """Everything the template shows."""
    manifest = findings.run.manifest() if findings.run.manifest_file.exists() else {}
    known = [] if planted is None else hits(planted)
    runs = {"this run": findings, "control": control, "known change": planted}
    verdicts = _verdicts(findings, control)
    return {
        "findings": findings,
        "control": control,
        "planted": planted,
        "runs": {name: run for name, run in runs.items() if run is not None},
        "verdicts": verdicts,
        "in_both": _in_both(verdicts),
        "against_control": [] if control is None else _against_control(findings, control),
        "rates": _final_rates({name: run.curve for name, run in runs.items() if run is not None}, findings),
        "hits": known,
        "hit_within": HIT_WITHIN,
        "figures": _figures(findings, control),
        "control_figures": [] if control is None else _overview(control),
        "planted_figures": [] if planted is None else _overview(planted),
        "family_level": FAMILY_LEVEL,
        "test_levels": TEST_LEVELS,
        "thresholds": None if findings.thresholds is None else _threshold_rows(findings.thresholds),
        "mechanism": _mechanism(findings),
        "examples": [] if findings.curve is None else examples(findings.curve),
        "config": read_text(findings.run.config_file) if findings.run.config_file.exists() else None,
        "manifest": manifest,
        "manifest_rows": list(_manifest_rows(manifest)),
        "commands": commands(findings, control),
    }


def _manifest_rows(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """One row per entry, also for each entry of a list such as the phases."""
    for name, value in manifest.items():
        if isinstance(value, list):
            yield from ((f"{name} {number}", _flat(entry)) for number, entry in enumerate(value, 1))
        else:
            yield name, _flat(value)


def _flat(value: Any) -> str:
    return ", ".join(f"{key} {inner}" for key, inner in value.items()) if isinstance(value, dict) else str(value)


def _verdicts(findings: Findings, control: Findings | None) -> list[tuple[str, list[Transition], list[Transition]]]:
    """Rotations, the gradient-norm peak and the onsets, by name, with the control's of the same name."""

    def by_name(run: Findings) -> dict[str, list[Transition]]:
        groups: dict[str, list[Transition]] = {}
        for transition in (*run.transitions, *run.onsets, *run.preference_onsets):
            groups.setdefault(transition.name, []).append(transition)
        return groups

    of_control = {} if control is None else by_name(control)
    main = {name: group for name, group in by_name(findings).items() if group[0].signal in MAIN_SIGNALS}
    return [(name, group, of_control.get(name, [])) for name, group in main.items()]


def _against_control(findings: Findings, control: Findings) -> list[tuple[Transition, str]]:
    """The run's rotations of B, each tested against the control's path, and what that test says."""
    rotations = [t for t in findings.transitions if (t.signal, t.of) == ("rotation", "B") and t.found]
    if control.trajectory.kind == "log":
        return []
    tested = [against_control(turn, findings.trajectory, control.trajectory) for turn in rotations]
    return [(t, t.reason.removeprefix(turn.reason).strip()) for t, turn in zip(tested, rotations, strict=True)]


def _in_both(verdicts: list[tuple[str, list[Transition], list[Transition]]]) -> list[str]:
    """Signals of the log whose transition the control has at the same step; the others are tested against it."""
    return [
        name
        for name, of_run, of_control in verdicts
        if of_run[0].signal not in ("onset", "rotation")
        and any(own.found and other.found and own.coincides_with(other) for own in of_run for other in of_control)
    ]


def _final_rates(
    curves: dict[str, BehaviourCurve | None], findings: Findings
) -> list[tuple[str, list[dict[Hashable, Any]]]]:
    """The last step's rates of each run that has a curve, and of a control that is judged tables alone."""
    if "control" not in curves:
        curves = {**curves, "control": findings.control}
    return [(name, curve.last().to_dict("records")) for name, curve in curves.items() if curve]


@dataclass(frozen=True)
class Hit:
    """A known change, the rotation of B nearest to it, by which alone it is judged, and every other rotation."""

    step: float
    what: str
    declared: Transition  # the rotation of B that is nearest, or the verdict that there is none
    others: list[Transition]  # rotations that were found and do not count
    chance: float  # that as many rotations of B placed uniformly in the run would find the change

    @property
    def distance(self) -> float | None:
        """Steps from the change to the rotation, positive where the rotation is later; None where there is none."""
        return self.declared.step - self.step if self.declared.found and self.declared.step is not None else None

    @property
    def found(self) -> bool:
        """Whether the rotation is near enough."""
        return self.distance is not None and abs(self.distance) <= HIT_WITHIN

    @property
    def in_interval(self) -> bool:
        """Whether the rotation's interval holds the change."""
        interval = self.declared.interval
        return self.found and interval is not None and interval[0] <= self.step <= interval[1]


def hits(planted: Findings) -> list[Hit]:
    """Each known change of a run, judged by the rotation of B, which was declared before looking."""
    places = np.arange(planted.trajectory.steps[0], planted.trajectory.steps[-1] + 1)
    turns = [t for t in planted.transitions if t.signal == "rotation" and t.found]
    of_b = [t for t in turns if t.of == "B"]
    judged = []
    for step, what in known_changes(planted.run).items():
        nearest = min(of_b, key=lambda t: abs((t.step or 0.0) - step), default=planted.rotation)
        share = float(np.mean(np.abs(places - step) <= HIT_WITHIN))
        others = [t for t in turns if t is not nearest]
        judged.append(Hit(step, what, nearest, others, 1 - (1 - share) ** len(of_b)))
    return judged


def _figures(findings: Findings, control: Findings | None) -> dict[str, list[dict[str, Any]]]:
    """The figures of each section, for the template."""
    from em_interp import figures as draw

    path, transitions = findings.trajectory, findings.transitions
    turns = [[t for t in transitions if t.signal == "rotation" and t.of == of] for of in ("A", "delta")]
    drawable = [group for group in turns if group and np.isfinite(group[0].evidence.get("turn_deg", np.nan)).any()]
    sections = {
        "path": [
            draw.norms(path),
            draw.pca(path, transitions=transitions),
            draw.turning_angle(path, transitions=transitions, known_changes=known_changes(findings.run)),
            draw.local_cosine(path, transition=findings.rotation),
            *map(draw.rotation, drawable),
        ],
        "log": [draw.training_log(path, transitions)] if {"loss", "grad_norm"} & set(path.metrics) else [],
        "behaviour": [],
        "timeline": [timeline(findings)],
    }
    if findings.curve is not None:
        of_control = findings.control if control is None else control.curve
        sections["behaviour"] = [draw.behaviour(findings.curve, of_control, findings.onsets)]
    if findings.preference is not None:
        sections["behaviour"].append(draw.preference(findings.preference, findings.preference_onsets))
    return {section: [embedded(figure) for figure in drawn] for section, drawn in sections.items()}


def _mechanism(findings: Findings) -> dict[str, Any] | None:
    """The report of the suite, analysis by analysis with its figures; None where there is none."""
    from em_interp.mechanism.report import read_report

    report = read_report(findings.run)
    if report is None:
        return None
    drawn = {name: [embedded(figure) for figure in of.values()] for name, of in report.figures_by_analysis.items()}
    analyses = [{**result.to_dict(), "figures": drawn.get(name, [])} for name, result in report.analyses.items()]
    return {**report.to_dict(), "analyses": analyses}


def _overview(findings: Findings) -> list[dict[str, Any]]:
    """A run shown next to that of the page: how B turns, and everything on one time axis."""
    from em_interp import figures as draw

    changes = known_changes(findings.run)
    turning = draw.turning_angle(findings.trajectory, transitions=findings.transitions, known_changes=changes)
    return [embedded(turning), embedded(timeline(findings))]


def _threshold_rows(thresholds: pd.DataFrame) -> list[tuple[float, list[Any]]]:
    """The onset over thresholds: a row for each of aligned, in it an entry for each of coherent."""
    rows = groupby(thresholds.to_dict("records"), key=lambda row: row["aligned_below"])
    return [(below, list(cells)) for below, cells in rows]


def examples(curve: BehaviourCurve) -> list[tuple[str, list[dict[str, Any]]]]:
    """Some questions of each set with the first sample at the first and at the last step, at one adapter scale.

    For each question set a list of entries with `question` and `answers` (step, answer, status, scores, reason). The
    questions are spread evenly over the set in the order of their ids. The scale is the one nearest to 1. Empty where
    the tables hold no text of answers; what else they lack is left empty.
    """
    answers = curve.answers
    if "answer" not in answers:
        return []
    scale = trained_scale(answers["scale"].unique())
    answers = answers[(answers["scale"] == scale) & answers["step"].isin([curve.steps[0], curve.steps[-1]])]
    answers = answers.sort_values([column for column in ("step", "sample") if column in answers], kind="stable")
    for column, otherwise in (("question", answers["question_id"]), ("answer", ""), ("reason", "")):
        given = answers[column].astype(object) if column in answers else None
        answers = answers.assign(**{column: otherwise if given is None else given.where(given.notna(), otherwise)})
    sets = set(answers["questions"])
    chosen = []
    for questions in [name for name in EXAMPLES if name in sets] + sorted(sets - set(EXAMPLES)):
        rows = answers[answers["questions"] == questions].drop_duplicates(["question_id", "step"])
        ids = sorted(rows["question_id"].unique())
        places = np.linspace(0, len(ids) - 1, min(EXAMPLES.get(questions, 2), len(ids))).round().astype(int)
        chosen.append((str(questions), [_example(rows[rows["question_id"] == ids[place]]) for place in places]))
    return chosen


def _example(rows: pd.DataFrame) -> dict[str, Any]:
    """One question with its answers."""
    return {"question": rows["question"].iloc[0], "answers": rows.to_dict("records")}


def commands(findings: Findings, control: Findings | None) -> list[str]:
    """What to type to repeat the run and everything on the page."""
    run = shlex.quote(str(findings.run.path))
    with_control = "" if control is None else f" --control {shlex.quote(str(control.run.path))}"
    if findings.judged is not None:
        return [f"em-interp locate {run}", f"em-interp report {run} {findings.judged.options()} --overwrite"]
    if not findings.run.config_file.exists():
        return [f"em-interp locate {run}", f"em-interp report {run}{with_control} --overwrite"]
    judged = ["em-interp ask again", "em-interp judge again"] if findings.curve is not None else []
    read = [f"em-interp prefer again{with_control}"] if findings.preference is not None else []
    return [
        f"em-interp train {run}/config.yaml --out again",
        *judged,
        *read,
        f"em-interp align again{with_control}" if judged or read else "em-interp locate again",
        f"em-interp report again{with_control}",
    ]
