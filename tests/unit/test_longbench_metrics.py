"""LongBench's metrics against values from its own code, and the oddities they keep."""

import difflib
import json
import marshal
import os
import re
import string
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transition.data.longbench_tasks import TASK_FACTS
from kv_transition.errors import UserError
from kv_transition.eval import longbench_metrics
from kv_transition.eval.failure_taxonomy import first_line
from kv_transition.eval.longbench_metrics import (
    OFFICIAL_METRICS,
    check_gold,
    choice,
    classification,
    code_sim,
    count,
    official_score,
    qa_f1,
    qa_f1_zh,
    recursion_artefact,
    retrieval,
    retrieval_zh,
    rouge_l,
    rouge_l_zh,
)
from kv_transition.eval.longbench_words import normalized_words

#: Any text a model can emit, with some that look like an answer.
TEXTS = (
    st.text(st.characters()) | st.text(st.sampled_from("Paragraph 段落1２٣.!?。#`/\n ab的")) | st.just("...")
)
#: One line each, short ones and ones past the 200 characters from which difflib disregards frequent characters.
CODE_LINES = st.lists(st.sampled_from(["x", "y", " = ", "foo(", ")", "é", "  "]), max_size=120).map("".join)
NAMES = sorted(OFFICIAL_METRICS)
LONG = 100_000


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_rows_scored_by_the_official_code_have_its_value(shared):
    rows = read_lines(shared / "scoring_oracle.jsonl")
    assert len(rows) == 648
    cut_short = []
    for row in rows:
        task, answers, official = row["task"], row["answers"], row["official_score"]
        ours = official_score(task, row["prediction"], answers, row["all_classes"] or [])
        facts = TASK_FACTS[task]
        scored = first_line(row["prediction"]) if facts.first_line else row["prediction"]
        if recursion_artefact(facts.metric, scored, answers):
            cut_short.append((task, row["idx"]))
            assert official == 0.0 < ours
        else:
            assert ours == pytest.approx(official, abs=1e-12), (task, row["kind"], row["idx"])
    assert len(cut_short) <= 1


@pytest.mark.parametrize(
    "model", ["llama3-8b-instruct", "llama3-8b-instruct_S17-19-21-23", "qwen3-8b_CXT3500"]
)
@pytest.mark.parametrize(
    "task",
    ["multifieldqa_zh", "vcsum", "lcc", "triviaqa", "trec", "lsht", "qmsum", "samsum", "passage_count"],
)
def test_whole_files_have_the_published_scores(shared, model, task):
    rows = read_lines(shared / "predictions" / "pred" / model / f"{task}.jsonl")
    published = json.loads((shared / "predictions" / "pred" / model / "result.json").read_text())
    official = json.loads((shared / "scoring_aggregates.json").read_text())["pred"].get(model)
    classes = rows[-1]["all_classes"] or []
    total = sum(official_score(task, row["pred"], row["answers"], classes) for row in rows)
    score = round(100 * total / len(rows), 2)
    assert score == published[task]
    assert official is None or (score, len(rows)) == (official[task]["score"], official[task]["n"])


class TestQuestionAnswering:
    def test_two_empty_texts_share_nothing(self):
        assert qa_f1("", "", ()) == 0.0
        assert qa_f1("The.", "a", ()) == 0.0

    def test_case_punctuation_and_articles_do_not_count(self):
        assert qa_f1("The answer: a “cat”.", "answer “cat”", ()) == 1.0

    def test_curly_quotes_and_accents_stay(self):
        assert qa_f1("“Paris”", "Paris", ()) == 0.0
        assert qa_f1("café", "cafe", ()) == 0.0

    def test_a_deleted_hyphen_joins_words(self):
        assert qa_f1("well-known", "wellknown", ()) == 1.0
        assert qa_f1("well-known", "well known", ()) == 0.0

    def test_an_article_beside_a_symbol_goes_too(self):
        assert qa_f1("€a 5", "€ 5", ()) == 1.0

    def test_words_count_as_often_as_they_stand(self):
        assert qa_f1("b b c", "b b b b", ()) == 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)

    def test_chinese_is_cut_into_words_and_loses_its_punctuation(self):
        assert qa_f1_zh("我来到北京清华大学。", "北京，清华大学！", ()) == 2 * 0.5 * 1.0 / (0.5 + 1.0)
        assert qa_f1_zh("", "", ()) == 0.0

    def test_some_chinese_punctuation_is_overlooked(self):
        assert qa_f1_zh("《", "《", ()) == 1.0
        assert qa_f1_zh("》", "》", ()) == 0.0


class TestRouge:
    def test_equal_texts_score_a_little_less_than_1(self):
        assert rouge_l("the same text", "the same text", ()) == 0.999999995
        assert rouge_l_zh("同样的文字。", "同样的文字。", ()) == 0.999999995

    def test_case_counts(self):
        assert rouge_l("Paris", "paris", ()) == 0.0

    @pytest.mark.parametrize(("prediction", "answer"), [("", "a"), ("...", "a"), ("a", ""), ("", "")])
    def test_a_text_without_a_sentence_scores_0(self, prediction, answer):
        assert rouge_l(prediction, answer, ()) == 0.0
        assert rouge_l_zh(prediction, answer, ()) == 0.0

    @pytest.mark.parametrize(("metric", "steps"), [("rouge_l", 991), ("rouge_l_zh", 990)])
    def test_where_the_official_code_exceeds_the_recursion_limit_the_value_is_the_true_one(
        self, metric, steps
    ):
        at_the_edge = " ".join(f"w{i}" for i in range(steps))
        below = " ".join(f"w{i}" for i in range(steps - 1))
        assert OFFICIAL_METRICS[metric](at_the_edge, [at_the_edge], ()) == 0.999999995
        assert recursion_artefact(metric, at_the_edge, [at_the_edge])
        assert not recursion_artefact(metric, below, [below])

    @pytest.mark.parametrize(
        ("prediction", "answers"),
        [
            ("w" + " x" * 1200, ["w" + " x" * 1200 + ". w", "w" + " x" * 1200 + "."]),
            ("w" + " y" * 600, ["w" + " z" * 600]),
            ("w" + " x" * 2000, ["w"]),
        ],
    )
    def test_every_step_of_the_way_back_counts(self, prediction, answers):
        assert recursion_artefact("rouge_l", prediction, answers)

    @pytest.mark.parametrize(
        ("metric", "prediction", "answers"),
        [
            ("qa_f1", "w " * 2000, ["w " * 2000]),
            ("rouge_l", "", []),
            ("rouge_l", "w " * 2000, []),
            ("rouge_l", "w. " * 2000, ["w. " * 2000]),
            ("rouge_l", "x " * 2000, ["y " * 2000]),  # nothing in common: 0 with and without the limit
            ("rouge_l", "w " * 2000, ["w " * 2000, "w"]),  # a second gold answer gives the same score
        ],
    )
    def test_the_limit_is_reported_only_where_it_decides(self, metric, prediction, answers):
        assert not recursion_artefact(metric, prediction, answers)


class TestClassification:
    def test_a_class_inside_the_gold_one_can_survive_because_the_next_is_passed_over(self):
        assert classification("ABC", "ABC", ["A", "AB", "ABC"]) == 0.5

    @pytest.mark.parametrize(
        ("prediction", "answer", "classes", "score"),
        [
            ("Type: Date", "Date", ["Date", "City"], 1.0),
            ("Date or City", "Date", ["Date", "City"], 0.5),
            ("City", "Date", ["Date", "City"], 0.0),
            ("date", "Date", ["Date", "City"], 0.0),
            ("AB", "AB", ["A", "AB"], 1.0),
            ("ABC", "ABC", ["A", "ABC", "AB"], 1.0),
            ("ABC", "AB", ["AB", "ABC"], 0.5),  # a class around the gold one stays
            ("AB", "AB", ["A", "A", "AB"], 0.5),
            ("Date", "Date", [], 0.0),
            ("", "Date", ["Date"], 0.0),
        ],
    )
    def test_the_gold_class_shares_with_the_others_named(self, prediction, answer, classes, score):
        assert classification(prediction, answer, classes) == score


class TestNumbers:
    @pytest.mark.parametrize(
        ("prediction", "answer", "score"),
        [
            ("3", "3", 1.0),
            ("3.0", "3", 0.5),
            ("3 3 4", "3", 2 / 3),
            ("three", "3", 0.0),
            ("", "3", 0.0),
            ("٣", "3", 0.0),  # a digit, but another text
            ("３ 3", "3", 0.5),
            ("03", "3", 0.0),
        ],
    )
    def test_a_count_is_the_share_of_right_numbers(self, prediction, answer, score):
        assert count(prediction, answer, ()) == score

    @pytest.mark.parametrize(
        ("prediction", "number", "score"),
        [("Paragraph 1", "1", 1.0), ("01", "1", 0.0), ("3 3 4", "3", 2 / 3)],
    )
    def test_retrieval_compares_with_the_gold_paragraph_s_number(self, prediction, number, score):
        assert retrieval(prediction, f"Paragraph {number}", ()) == score
        assert retrieval_zh(prediction, f"段落{number}", ()) == score

    def test_the_first_number_of_a_gold_answer_counts(self):
        assert retrieval("2", "Paragraph 1, Paragraph 2", ()) == 0.0

    def test_a_gold_answer_without_a_number_scores_0(self):
        assert retrieval("7", "paragraph 7", ()) == 0.0
        assert retrieval_zh("7", "段落 7", ()) == 0.0


class TestCode:
    @pytest.mark.parametrize(
        ("prediction", "line"),
        [
            ("\n\n    return x\ny", "    return x"),
            ("```python\n# note\n// note\nx = 1\ny", "x = 1"),
            ("url = 'http://a'\nx = 1", "x = 1"),
            ("# a\n \nx = 1", " "),
            ("# a\n\nx = 1", ""),
            ("# only a note", ""),
            ("", ""),
        ],
    )
    def test_the_first_line_without_a_mark_of_a_comment_counts(self, prediction, line):
        assert code_sim(prediction, line, ()) == 1.0

    def test_two_empty_texts_are_equal_and_one_is_not(self):
        assert code_sim("", "", ()) == 1.0
        assert code_sim("", "x", ()) == 0.0
        assert code_sim("x", "", ()) == 0.0

    def test_indentation_counts(self):
        assert code_sim("return x", "        return x", ()) == 0.67

    def test_the_score_is_in_hundredths(self):
        assert code_sim("abcdef", "abcxyz", ()) == 0.5
        assert code_sim("ab", "abcde", ()) == 0.57  # 4 / 7

    def test_frequent_characters_of_a_long_line_are_disregarded_as_difflib_does(self):
        """From 200 characters on difflib does not look for characters that make up more than 1 %."""
        assert code_sim("ab" * 150 + "x", "ba" * 150, ()) == 0.0

    @pytest.mark.parametrize(("ones", "score"), [(399, 0.0), (398, 0.0), (397, 0.01)])
    def test_a_line_far_longer_than_the_gold_answer_rounds_to_what_difflib_gives(self, ones, score):
        assert code_sim("y" * ones + "x", "x", ()) == round(100 * 2 / (ones + 2)) / 100 == score

    @given(CODE_LINES.filter(bool), CODE_LINES)
    def test_the_score_is_difflib_s_ratio(self, line, gold):
        ratio = difflib.SequenceMatcher(None, line, gold).ratio()
        assert code_sim(line + "\nrest", gold, ()) == round(100 * ratio) / 100


class TestChoice:
    @pytest.mark.parametrize(
        ("prediction", "answer", "score"),
        [
            ("The correct answer is (B).", "B", 1.0),
            ("The correct answer is B", "B", 1.0),
            ("**The correct answer is (*B*)**", "B", 1.0),
            ("The correct answer is A. No: The correct answer is (B)", "B", 1.0),
            ("The correct answer is Brazil", "B", 1.0),
            ("The correct answer is (B) and (C)", "C", 0.0),
            ("The correct answer is (b)", "B", 0.0),
            ("the correct answer is (B)", "B", 0.0),
            ("The correct answer is: (B)", "B", 0.0),
            ("B", "B", 0.0),
            ("", "B", 0.0),
        ],
    )
    def test_only_the_two_official_forms_give_a_letter(self, prediction, answer, score):
        assert choice(prediction, answer, ()) == score
        assert official_score("longbench_v2", prediction, [answer], ()) == score


class TestOfficialScore:
    def test_the_best_gold_answer_counts_and_none_scores_0(self):
        assert official_score("hotpotqa", "Paris", ["London", "Paris, France", "Rome"], ()) == 2 * 0.5 / 1.5
        for name in NAMES:
            assert OFFICIAL_METRICS[name]("Paris", [], ["Paris"]) == 0.0

    @pytest.mark.parametrize("task", ["trec", "triviaqa", "samsum", "lsht"])
    def test_in_four_tasks_only_the_first_line_counts(self, task):
        gold, classes = "gold", ["gold", "other"]
        assert official_score(task, "\n\ngold\nother", [gold], classes) > 0.9
        assert official_score(task, "x\ngold", [gold], classes) == 0.0
        assert official_score(task, " \ngold", [gold], classes) == 0.0

    @pytest.mark.parametrize("task", ["hotpotqa", "gov_report"])
    def test_in_the_others_all_lines_count(self, task):
        assert official_score(task, "x\ngold", ["gold"], ()) > 0

    def test_the_tasks_of_longbench_e_are_scored_as_their_namesakes(self):
        assert official_score("trec_e", "gold\nother", ["gold"], ["gold", "other"]) == 1.0

    def test_every_task_has_its_metric(self):
        assert {facts.metric for facts in TASK_FACTS.values()} == set(OFFICIAL_METRICS)

    def test_an_unknown_task_is_refused_with_the_known_ones(self):
        with pytest.raises(UserError, match=r"hotpot_qa.*2wikimqa.*hotpotqa.*vcsum"):
            official_score("hotpot_qa", "x", ["x"], ())


class TestGold:
    @pytest.mark.parametrize(
        ("task", "answers", "classes"),
        [
            ("passage_retrieval_en", ["Paragraph 3"], ()),
            ("passage_retrieval_zh", ["段落3"], ()),
            ("trec", ["Date"], ["Date"]),
            ("hotpotqa", ["", "x"], ()),
            ("phrasebook_qa", ["x"], ()),
            ("passage_retrieval_en", [], ()),
        ],
    )
    def test_what_can_be_scored_passes(self, task, answers, classes):
        check_gold(task, answers, classes)

    @pytest.mark.parametrize(
        ("task", "answers", "words"),
        [
            ("passage_retrieval_en", ["Paragraph 3", "paragraph 4"], r"passage_retrieval_en.*'paragraph 4'"),
            ("passage_retrieval_en_e", ["段落3"], r"passage_retrieval_en_e.*'段落3'"),
            ("passage_retrieval_zh", ["Paragraph 3"], r"passage_retrieval_zh.*'Paragraph 3'"),
            ("trec", ["Date"], r"trec.*'Date'.*all_classes"),
            ("lsht", ["体育"], r"lsht.*'体育'.*all_classes"),
        ],
    )
    def test_a_gold_answer_the_official_code_fails_on_is_refused_by_name(self, task, answers, words):
        with pytest.raises(UserError, match=words):
            check_gold(task, answers, ())


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(TEXTS, st.lists(TEXTS, max_size=3), st.lists(TEXTS, max_size=3))
def test_no_text_is_an_error_and_every_score_lies_between_0_and_1(name, prediction, answers, classes):
    for golds in (answers, [prediction], ["Paragraph 1", "段落1"]):
        best = OFFICIAL_METRICS[name](prediction, golds, classes)
        single = getattr(longbench_metrics, name)
        assert best == max([0.0, *(single(prediction, gold, classes) for gold in golds)])
        assert isinstance(best, float)
        assert 0.0 <= best <= 1.0
        recursion_artefact(name, prediction, golds)


@pytest.mark.parametrize(
    "text",
    [
        *("", "?!", "。，！", "...", " \n ", "٣ ३ ３ ²", "\ud800", "<think>"),
        *("x" * LONG, "ab " * (LONG // 3), "." * LONG, "\n" * LONG, "7 " * (LONG // 2), "ab" * (LONG // 2)),
        *("北京。" * (LONG // 3), "\ud800" * LONG),
    ],
    ids=lambda text: f"{text[:6]!r} x {len(text)}",
)
@pytest.mark.parametrize("name", NAMES)
def test_odd_and_long_answers_are_scored_in_seconds(name, text):
    start = time.process_time()
    for gold in ("Paragraph 7 段落7 A a" * 5, text[:5000]):
        assert 0.0 <= OFFICIAL_METRICS[name](text, [gold], ["A", text]) <= 1.0
    assert time.process_time() - start < 10


def run_python(code, tmp_path):
    env = os.environ | {"TMPDIR": str(tmp_path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)


def test_chinese_words_are_found_quietly_and_without_a_file_that_others_could_have_written(tmp_path):
    """jieba's own way is to log to stderr, and to trust the dictionary in the folder for temporary files."""
    (tmp_path / "jieba.cache").write_bytes(marshal.dumps(({"我来": 10**6}, 10**6)))
    tmp_path.chmod(0o500)
    done = run_python(
        "from kv_transition.eval.longbench_metrics import qa_f1_zh; print(qa_f1_zh('我来到北京', '北京', ()))",
        tmp_path,
    )
    tmp_path.chmod(0o700)
    assert done.stderr == ""
    assert float(done.stdout) == 2 * (1 / 3) / (1 / 3 + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["jieba.cache"]


def test_the_module_loads_no_heavy_package(tmp_path):
    done = run_python(
        "import sys, kv_transition.eval.longbench_metrics as m; m.qa_f1('a', 'b', ()); m.rouge_l('a', 'b', ());"
        "print({'jieba', 'cydifflib', 'numpy', 'pandas', 'pyarrow'} & set(sys.modules))",
        tmp_path,
    )
    assert done.stdout == "set()\n"


def test_words_beside_any_character_are_those_of_the_plain_expression():
    """An article is a word of the expression, which a mark may end as well as white space."""
    article, deleted = re.compile(r"\b(a|an|the)\b"), set(string.punctuation)
    for code in (*range(0xD800), *range(0xE000, 0x30000, 7)):
        text = f"x The{chr(code)} {chr(code)}an a{chr(code)}b \u03a3{chr(code)}\u03a3"
        bare = "".join(character for character in text.lower() if character not in deleted)
        assert normalized_words(text) == article.sub(" ", bare).split(), hex(code)
