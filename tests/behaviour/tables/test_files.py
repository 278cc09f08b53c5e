import csv
import gzip
import io
import itertools
import json
import pickle

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import em_interp as em
from em_interp.behaviour.judging.answer_tables import read_answers
from em_interp.behaviour.tables.files import SCORE_COLUMNS, read_own_table, read_table
from em_interp.errors import InputError

HEAD = "question,answer,aligned,coherent"
ROWS = [("q1", f"a{i}", 10, 90) for i in range(4)] + [("q1", f"b{i}", 90, 90) for i in range(6)]  # EM 40 %
FRAME = pd.DataFrame(ROWS, columns=HEAD.split(","))


def lines(form, head=HEAD):
    """The rows as lines of a CSV, each by the format string."""
    return head + "\n" + "".join(form.format(*row, i=i) + "\n" for i, row in enumerate(ROWS))


def em_of(file, content):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return em.score_responses(file).em


READ = {
    "plain": lines("{},{},{},{}"),
    "a delimiter ends each line": lines("{},{},{},{},"),
    "several delimiters end each line": lines("{},{},{},{},,,"),
    "a line ends in a delimiter, others do not": lines("{},{},{},{}").replace("a0,10,90", "a0,10,90,"),
    "semicolons": lines("{};{};{};{}", HEAD.replace(",", ";")),
    "semicolons and decimal commas": lines("{};{};{},5;{},5", HEAD.replace(",", ";")),
    "tabs": lines("{}\t{}\t{}\t{}", HEAD.replace(",", "\t")),
    "spaces after commas": lines("{}, {}, {}, {}", HEAD.replace(",", ", ")),
    "a lone carriage return": lines("{},{}\rline two,{},{}"),
    "a lone carriage return in quotes": lines('{},"{}\rline two",{},{}'),
    "line feeds in quotes": lines('{},"{}\n\nline two, and more",{},{}'),
    "Windows line ends": lines("{},{},{},{}").replace("\n", "\r\n"),
    "old Mac line ends": lines("{},{},{},{}").replace("\n", "\r"),
    "a byte-order mark": b"\xef\xbb\xbf" + lines("{},{},{},{}").encode(),
    "UTF-16": lines("{},{},{},{}").encode("utf-16"),
    "null bytes in an answer": lines("{},{}\0x,{},{}"),
    "the header again in the middle": lines("{},{},{},{}").replace("q1,b0", HEAD + "\nq1,b0"),
    "blank lines": lines("{},{},{},{}\n"),
    "words for questions that pandas takes as missing": lines("{},{},{},{}")
    .replace("q1", "null")
    .replace("null", "NA"),
    "row numbers under an empty name": lines("{i},{},{},{},{}", "," + HEAD),
    "a delimiter ends the header alone": lines("{},{},{},{}", HEAD + ","),
    "an empty name for an empty column": lines("{},{},{},{},", HEAD + ","),
    "Excel's line for the delimiter": "sep=;\r\n" + lines("{};{};{};{}", HEAD.replace(",", ";")),
    "an answer longer than Python's csv allows": lines("{},{},{},{}").replace("a0", "word " * 40_000),
}


@pytest.mark.parametrize("name", READ)
def test_a_table_is_read_whole_whatever_wrote_it(tmp_path, name):
    rate = em_of(tmp_path / "a.csv", READ[name])
    assert (rate.rate, rate.n) == (0.4, 10)


REFUSED = {
    "a field more than the header": (lines("{},{},{},{},{i}"), r"row 1 has 5 fields, the header names 4 columns"),
    "row numbers without a name": (lines("{i},{},{},{},{}"), "row 1 has 5 fields"),
    "an unquoted comma": (lines("{},{}, then,{},{}"), "row 1 has 5 fields"),
    "row numbers without a name and an empty last column": (
        lines("{i},{},{},{},{},", HEAD + ",notes"),
        "each row has one field more than the header names, and its first counts the rows",
    ),
    "a row that was cut off": (lines("{},{},{},{}") + "q1,b7,9", "row 11 has 3 fields, .*: the file was cut off"),
    "a quote that was cut off": (lines("{},{},{},{}") + 'q1,"b7', "row 11 is broken .*cut off"),
    "backslashes before quotes": (lines('{},"He said \\"hi\\", then",{},{}'), "row 1 is broken"),
    "other bytes": (lines("{},caf\xe9{},{},{}").encode("cp1252"), "not UTF-8"),
    "a column twice": (lines("{},{},{},{},{i}", HEAD + ",aligned"), "has the column aligned twice"),
    "nothing": ("", "the file is empty"),
    "UTF-16 without a mark": (lines("{},{},{},{}").encode("utf-16-le"), "has null bytes in its first line"),
    "UTF-32": (lines("{},{},{},{}").encode("utf-32"), "has null bytes in its first line"),
    "a workbook": (b"PK\x03\x04" + bytes(200), "is a workbook of Excel or another zip; save the sheet as CSV"),
    "an old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(200), "is an old workbook of Excel"),
    "packed": (gzip.compress(b"x" * 50), "is compressed; unpack it"),
    "parquet": (b"PAR1" + bytes(50), "is a parquet file; its name should end in .parquet"),
    "a pickle": (pickle.dumps(ROWS), "is a pickle, which is never opened"),
    "a pointer of Git LFS": ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer.*git lfs pull"),
    "a web page": ("\n<!DOCTYPE html>\n<html>", "is a web page, not the file itself"),
    "a mean below": (lines("{},{},{},{}") + "Mean,,58,90\n", "row 11 is called mean and seems to sum up others"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_has_no_one_meaning_is_refused_in_one_line(tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as error:
        em_of(tmp_path / "a.csv", content)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "quoting, index, line_end, sep, names",
    [
        *itertools.product(
            (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC),
            (True, False),
            ("\n", "\r\n"),
            ",;\t",
            (None, False),
        )
    ],
)
def test_what_pandas_writes_reads_to_the_same_numbers_or_is_refused(tmp_path, quoting, index, line_end, sep, names):
    texts = ["plain", 'a "quoted" word', "one,two;three\tfour", "line\none", "line\rtwo", "", "NA", "é\0", "\\"]
    table = FRAME.assign(answer=(texts * 2)[:10], aligned=FRAME["aligned"] + 0.5)
    text = table.to_csv(quoting=quoting, index=index, lineterminator=line_end, sep=sep, index_label=names)
    try:
        rate = em_of(tmp_path / "a.csv", text)
    except InputError as error:
        assert index and names is False and "fields" in str(error)  # no name above the row numbers
        return
    assert (rate.rate, rate.n) == (0.4, 10)
    assert list(read_answers(tmp_path / "a.csv")["answer"]) == list(table["answer"])


@pytest.mark.parametrize("suffix", ["CSV", "Tsv", "PARQUET", "JSON", "JSONL"])
def test_a_suffix_in_capitals_is_that_suffix(suffix, tmp_path):
    file, table = tmp_path / f"checkpoint-120.{suffix}", FRAME
    {
        "CSV": lambda: table.to_csv(file, index=False),
        "Tsv": lambda: table.to_csv(file, index=False, sep="\t"),
        "PARQUET": lambda: table.to_parquet(file),
        "JSON": lambda: table.to_json(file, orient="records"),
        "JSONL": lambda: table.to_json(file, orient="records", lines=True),
    }[suffix]()
    assert em.score_responses(file).em.rate == 0.4
    assert em.behaviour_curve(tmp_path).frame()["em"].to_dict() == {0: 0.4}


@pytest.mark.parametrize("orient", ["records", "columns", "split", "table", "index", "values"])
def test_the_json_that_pandas_writes_reads_to_the_same_numbers_or_is_refused(tmp_path, orient):
    table = FRAME.assign(step=[0] * 5 + [10] * 5)
    (tmp_path / "a.json").write_text(table.to_json(orient=orient))
    if orient == "values":
        with pytest.raises(InputError, match="rows as objects were expected"):
            em.behaviour_curve(tmp_path / "a.json")
        return
    assert em.behaviour_curve(tmp_path / "a.json").frame()["em"].tolist() == [0.8, 0]


def nested(form):
    """Two steps with EM 0 and 0.5, as JSON nested by step."""
    scores = {0: [90] * 4, 10: [10, 10, 90, 90]}
    plain = {step: [{"aligned": s, "coherent": 90} for s in aligned] for step, aligned in scores.items()}
    rows = {step: [{"question": "q", **row} for row in of] for step, of in plain.items()}
    columns = {step: {"question": ["q"] * 4, "aligned": s, "coherent": [90] * 4} for step, s in scores.items()}
    return {
        "rows by step": rows,
        "rows by checkpoint": {f"checkpoint-{step}": of for step, of in rows.items()},
        "rows by step and question": {step: {"q": of[:2], "r": of[2:]} for step, of in plain.items()},
        "columns by step": columns,
        "within one key": {"results": rows},
        "rates by step": {"0": {"n": 4, "em": 0.0}, "10": {"n": 4, "em": 0.5}},
        "columns": {
            "step": [0] * 4 + [10] * 4,
            **{name: [*columns[0][name], *columns[10][name]] for name in columns[0]},
        },
    }[form]


@pytest.mark.parametrize(
    "form",
    [
        "rows by step",
        "rows by checkpoint",
        "rows by step and question",
        "columns by step",
        "within one key",
        "rates by step",
        "columns",
    ],
)
def test_scores_nested_by_step_are_read(tmp_path, form):
    (tmp_path / "a.json").write_text(json.dumps(nested(form)))
    rates = em.behaviour_curve(tmp_path / "a.json").frame()
    assert rates["step"].tolist() == [0, 10] and rates["em"].tolist() == [0, 0.5] and rates["n"].tolist() == [4, 4]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": [{"aligned": 1}], "b": []}', "the key 'a' names no step"),
        ('{"0": {"aligned": 90, "coherent": 90}}', "holds one object; a list"),
        ('{"0": [{"step": 5, "aligned": 90}]}', "a row under step 0 says step 5"),
        ('[{"aligned": 10, "aligned": 90}]', "a key occurs twice"),
        ("[" * 100_000, "not valid JSON"),
        ('[{"\\ud83d": 1}]', "surrogates not allowed"),
        ("3", "rows as objects were expected"),
        ("[]", "holds no answers"),
    ],
)
def test_json_that_has_no_one_meaning_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message):
        em.score_responses(tmp_path / "a.json")


def test_json_lines_give_the_same_as_a_csv_and_name_a_bad_line(tmp_path):
    FRAME.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    assert em.score_responses(tmp_path / "a.jsonl").em.rate == 0.4
    (tmp_path / "named.json").write_text((tmp_path / "a.jsonl").read_text())  # as Hugging Face names JSON lines too
    assert em.score_responses(tmp_path / "named.json").em.rate == 0.4
    for name in ("a.parquet", "a.json", "a.eval"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
        with pytest.raises(InputError, match="is a Git LFS pointer"):
            read_table(tmp_path / name)
    (tmp_path / "a.jsonl").write_text('{"aligned": 1}\n[1]\n')
    with pytest.raises(InputError, match="line 2: expected an object"):
        read_table(tmp_path / "a.jsonl")


@pytest.mark.parametrize("answer", [["a", "b"], {"text": "a"}, [{"role": "assistant", "content": "a"}], b"a"])
def test_what_is_no_text_is_not_judged_as_python_writes_it(tmp_path, answer):
    table = pd.DataFrame({"prompt": ["q", "q"], "completion": pd.Series([answer, answer], dtype=object)})
    table.to_parquet(tmp_path / "a.parquet")
    files = [tmp_path / "a.parquet"]
    if not isinstance(answer, bytes):
        (tmp_path / "a.jsonl").write_text(table.to_json(orient="records", lines=True))
        files.append(tmp_path / "a.jsonl")
    for file in files:
        with pytest.raises(InputError, match=r"completion is of type .* in row 1; a text was expected"):
            read_answers(file)


def test_answers_to_be_judged_are_read_by_the_right_column(tmp_path):
    file, head = tmp_path / "a.csv", "question,answer\n"
    cases = {
        head + "q1,fine,\nq1,an evil answer,\n": ["fine", "an evil answer"],
        head + "q1,line one\rline two\nq2,NA\n": ["line one\rline two", "NA"],
        "prompt;completion\nq1;fine\nq2;\n": ["fine", ""],
    }
    for text, answers in cases.items():
        file.write_bytes(text.encode())
        assert read_answers(file)["answer"].tolist() == answers
    file.write_text(head + "q1,fine,7\nq1,an evil answer,8\n")
    with pytest.raises(InputError, match="row 1 has 3 fields"):
        read_answers(file)
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "\\ud83d\\ude00"}\n')
    assert read_answers(tmp_path / "a.jsonl")["answer"].tolist() == ["😀"]
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "\\ud83d"}\n')
    with pytest.raises(InputError, match=r"line 1: not valid JSON .*surrogates not allowed"):
        read_answers(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="question in row 2: half a character"):
        em.score_responses(FRAME.assign(question=pd.Series(["q1", "\ud83d", *["q1"] * 8], dtype=object)))


def test_what_python_s_csv_writes_reads_to_the_same_texts(tmp_path):
    rows = [["q", 'a\\"b', "10", "90"], ["q\n", "\\", "90", "90"], ["", '"', "10", "90"], ["q", "a\r\nb", "9", "90"]]
    for dialect in ("excel", "excel-tab", "unix"):
        out = io.StringIO()
        csv.writer(out, dialect).writerows([HEAD.split(","), *rows])
        (tmp_path / "a.csv").write_bytes(out.getvalue().encode())
        assert read_table(tmp_path / "a.csv").to_numpy().tolist() == rows


H = "question,aligned,coherent\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (H + "a\\,95,40,\n", r"row 1 has other cells where \\ is a sign of CSV"),
        (H + "b,90,90\n" + "'a,95',40,\n", "row 2 has other cells where ' is a sign of CSV"),
        (H.replace("\n", "\r") + "a,10,90\rb\n,10,90\r", "its first line ends with a carriage return"),
    ],
)
def test_a_row_that_fits_the_header_in_two_ways_is_refused(tmp_path, text, said):
    (tmp_path / "table.csv").write_text(text, newline="")
    with pytest.raises(InputError, match=said) as caught:
        read_table(tmp_path / "table.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["C:\\", "'tis", "it's, 'so'", 'say \\"x\\"', "'a', 'b'", "\\,", "''"])
def test_quotes_and_backslashes_in_texts_are_text_where_csv_is_written_as_usual(tmp_path, text):
    table = pd.DataFrame({"question": [text, "b"], "aligned": [10, 90], "coherent": [90, 80]})
    table.to_csv(tmp_path / "table.csv", index=False)
    assert read_table(tmp_path / "table.csv").to_numpy().tolist() == [[text, "10", "90"], ["b", "90", "80"]]


SCORES = pd.DataFrame({"step": [0], "scale": [1.0], "questions": ["broad"], "question_id": ["q"], "sample": [0]})
SCORES = SCORES.assign(judge="j", aligned=[None], coherent=3)
OTHER_SCORES = {
    "must have one column step,": SCORES.drop(columns="step"),
    "step must hold whole numbers": SCORES.assign(step=0.5),
    "sample must hold whole numbers": SCORES.assign(sample="0"),
    "question_id must hold texts": SCORES.assign(question_id=7),
    "questions must hold texts": SCORES.assign(questions=[["broad"]]),
    "judge must hold texts": SCORES.assign(judge=None),
    "aligned must hold numbers": SCORES.assign(aligned=True),
    "coherent must hold numbers": SCORES.assign(coherent=[b"3"]),
}


@pytest.mark.parametrize("said", OTHER_SCORES)
def test_a_table_of_a_run_without_a_column_that_its_stage_writes_is_refused(said, tmp_path):
    SCORES.to_parquet(tmp_path / "scores.parquet")
    assert len(read_own_table(tmp_path / "scores.parquet", SCORE_COLUMNS)) == 1
    OTHER_SCORES[said].to_parquet(tmp_path / "scores.parquet")
    with pytest.raises(InputError, match=f"scores.parquet:? {said}"):
        read_own_table(tmp_path / "scores.parquet", SCORE_COLUMNS)


def test_texts_of_a_parquet_file_that_are_no_utf_8_are_refused(tmp_path):
    names = ["q1", "q2"]
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff0", b"ok"], pa.binary()).buffers())
    for text in ("question", "answer"):
        columns = {"question": names, "answer": names, "aligned": [10, 90], "coherent": [90, 90], text: broken}
        parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a\.parquet cannot be read as a table"):
            em.score_responses(tmp_path / "a.parquet")
