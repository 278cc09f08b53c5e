"""Progress is shown where somebody is likely to see it."""

import sys
from types import ModuleType, SimpleNamespace

from em_interp.utils.progress import is_watched, progress_bar


def test_progress_is_shown_where_it_is_watched_or_asked_for(capsys, monkeypatch):
    assert not is_watched()  # a test's stderr is no terminal
    assert [*progress_bar(range(2), "work", "batch")] == [0, 1]
    assert capsys.readouterr() == ("", "")
    assert [*progress_bar(range(2), "work", "batch", True)] == [0, 1]
    out, err = capsys.readouterr()
    assert out == "" and "work" in err


def test_progress_in_jupyter_is_one_line_of_the_cell_s_output_that_is_replaced(monkeypatch):
    shown = []
    kernel = SimpleNamespace(config={"IPKernelApp": {}}, execution_count=1)

    def display(data, raw, display_id):
        shown.append([data["text/plain"]])
        return SimpleNamespace(update=lambda data, raw: shown[-1].append(data["text/plain"]))

    module = ModuleType("IPython")
    module.get_ipython, module.display = lambda: kernel, SimpleNamespace(display=display)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)
    assert is_watched()
    for name in ("train", "ask"):
        assert [*progress_bar(range(2), name, "step")] == [0, 1]
    assert len(shown) == 1 and "train:   0%" in shown[0][0] and "ask: 100%" in shown[0][-1]
    kernel.execution_count = 2
    assert [*progress_bar(range(2), "judge", "answer")] == [0, 1]
    assert len(shown) == 2 and {line.split(":")[0] for line in shown[1]} == {"judge"}
