"""Makes docs/gallery.md: every figure of `em_interp.figures`, drawn from the demo's runs, with its caption.

    make demo; .venv/bin/pip install pillow
    .venv/bin/python benchmarks/gallery.py [--demo checkpoints/demo] [--only norms …]

A new figure belongs into EXHIBITS, with one sentence of what it shows (a test counts them), and its picture is made by
this script. Pictures are small: under 60 kB each and 1.5 MB together.
"""

import argparse
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "images" / "gallery"
MAX_BYTES, MAX_BYTES_IN_ALL = 60_000, 1_500_000
COLOURS = 192  # of a picture
SCREEN = {1: (428, 1.4), 2: (897, 1.0)}  # columns of a paper: width of the layout in pixels, and the picture's scale

HEAD = """\
# Gallery
Every figure of the package, drawn from the runs of `make demo`: an organism, its control on careful advice, and a run
whose data change at step 150. The figure `composition` shows a run with nine adapters, and the figures of several bases
compare the organism with the same organism on Llama. Each call returns a plotly Figure and writes nothing. The palette
is that of Okabe and Ito, whose colours remain distinct under common colour blindness; steps are coloured by viridis.

To write a figure to files, at the width of a paper's column (85 mm) or page (178 mm), with its caption as text and its
numbers as CSV:

```python
import em_interp as em

figure = em.figures.norms(em.load_trajectory("checkpoints/demo/organism"))
em.figures.export(figure, "norms.html", columns=1)
em.figures.caption(figure)
em.figures.numbers(figure)
```

PDF, SVG and PNG are written in the same way if Chrome or Chromium is installed. `em-interp report --figures`, or
`em.export_run` in Python, writes every figure of a run to its folder `figures/`. **Needs Chrome or Chromium**:

```bash
em-interp report checkpoints/demo/organism --figures pdf --overwrite
em-interp report checkpoints/demo/organism --figures svg,png --paper-columns 1 --resume
```

This page is made by `benchmarks/gallery.py`.
"""


class Demo:
    """What the figures are drawn from, each read once."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def found(self, name, control=None):
        from em_interp.reports.findings import find_in_run

        return find_in_run(self.folder / name, control)

    @cached_property
    def organism(self):
        return self.found("organism", self.folder / "control")

    @cached_property
    def switched(self):
        return self.found("switched")

    @cached_property
    def comparison(self):
        import em_interp as em

        return em.compare([self.folder / name for name in ("organism", "control", "switched")])

    @cached_property
    def model(self):
        from em_interp.mechanism import open_model

        return open_model(self.folder / "organism")

    @cached_property
    def answers(self):
        """The last step's answers to questions that are not about the training domain."""
        from em_interp.mechanism import latest_answers

        return latest_answers(self.folder / "organism")

    @cached_property
    def attribution(self):
        from em_interp.mechanism import attribute_direction

        return attribute_direction(self.model, self.answers, range(0, 401, 20))

    @cached_property
    def direction(self):
        return self.attribution.reference

    @cached_property
    def scalars(self):
        from em_interp.mechanism import read_scalars

        return read_scalars(self.model, self.answers, range(0, 401, 20))

    @cached_property
    def probes(self):
        return self.scalars.probe()

    @cached_property
    def mechanism(self):
        """The figures of `em-interp mechanism` on the organism, by name; minutes where it has not been run."""
        import em_interp as em

        report = em.run_mechanism(self.folder / "organism", self.folder / "control", resume=True, log=print)
        return report.figures

    def more(self, name, config):
        """A run beside the demo's that has been asked and judged; made where it is not there."""
        import em_interp as em

        run = em.train(config, self.folder.parent / f"{self.folder.name}-gallery" / name, resume=True)
        em.ask(run, resume=True)
        em.judge(run, resume=True)
        return run

    @cached_property
    def across(self):
        import em_interp as em
        from em_interp.organisms.presets import recipe

        llama = self.more("llama", recipe("organism", "llama"))
        return em.compare_across_bases([self.folder / "organism", llama], draws=39, steering_transfer=True, log=print)

    @cached_property
    def several(self):
        """The transition that a path of several adapters has beside those of one."""
        import em_interp as em
        from em_interp.organisms.presets import for_model

        config, _ = for_model(em.load_config(ROOT / "configs" / "nine-adapters.yaml"), "tiny-qwen2")
        run = em.train(config, self.folder.parent / f"{self.folder.name}-gallery" / "several", resume=True)
        return em.find_transition(em.load_trajectory(run), "composition")

    def of(self, signal):
        return next(t for t in self.organism.transitions if t.signal == signal)

    def sweep(self):
        """The demo's three runs, as if they were a sweep."""
        import pandas as pd

        from em_interp.figures.sweeps import sweep
        from em_interp.results import interval_columns

        rows = []
        for name in ("organism", "control", "switched"):
            found = self.found(name)
            onset = [t for t in found.onsets if t.scale == 1 and t.questions == "out_of_domain"]
            for transition in (found.rotation, *found.transitions, *onset):
                if transition.signal in ("rotation", "gradient_norm", "onset") and transition.of in ("B", None, "em"):
                    row = {"group": name, "run": name, "signal": transition.signal, "verdict": transition.verdict}
                    ends = interval_columns("step", transition.interval)
                    rows.append(row | {"step": transition.step, **ends, "reason": transition.reason})
        signals = pd.DataFrame(rows).drop_duplicates(["run", "signal"])
        pooled = pd.DataFrame(columns=["group", "signal", "mean", "mean_low", "mean_high"])
        return sweep(signals.astype({"step": float}), pooled)


class Exhibit(NamedTuple):
    section: str
    shows: str  # what the figure shows, in a sentence
    draw: object = None  # from a Demo; None: there is no picture yet
    call: str = ""  # the Python that draws it
    run: str | None = "organism"  # of the demo, whose setting goes into the caption; None: of several


def _figure(name, *of, **more):
    def draw(demo):
        from em_interp import figures

        return getattr(figures, name)(*(one(demo) for one in of), **{key: one(demo) for key, one in more.items()})

    return draw


PATH, TRANSITIONS, BEHAVIOUR = "The path of an adapter", "Its transitions", "Behaviour, and both together"
SEVERAL, BASES, INSIDE = "Several runs", "Several bases", "Inside the model"


def _path(demo):
    return demo.organism.trajectory


def _found(demo):
    return demo.organism.transitions


def _watched():
    import em_interp as em

    return em.watch(em.planted_path("gradual", 7).trajectory(), signals=["rotation"])


def _rotations(demo):
    return [t for t in demo.switched.transitions if t.signal == "rotation" and t.of == "B"]


def _changes(demo):
    from em_interp.reports.run_figures import known_changes

    return known_changes(demo.switched.run)


EXHIBITS = {
    "trajectory": Exhibit(
        PATH,
        "A whole path at a glance: how large the adapter grows, where it goes, and how sharply it turns.",
        _figure("trajectory", _path),
        "em.figures.trajectory(path)",
    ),
    "norms": Exhibit(
        PATH, "How large B, A and ΔW are at each step.", _figure("norms", _path), "em.figures.norms(path)"
    ),
    "pca": Exhibit(
        PATH,
        "The path of B in the plane of its first two principal components, with rings around the turns found.",
        _figure("pca", _path, transitions=_found),
        "em.figures.pca(path, transitions=found)",
    ),
    "turning_angle": Exhibit(
        PATH,
        "The published turning angles at several spacings, with what a straight path with this noise would show; above "
        "them the rotation test, and the known change of the data.",
        _figure(
            "turning_angle",
            lambda demo: demo.switched.trajectory,
            transitions=lambda demo: demo.switched.transitions,
            known_changes=_changes,
        ),
        'em.figures.turning_angle(path, k=[5, 10, 20], transitions=found, known_changes={150: "new data"})',
        "switched",
    ),
    "local_cosine": Exhibit(
        PATH,
        "The published local cosine and the step of its maximum, with the step, interval and verdict of the rotation "
        "test.",
        _figure("local_cosine", _path, transition=lambda demo: demo.organism.rotation),
        "em.figures.local_cosine(path, k=[5, 10, 15])",
    ),
    "training_log": Exhibit(
        PATH,
        "Loss, gradient norm and learning rate as the trainer logged them.",
        _figure("training_log", _path, _found),
        "em.figures.training_log(path, found)",
    ),
    "rotation": Exhibit(
        TRANSITIONS,
        "How far the path turns at each step beyond its own curvature, with intervals, and the null hypothesis of 20°.",
        _figure("rotation", _rotations),
        "em.figures.rotation(rotations)",
        "switched",
    ),
    "monitor": Exhibit(
        TRANSITIONS,
        "The live monitor on a planted run: the run-wise p-value of each look, the level, and the alarm.",
        _figure("monitor", lambda demo: _watched()),
        "em.figures.monitor(em.watch(run))",
        None,
    ),
    "gradient_norm": Exhibit(
        TRANSITIONS,
        "The hump of the logged gradient norm, its peak with an interval, and the nearest trend without a hump.",
        _figure("gradient_norm", lambda demo: demo.of("gradient_norm")),
        "em.figures.gradient_norm(transition)",
    ),
    "norm_onset": Exhibit(
        TRANSITIONS,
        "The step at which ‖ΔW‖ starts to grow faster, compared with growth that never speeds up.",
        _figure("norm_onset", lambda demo: demo.of("norm_onset")),
        "em.figures.norm_onset(transition)",
    ),
    "lock_in": Exhibit(
        TRANSITIONS,
        "The step from which on ΔW has nearly its final direction; a description, not a test.",
        _figure("lock_in", lambda demo: demo.of("lock_in")),
        "em.figures.lock_in(transition)",
    ),
    "composition": Exhibit(
        TRANSITIONS,
        "The step from which on several adapters together write nearly what they write at the end (a score of 0.95); "
        "a description, here for the nine adapters of one run.",
        lambda demo: demo.several.plot(),
        'em.find_transition(path, "composition").plot()',
        None,
    ),
    "transition": Exhibit(
        TRANSITIONS,
        "The figure for any transition, which depends on its signal; here the rotation of ΔW.",
        _figure(
            "transition",
            lambda demo: next(t for t in demo.switched.transitions if (t.signal, t.of) == ("rotation", "delta")),
        ),
        "em.figures.transition(transition), or transition.plot()",
        "switched",
    ),
    "behaviour": Exhibit(
        BEHAVIOUR,
        "EM and coherent rates by step and question set at each adapter scale, with intervals and the control.",
        _figure(
            "behaviour",
            lambda demo: demo.organism.curve,
            lambda demo: demo.organism.control,
            lambda demo: demo.organism.onsets,
        ),
        "em.figures.behaviour(curve, control, onsets)",
    ),
    "onset": Exhibit(
        BEHAVIOUR,
        "The rise of one rate: the observed rate at each step, the fitted rise, the control, and the half-rise.",
        _figure(
            "onset",
            lambda demo: next(
                t for t in demo.organism.onsets if t.scale in (None, 1) and t.questions == "out_of_domain"
            ),
        ),
        "em.figures.onset(transition)",
    ),
    "scores": Exhibit(
        BEHAVIOUR,
        "EM and coherent rates of one table of judged answers, question by question.",
        _figure("scores", lambda demo: demo.organism.curve.select(1.0).at(int(demo.organism.curve.steps[-1]))),
        "em.figures.scores(scored)",
    ),
    "preference": Exhibit(
        BEHAVIOUR,
        "The change of the preference for misaligned over aligned answers by step, the share of pairs, the control "
        "and the style null, measured without sampling or a judge.",
        None,
    ),
    "shift_onset": Exhibit(
        BEHAVIOUR,
        "The onset of that preference: the mean change, the fitted rise, the control and the style null.",
        None,
    ),
    "timeline": Exhibit(
        BEHAVIOUR,
        "Every transition with its interval, by step and by cumulative learning rate; here for the run whose data "
        "change at step 150 (dashed).",
        _figure(
            "timeline",
            lambda demo: demo.switched.transitions,
            lambda demo: demo.switched.trajectory,
            known_changes=_changes,
        ),
        'em.figures.timeline(found, path, known_changes={150: "new data"})',
        "switched",
    ),
    "alignment": Exhibit(
        BEHAVIOUR,
        "The rotation and the onsets of EM on one axis, with their offsets as arrows.",
        _figure("alignment", lambda demo: demo.organism.alignment, _path, _found),
        "em.figures.alignment(alignment, path, found)",
    ),
    "direction_matrix": Exhibit(
        SEVERAL,
        "The cosines of the final directions of several runs; grey numbers are within the band of random directions.",
        lambda demo: demo.comparison.plot("pairs"),
        "em.compare(runs).plot()",
        None,
    ),
    "direction_onset": Exhibit(
        SEVERAL,
        "The step from which on one run's direction is similar to another's final direction, above the random band.",
        lambda demo: demo.comparison.plot("direction_onset"),
        'em.compare(runs).plot("direction_onset")',
        None,
    ),
    "step_cosines": Exhibit(
        SEVERAL,
        "When during training two runs have the same direction: every step of one against every step of the other.",
        lambda demo: demo.comparison.plot("steps"),
        'em.compare(runs).plot("steps")',
        None,
    ),
    "common_plane": Exhibit(
        SEVERAL,
        "The paths of several runs in one plane.",
        lambda demo: demo.comparison.plot("plane", "delta"),
        'em.compare(runs).plot("plane", "delta")',
        None,
    ),
    "agreement": Exhibit(
        SEVERAL,
        "Whether several runs change at the same step: the step of each with its interval, and the pooled step.",
        lambda demo: demo.comparison.plot("agreement", signal="gradient_norm"),
        'em.compare(runs).plot("agreement", signal="gradient_norm")',
        None,
    ),
    "sweep": Exhibit(
        SEVERAL,
        "When each run of a sweep changes, by group, and which have no change; here the demo's three runs.",
        Demo.sweep,
        "em.sweep(config).plot()",
        None,
    ),
    "similarity": Exhibit(
        BASES,
        "How similar the changes of the residual stream on different bases are, against norm-matched random adapters.",
        lambda demo: demo.across.plot(),
        "em.compare_across_bases(runs).plot()",
        None,
    ),
    "logit_lens_similarity": Exhibit(
        BASES,
        "The tokens that the adapters on two bases promote and suppress, token against token.",
        lambda demo: demo.across.plot("tokens"),
        'em.compare_across_bases(runs).plot("tokens")',
        None,
    ),
    "steering_transfer": Exhibit(
        BASES,
        "The effect of a steering direction transferred to another base, beside that base's own and random ones.",
        lambda demo: demo.across.plot("steering_transfer"),
        'em.compare_across_bases(runs, steering_transfer=True).plot("steering_transfer")',
        None,
    ),
    "turning_profiles": Exhibit(
        BASES,
        "When the paths on different bases turn, on a common time axis, with the spread over seeds.",
        lambda demo: demo.across.plot("profiles"),
        'em.compare_across_bases(runs).plot("profiles")',
        None,
    ),
    "mean_difference": Exhibit(
        INSIDE,
        "The difference between misaligned and aligned answers in the residual stream after each layer: its size and "
        "its reliability.",
        lambda demo: demo.direction.plot(),
        "mean_difference(model, answers).plot()",
    ),
    "writes": Exhibit(
        INSIDE,
        "Whether the adapter's write, or its effect in later layers, points along that difference, with the null band.",
        lambda demo: demo.attribution.plot(),
        "attribute_direction(model, answers).plot()",
    ),
    "direction_steps": Exhibit(
        INSIDE,
        "How similar that difference is in the models of different steps.",
        lambda demo: demo.attribution.plot("steps"),
        'attribute_direction(model, answers).plot("steps")',
    ),
    "scalars": Exhibit(
        INSIDE,
        "The adapter's scalars over the tokens of misaligned and of aligned answers, by step.",
        lambda demo: demo.scalars.plot(),
        "read_scalars(model, answers).plot()",
    ),
    "probes": Exhibit(
        INSIDE,
        "How well these scalars separate misaligned from aligned answers, by step, compared with the answer's length.",
        lambda demo: demo.probes.plot(),
        "read_scalars(model, answers).probe().plot()",
    ),
    "patching": Exhibit(
        INSIDE,
        "EM of every direction of ΔW with every norm on the path: is the final direction sufficient, or the norm?",
        lambda demo: demo.mechanism["patching"],
        "patch(model, judge, control).plot()",
        "organism",
    ),
    "steering": Exhibit(
        INSIDE,
        "EM and coherent rates by steering coefficient, and the usable coefficients.",
        lambda demo: demo.mechanism["steering_models"],
        'em.run_mechanism(run, analyses=["steering"])',
        "organism",
    ),
    "ablation": Exhibit(
        INSIDE,
        "EM with a direction ablated, with random directions and with the norm-matched control.",
        lambda demo: demo.mechanism["ablation_models"],
        'em.run_mechanism(run, analyses=["ablation"])',
        "organism",
    ),
    "logit_lens": Exhibit(
        INSIDE,
        "The tokens that the adapter's write promotes and suppresses at each step, and when they settle.",
        lambda demo: demo.mechanism["logit_lens_layers_0_mlp_down_proj"],
        'em.run_mechanism(run, analyses=["logit_lens"])',
        "organism",
    ),
    "kl_from_base": Exhibit(
        INSIDE,
        "KL(base ‖ adapted) of the next token on the run's questions, by step.",
        lambda demo: demo.mechanism["kl_from_base"],
        "measure_kl_from_base(model).plot()",
        "organism",
    ),
    "answer_shift": Exhibit(
        INSIDE,
        "The divergence between the answers of the checkpoints before and after each step, from their own likelihoods.",
        lambda demo: demo.mechanism["answer_shift"],
        "detect_answer_shift(model).plot()",
        "organism",
    ),
}


def page(captions):
    """The page, with the caption of each exhibit that has a picture."""
    parts = [HEAD]
    for section in dict.fromkeys(exhibit.section for exhibit in EXHIBITS.values()):
        parts.append(f"## {section}\n")
        for name, exhibit in EXHIBITS.items():
            if exhibit.section == section:
                parts.append(_entry(name, exhibit, captions.get(name)))
    return "\n".join(parts)


def _entry(name, exhibit, caption):
    if exhibit.draw is None:
        return f"### {name}\n{exhibit.shows} No picture: it takes more than the demo's runs.\n"
    picture = f"![{exhibit.shows}](images/gallery/{name}.png)"
    return f"### {name}\n{exhibit.shows}\n`{exhibit.call}`\n\n{picture}\n\n> {caption}\n"


def captions_of(text):
    """The captions that the page has already, by figure."""
    parts = (part.split("\n", 1) for part in text.split("\n### ")[1:])
    return {name: body.split("\n> ", 1)[1].split("\n")[0] for name, body in parts if "\n> " in body}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", default=ROOT / "checkpoints" / "demo")
    parser.add_argument("--only", nargs="*", default=list(EXHIBITS), metavar="NAME", help="draw these anew")
    arguments = parser.parse_args()
    demo = Demo(arguments.demo)
    drawn = {name: draw(EXHIBITS[name], demo) for name in arguments.only if EXHIBITS[name].draw is not None}
    captions = captions_of(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    captions |= picture(drawn)
    PAGE.write_text(page(captions), encoding="utf-8")


def draw(exhibit, demo):
    """The figure, with whose it is where it is of one run."""
    from em_interp.figures.export_files import with_setting
    from em_interp.reports.run_figures import setting_of

    figure = exhibit.draw(demo)
    return figure if exhibit.run is None else with_setting(figure, setting_of(getattr(demo, exhibit.run)))


def picture(drawn):
    """Draw the figures into the folder of pictures, through one browser; returns their captions."""
    import plotly.io as pio
    from PIL import Image

    from em_interp.figures import caption
    from em_interp.figures.export_files import columns_of
    from em_interp.figures.style import without_title

    bare = {name: without_title(figure) for name, figure in drawn.items()}
    widths, scales = zip(*(SCREEN[columns_of(figure, 1)] for figure in drawn.values()), strict=True)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.png" for name in drawn]
        heights = [figure.layout.height for figure in bare.values()]
        pio.write_images(list(bare.values()), files, width=list(widths), height=heights, scale=list(scales))
        for file in files:
            target = PICTURES / file.name
            whole = Image.open(file).convert("RGB")  # a few colours cover most of it; the others must survive too
            small = whole.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            small.save(target, optimize=True)
            print(f"{file.name}: {target.stat().st_size / 1000:.0f} kB")
    return {name: caption(figure) for name, figure in drawn.items()}


if __name__ == "__main__":
    main()
