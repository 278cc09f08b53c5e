"""A table that pandas, csv or json wrote with any of their options is read to the same numbers, or refused."""

import csv
import io
import json
import math

import pandas as pd
from hypothesis import assume, given
from hypothesis import strategies as st

from em_interp.behaviour.tables.judged import read_judged
from em_interp.errors import InputError

# what a text may hold that a table is made of
LETTERS = st.sampled_from([*"ab 1,;:\t|\"'\n\r\\#=%é🙂\u2028\u00a0", "NA", "nan", "\r\n", "sep=;", "85"])
TEXTS = st.lists(LETTERS, min_size=1, max_size=6).map("".join).filter(str.strip)
SCORES = st.integers(0, 100) | st.integers(0, 1000).map(lambda tenth: tenth / 10)
CELLS = SCORES | st.none() | st.just("REFUSAL")
NAMES = {
    "question": ["question", "prompt", "Question"],
    "answer": ["answer", "response", "completion"],
    "aligned": ["aligned", "aligned_score", "Alignment"],
    "coherent": ["coherent", "coherence", "coherent_score"],
    "step": ["step", "global_step", "checkpoint"],
}
EXTRA = st.sampled_from(["seed", "a;b;c;d;e;f", "model name", "", "index", "1", 'the "raw" reply', "scored", "level_0"])


@st.composite
def tables(draw, numbers_only=False):
    """Judged answers with the columns in any order, under names that are known, and columns of other things."""
    count = draw(st.integers(1, 5))
    kinds = {
        "question": TEXTS,
        "answer": TEXTS,
        "aligned": SCORES if numbers_only else CELLS,
        "coherent": SCORES if numbers_only else CELLS,
        "step": st.integers(0, 3000),
    }
    columns = {name: draw(st.lists(kind, min_size=count, max_size=count)) for name, kind in kinds.items()}
    for name in draw(st.sets(EXTRA, max_size=2)):
        columns[name] = draw(st.lists(TEXTS | st.integers(-5, 500), min_size=count, max_size=count))
    named = {name: draw(st.sampled_from(NAMES.get(name, [name]))) for name in draw(st.permutations(list(columns)))}
    truth = [
        (columns["step"][row], columns["question"][row], *_scores(columns["aligned"][row], columns["coherent"][row]))
        for row in range(count)
    ]
    return pd.DataFrame({named[name]: pd.Series(columns[name], dtype=object) for name in named}), truth


def _scores(aligned, coherent):
    """Both scores of an answer, or none."""
    return (
        (aligned, coherent) if all(isinstance(score, (int, float)) for score in (aligned, coherent)) else (None, None)
    )


def _bare(text):
    """A text without quotes and escapes, which some options leave in it."""
    return "".join(text.replace("\\", "").replace('"', "").replace("'", "").split())


def check(source, truth):
    """What is read is the truth, unless it is refused in one line."""
    try:
        table = read_judged(source)
    except InputError as error:
        assert "\n" not in str(error)
        return False
    scores = zip(table["aligned"], table["coherent"], strict=True)
    found = [tuple(None if math.isnan(score) else score for score in pair) for pair in scores]
    assert found == [row[2:] for row in truth]
    assert table["step"].tolist() == [row[0] for row in truth]
    assert [_bare(text) for text in table["question_id"]] == [_bare(row[1]) for row in truth]
    return True


@given(
    tables(),
    st.fixed_dictionaries(
        {
            "sep": st.sampled_from([",", ";", "\t", "|", " "]),
            "index": st.booleans(),
            "index_label": st.sampled_from([None, "index", "row"]),
            "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_NONE]),
            "quotechar": st.sampled_from(['"', "'"]),
            "doublequote": st.booleans(),
            "escapechar": st.sampled_from(["\\", None]),
            "decimal": st.sampled_from([".", ","]),
            "na_rep": st.sampled_from(["", "NA", "nan", "NULL", "-1", "REFUSAL"]),
            "float_format": st.sampled_from([None, "%.1f", "%.3f", "%g"]),
            "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"]),
            "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
        }
    ),
    st.booleans(),
)
def test_what_pandas_writes_as_csv(tmp_path_factory, written, options, as_numbers):
    table, truth = written
    file = tmp_path_factory.mktemp("csv") / "table.csv"
    if as_numbers:
        table = table.infer_objects()
    try:
        table.to_csv(file, **options)
    except (csv.Error, UnicodeEncodeError):  # what pandas cannot write
        assume(False)
    check(file, truth)


@given(
    tables(),
    st.sampled_from(["records", "split", "index", "columns", "values", "table"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_what_pandas_writes_as_json(tmp_path_factory, written, orient, lines, ascii_only, indented):
    table, truth = written
    folder = tmp_path_factory.mktemp("json")
    file = folder / ("table.jsonl" if lines and orient == "records" else "table.json")
    lines = lines and orient == "records"
    options = {
        "orient": orient,
        "lines": lines,
        "force_ascii": ascii_only,
        "indent": 1 if indented and not lines else None,
    }
    assume(not (orient == "table" and "index" in table))  # which pandas cannot write
    table.to_json(file, **options)
    check(file, truth)


@given(tables(numbers_only=True), st.booleans(), st.booleans())
def test_what_pandas_writes_as_parquet_and_a_frame_itself(tmp_path_factory, written, index, nullable):
    table, truth = written
    plain = table.rename(columns=str).infer_objects()
    for name in plain:
        if plain[name].dtype == object:
            plain[name] = plain[name].astype(str)
    plain = plain.convert_dtypes() if nullable else plain
    file = tmp_path_factory.mktemp("parquet") / "table.parquet"
    plain.to_parquet(file, index=index)
    shuffled = plain.set_axis([7] * len(plain))  # rows whose labels tell nothing
    assert check(file, truth) == check(shuffled, truth) == check(plain, truth)


@given(
    tables(),
    st.fixed_dictionaries(
        {
            "delimiter": st.sampled_from([",", ";", "\t"]),
            "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
            "lineterminator": st.sampled_from(["\n", "\r\n", "\n\n", "{}\n"]),
            "skipinitialspace": st.booleans(),
        }
    ),
    st.sampled_from(["", "sep={}\n", "\n\n", "# judged by a model\n"]),
    st.sampled_from([0, 1, 7]),
)
def test_what_csv_writes_also_when_it_was_cut_off(tmp_path_factory, written, options, before, cut):
    table, truth = written
    content = io.StringIO(newline="")
    content.write(before.format(options["delimiter"]))
    options["lineterminator"] = options["lineterminator"].format(options["delimiter"])
    csv.writer(content, **options).writerows([list(table.columns), *table.astype(object).to_numpy().tolist()])
    file = tmp_path_factory.mktemp("csv") / "table.csv"
    text = content.getvalue()
    file.write_text(text[: len(text) - cut], encoding="utf-8", newline="")
    whole = cut <= len(options["lineterminator"])
    try:
        rows = read_judged(file)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert not cut or whole or len(rows) <= len(truth)
    if whole:
        check(file, truth)


@given(tables(), st.booleans(), st.sampled_from([None, 1]))
def test_what_json_writes_by_step(tmp_path_factory, written, named, indent):
    table, truth = written
    step = next(name for name in NAMES["step"] if name in table)
    by_step = {}
    for row in table.to_dict("records"):
        number = row.pop(step)
        by_step.setdefault(f"checkpoint-{number}" if named else str(number), []).append(row)
    file = tmp_path_factory.mktemp("json") / "table.json"
    file.write_text(json.dumps(by_step, indent=indent))
    check(file, sorted(truth, key=lambda row: list(by_step).index(f"checkpoint-{row[0]}" if named else str(row[0]))))
