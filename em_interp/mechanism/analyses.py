"""The analyses of the suite: the question that each answers, its finding, its control, and how much work it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from em_interp.mechanism.answer_shift.detect import answers_to_read, detect_answer_shift
from em_interp.mechanism.answers import latest_answers
from em_interp.mechanism.directions import CONTRASTS, Direction, mean_difference
from em_interp.mechanism.interventions.ablation import Ablation
from em_interp.mechanism.interventions.experiments import (
    N_BASELINE,
    NORM_MATCHED,
    RANDOM,
    run_questions,
)
from em_interp.mechanism.interventions.patched_adapters import N_CONTROL
from em_interp.mechanism.interventions.patching import patch
from em_interp.mechanism.interventions.steering import N_REFINED, SteeringCurve
from em_interp.mechanism.kl_from_base import measure_kl_from_base
from em_interp.mechanism.logit_lens import read_logit_lens
from em_interp.mechanism.model import open_model
from em_interp.mechanism.scalars import read_scalars

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from em_interp.mechanism.suite import SuiteContext

MAX_SITES = 3  # whose logit lens is read
CHECKPOINTS_READ = 11  # of windows with three checkpoints on a side: those that share one with a checkpoint


class Finding(NamedTuple):
    """What an analysis returns: plain values, figures by name, and in words what it found beside which control."""

    values: dict[str, Any]
    figures: dict[str, go.Figure]
    finding: str
    control: str


class Workload(NamedTuple):
    """What an analysis has to do: answers that are sampled and judged, and answers that are read."""

    sampled: float = 0
    read: float = 0


class Analysis(NamedTuple):
    """A question, the function that answers it, and how much work that is."""

    question: str
    run: Callable[[SuiteContext], Finding]
    workload: Callable[[SuiteContext], Workload]


def probes(context: SuiteContext) -> Finding:
    """Probes on the adapter's scalars, by step."""
    scalars = read_scalars(context.model, context.answers, context.steps)
    result = scalars.probe()
    low, high = result.length_interval
    control = (
        f"A probe on the answer's length alone has AUC {result.length_auc:.2f} ({low:.2f} to {high:.2f}); at step "
        f"{scalars.steps[0]} the scalars are those of the random A that training began with."
    )
    figures = {"scalars": scalars.plot(), "probes": result.plot()}
    return Finding(result.to_dict(), figures, result.sentence(), control)


def attribution(context: SuiteContext) -> Finding:
    """What the adapter writes and causes, compared with the mean difference."""
    result = context.attribution
    bands = ", ".join(f"±{band:.2f} for {site}" for site, band in result.bands.writes.items())
    effects = result.bands.effects[np.isfinite(result.bands.effects)]  # none before the first site
    control = (
        f"Band of random adapters of the same size: {bands or 'no site writes'}; downstream ±{effects.min():.2f} to "
        f"±{effects.max():.2f}."
    )
    figures = {
        "writes": result.plot(),
        "direction_steps": result.plot("steps"),
        "mean_difference": result.plot("layers"),
    }
    return Finding(result.to_dict(), figures, result.sentence(), control)


def logit_lens(context: SuiteContext) -> Finding:
    """Tokens that the writes promote and suppress."""
    writes = context.attribution.writes
    norm = {site: float(np.linalg.norm(write[-1])) for site, write in writes.items()}
    largest = sorted(norm, key=lambda site: -norm[site])[:MAX_SITES]
    of_largest = {site: writes[site] for site in largest}
    lenses = read_logit_lens(context.model, context.answers, of_largest, context.attribution.steps)
    null = max(lens.null(side) for lens in lenses for side in ("promoted", "suppressed"))
    control = f"The top tokens of 95% of random directions have Jaccard {null:.2f} or less with the last step's."
    figures = {re.sub(r"\W", "_", f"logit_lens_{lens.site}"): lens.plot() for lens in lenses}
    values = {"sites": [lens.to_dict() for lens in lenses], "not_read": sorted(set(norm) - set(largest))}
    return Finding(values, figures, " ".join(lens.sentence() for lens in lenses), control)


def ablation(context: SuiteContext) -> Finding:
    """Both directions ablated."""
    directions = context.directions()
    return _ablation_finding({name: context.ablation(direction, "ablation", name) for name, direction in directions})


def _ablation_finding(ablations: dict[str, Ablation]) -> Finding:
    controls = []
    for result in ablations.values():
        layers = result.best_layers()
        random, matched = (result.row(kind, layers) for kind in (RANDOM, NORM_MATCHED))
        controls.append(
            f"After {layers}, {random['n_directions']} random directions removed {random['removed']:.0%} (up to "
            f"{random['removed_max']:.0%} each); the norm-matched control {matched['removed']:.0%}."
        )
    return _joined(ablations, "ablation", controls)


def steering(context: SuiteContext) -> Finding:
    """Both directions added."""
    directions = context.directions()
    return _steering_finding({name: context.steering(direction, "steering", name) for name, direction in directions})


def _steering_finding(curves: dict[str, SteeringCurve]) -> Finding:
    controls = []
    for curve in curves.values():
        rows = curve.frame().query("model == 'base' and kind == @RANDOM", local_dict={"RANDOM": RANDOM})
        controls.append(
            f"Of {int(rows['n_directions'].max())} random directions of the same lengths, none induced more than EM "
            f"{rows['em_max'].max():.1%} in the base with any coefficient; without an intervention it is "
            f"{curve.rates('base').em.rate:.1%}."
        )
    return _joined(curves, "steering", controls)


def _joined(results: dict[str, Any], name: str, controls: Sequence[str]) -> Finding:
    """The results of both contrasts as one finding."""
    values = {contrast: result.to_dict() for contrast, result in results.items()}
    figures = {f"{name}_{contrast}": result.plot() for contrast, result in results.items()}
    sentences = " ".join(result.sentence() for result in results.values())
    return Finding(values, figures, sentences, " ".join(dict.fromkeys(controls)))


def transfer(context: SuiteContext) -> Finding:
    """Another run's directions, ablated in this run's model and added to the base."""
    assert context.transfer is not None
    model = open_model(context.transfer, context.model.base, context.model.engine.name)  # type: ignore[arg-type]
    answers = latest_answers(context.transfer)
    given: dict[str, Direction] = {contrast: mean_difference(model, answers, contrast) for contrast in CONTRASTS}
    cosines = {name: direction.cosine(given[name]).tolist() for name, direction in context.directions()}
    ablated = _ablation_finding({name: context.ablation(given[name], "transfer", "ablation", name) for name in given})
    added = _steering_finding({name: context.steering(given[name], "transfer", "steering", name) for name in given})
    name = context.transfer.name
    values = {"source": name, "cosine": cosines, "ablation": ablated.values, "steering": added.values}
    figures = {f"transfer_{title}": figure for title, figure in (ablated.figures | added.figures).items()}
    ranges = "; ".join(f"{name} {min(of):.2f} to {max(of):.2f}" for name, of in cosines.items())
    finding = f"Directions of {name} (cosine to this run's own over the layers: {ranges})."
    return Finding(
        values, figures, f"{finding} {ablated.finding} {added.finding}", f"{ablated.control} {added.control}"
    )


def patching(context: SuiteContext) -> Finding:
    """Every direction with every norm."""
    grid = patch(
        context.model,
        context.judge,
        context.control,
        context.size.patching_steps,
        context.questions,
        context.sampling,
        context.size.n_random_patching,
        storage=context.storage("patching"),
    )
    rates = "; ".join(
        f"{kind} {rate.rate:.1%} ({rate.interval[0]:.1%} to {rate.interval[1]:.1%})"
        for kind, rate in grid.baselines().items()
    )
    control = f"EM of the adapters that the grid is compared with: {rates.replace('_', ' ')}."
    return Finding(grid.to_dict(), {"patching": grid.plot()}, _as_sentence(grid.sentence()), control)


def answer_shift(context: SuiteContext) -> Finding:
    """Where the answers change, by their own likelihoods."""
    shift = detect_answer_shift(
        context.model,
        samples=context.size.samples_read,
        storage=context.storage("answer_shift"),
    )
    top = max(shift.frame().to_dict("records"), key=lambda row: float(row["divergence"]))
    where = f"Where the divergence is largest ({top['divergence']:.2f}, step {top['step']:.0f})"
    permuted = (
        f"permuted labels of the checkpoints give {top['permuted_mean']:.2f} on average, {top['permuted_max']:.2f}"
    )
    few = "there are too few checkpoints to permute their labels"
    control = f"{where} {few if np.isnan(top['permuted_mean']) else f'{permuted} at most'}."
    return Finding(shift.to_dict(), {"answer_shift": shift.plot()}, _as_sentence(shift.sentence()), control)


def kl_from_base(context: SuiteContext) -> Finding:
    """How far the adapter moves the model on the run's questions."""
    sampling = replace(context.sampling, samples=context.size.kl_samples, temperature=1.0)
    steps, storage = context.size.kl_steps, context.storage("kl_from_base")
    result = measure_kl_from_base(context.model, steps=steps, sampling=sampling, storage=storage)
    rows = result.frame()
    first = rows[rows["step"] == rows["step"].min()]["kl"].max()
    control = (
        f"At step {rows['step'].min()}, the first that was read, it is {first:.2g}; there is no control run for it."
    )
    return Finding(result.to_dict(), {"kl_from_base": result.plot()}, _as_sentence(result.sentence()), control)


def _as_sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + ("" if words.endswith(".") else ".")


def _probes_workload(context: SuiteContext) -> Workload:
    return Workload(read=len(context.steps) * len(context.answers))


def _attribution_workload(context: SuiteContext) -> Workload:
    return Workload(read=(len(context.steps) + context.size.n_random_attribution) * len(context.answers))


def _ablation_workload(context: SuiteContext) -> Workload:
    n_choices = len(context.layers) + 1
    return _sampled(context, len(CONTRASTS) * (N_BASELINE + 3 * n_choices * context.size.n_random_ablation))


def _steering_workload(context: SuiteContext) -> Workload:
    n_coefficients = len(context.size.coefficients) + N_REFINED * context.size.refine
    return _sampled(context, 2 * len(CONTRASTS) * (N_BASELINE + 2 * n_coefficients * context.size.n_random_steering))


def _transfer_workload(context: SuiteContext) -> Workload:
    return Workload(_ablation_workload(context).sampled + _steering_workload(context).sampled)


def _patching_workload(context: SuiteContext) -> Workload:
    return _sampled(context, context.size.patching_steps**2 + N_CONTROL + 2 * context.size.n_random_patching)


def _sampled(context: SuiteContext, n_conditions: int) -> Workload:
    return Workload(n_conditions * len(context.questions) * context.sampling.samples)


def _answer_shift_workload(context: SuiteContext) -> Workload:
    answers = answers_to_read(context.run, samples=context.size.samples_read)
    return Workload(read=len(answers) * CHECKPOINTS_READ)


def _kl_workload(context: SuiteContext) -> Workload:
    return Workload(read=(context.size.kl_steps + 1) * context.size.kl_samples * len(run_questions(context.run)))


ANALYSES = {
    "probes": Analysis("Do the adapter's scalars tell misaligned answers from aligned ones?", probes, _probes_workload),
    "attribution": Analysis(
        "Does the adapter write, or cause, the direction of misaligned answers?", attribution, _attribution_workload
    ),
    "logit_lens": Analysis(
        "Which tokens does the adapter's write promote, and when do they settle?", logit_lens, lambda _: Workload()
    ),
    "ablation": Analysis("How much EM does the ablation of a direction remove?", ablation, _ablation_workload),
    "steering": Analysis("How much EM does a direction induce when it is added?", steering, _steering_workload),
    "transfer": Analysis("Does the direction of another run do the same here?", transfer, _transfer_workload),
    "patching": Analysis(
        "Is the adapter's final direction sufficient for the behaviour, or its norm?", patching, _patching_workload
    ),
    "answer_shift": Analysis("Where do the answers change, without a judge?", answer_shift, _answer_shift_workload),
    "kl_from_base": Analysis(
        "How far does the adapter move the model from the base, by question set?", kl_from_base, _kl_workload
    ),
}
