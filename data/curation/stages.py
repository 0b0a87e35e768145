"""Stages that look at one document at a time: each keeps it, changes its text, or says why it falls."""

from __future__ import annotations

import functools
import os
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result

from data.curation import config as asked
from data.curation import pii
from data.curation.folders import leave_with, task_name
from data.curation.tally import Tally
from data.curation.words import Words, normalized
from data.errors import ConfigError, DataError

HTML = re.compile(r"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|\?xml)[\s>]", re.IGNORECASE | re.DOTALL)
CONTEXT = 40  # characters of text that a sample shows on either side of what was replaced

Fallen = tuple[str, str]  # the reason a document falls for; a note on this one


class Stage(PipelineStep):
    """Counts what `judge` does to each document, into a file of its own."""

    type = "stage"

    def __init__(self, tally: str, samples: int):
        super().__init__()
        self.tally_folder, self.samples = tally, samples
        self.tally: Tally | None = None  # of the task that is running

    @abstractmethod
    def judge(self, document: Document) -> Fallen | None:
        """Why the document falls; None to keep it. May change its text and metadata."""

    def begin(self, rank: int):
        """Called once a task, before its first document."""

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.tally = Tally(self.samples)
        self.begin(rank)
        for document in data:
            before = document.text
            self.tally.enters(before)
            fallen = self.judge(document)
            if fallen is not None:
                self.tally.drops(document.id, before, *fallen)
                continue
            self.tally.leaves(document.text, changed=document.text != before)
            yield document
        self.tally.write(Path(self.tally_folder) / f"{task_name(rank)}.json")


class FilterStage(Stage):
    """A filter of datatrove, which sees no document without a word."""

    name = "filter"

    def __init__(self, tally: str, samples: int, block: BaseFilter):
        super().__init__(tally, samples)
        self.block = block

    def judge(self, document):
        if not document.text.strip():
            return "empty", ""
        kept, reason = get_filter_result(self.block.filter(document))
        return None if kept else (reason or "dropped", "")


def _gopher_quality(stage: asked.GopherQuality) -> BaseFilter:
    return GopherQualityFilter(
        min_doc_words=stage.min_words,
        max_doc_words=stage.max_words,
        min_avg_word_length=stage.min_word_length,
        max_avg_word_length=stage.max_word_length,
        max_symbol_word_ratio=stage.max_symbols,
        max_bullet_lines_ratio=stage.max_bullet_lines,
        max_ellipsis_lines_ratio=stage.max_ellipsis_lines,
        max_non_alpha_words_ratio=stage.min_alphabetic,  # datatrove's name says the opposite of what it does
        min_stop_words=stage.min_stop_words,
        stop_words=list(stage.stop_words),
        language=Words(),
    )


def _gopher_repetition(stage: asked.GopherRepetition) -> BaseFilter:
    def rules(first: int, shares: tuple[float, ...]):
        return tuple((first + index, share) for index, share in enumerate(shares) if share)

    return GopherRepetitionFilter(
        dup_line_frac=stage.lines,
        dup_para_frac=stage.paragraphs,
        dup_line_char_frac=stage.line_characters,
        dup_para_char_frac=stage.paragraph_characters,
        top_n_grams=rules(2, stage.top),
        dup_n_grams=rules(5, stage.repeated),
        language=Words(),
    )


def _c4_quality(stage: asked.C4Quality) -> BaseFilter:
    return C4QualityFilter(
        remove_citations=stage.remove_citations,
        filter_no_terminal_punct=stage.terminal_punctuation,
        min_num_sentences=stage.min_sentences,
        min_words_per_line=stage.min_words_per_line,
        max_word_length=stage.max_word_length,
        filter_lorem_ipsum=stage.lorem_ipsum,
        filter_javascript=stage.javascript,
        filter_curly_bracket=stage.curly_bracket,
        filter_policy=stage.policies,
        language=Words(),
    )


def _fineweb_quality(stage: asked.FineWebQuality) -> BaseFilter:
    return FineWebQualityFilter(
        line_punct_thr=stage.min_punctuated_lines,
        short_line_thr=stage.max_short_lines,
        short_line_length=stage.short_line,
        char_duplicates_ratio=stage.max_repeated_characters,
        new_line_ratio=stage.max_lines_per_word,
        language=Words(),
    )


def _filter(block: Callable[[Any], BaseFilter]):
    return lambda stage, tally, samples: FilterStage(tally, samples, block(stage))


class Extractor(Trafilatura):
    """trafilatura in datatrove's process for it, which would otherwise outlive a worker that is killed."""

    def extract(self, text: str) -> str:
        leave_with(os.getppid())
        return super().extract(text)


class ExtractStage(Stage):
    """The text of HTML, in a process of its own that is ended when a page takes too long."""

    name = "extract"

    def __init__(self, tally: str, samples: int, stage: asked.Extract):
        super().__init__(tally, samples)
        self.timeout = stage.timeout
        # trafilatura's `deduplicate` remembers earlier pages, so that a text would depend on those before it.
        self.extractor = Extractor(favour_precision=stage.precision, timeout=stage.timeout, deduplicate=False)
        self.sandbox: ExtractorSandbox | None = None

    def run(self, data, rank=0, world_size=1):
        with ExtractorSandbox(timeout=self.timeout) as self.sandbox:
            yield from super().run(data, rank, world_size)
        self.sandbox = None

    def judge(self, document):
        if not HTML.match(document.text):
            return None if document.text.strip() else ("empty", "")
        try:
            text = self.sandbox.process_document(document.text, self.extractor.extract)
        except TimeoutError:
            return "timeout", f"{self.timeout:g} s"
        except EOFError:
            return "died", "the process that reads the page ended, for lack of memory maybe"
        except Exception as error:  # lxml and trafilatura raise many classes for a page that they cannot read
            return "unreadable", f"{type(error).__name__}: {error}"
        if not text or not text.strip():
            return "no_text", ""
        document.text = text
        return None


class LanguageStage(Stage):
    name = "language"

    def __init__(self, tally: str, samples: int, stage: asked.Language):
        super().__init__(tally, samples)
        self.languages, self.threshold = stage.languages, stage.threshold
        known = _identifier().labels
        for index, language in enumerate(stage.languages):
            if language not in known:
                raise ConfigError(
                    f"stages languages.{index} is {language!r}, must be one of {', '.join(sorted(known))}."
                )

    def judge(self, document):
        language, probability = _identifier().classify(document.text)
        document.metadata["language"] = language
        if language not in self.languages:
            return f"language_{language}", f"{probability:.3f}"
        return None if probability >= self.threshold else ("unsure", f"{language} {probability:.3f}")


@functools.cache
def _identifier():
    """py3langid's identifier, its model loaded once a process from the package."""
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


class BadWordsStage(Stage):
    """As C4's, which looks for whole words, but in scripts without spaces anywhere."""

    name = "bad words"

    def __init__(self, tally: str, samples: int, stage: asked.BadWords):
        super().__init__(tally, samples)
        try:
            text = Path(stage.path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{stage.path} (path of bad_words) cannot be read: {error}.") from error
        listed = sorted({normalized(line).strip() for line in text.splitlines() if line.strip()})
        if not listed:
            raise DataError(f"{stage.path} (path of bad_words) holds no word.")
        self.pattern = re.compile("|".join(map(_alone, listed)))

    def judge(self, document):
        found = self.pattern.search(normalized(document.text))
        return ("bad_word", found[0]) if found else None


def _alone(word: str) -> str:
    """A pattern for `word` that no letter of its own kind continues."""
    before = r"(?<![a-z0-9_\u00c0-\u024f\u0370-\u052f])"
    after = r"(?![a-z0-9_\u00c0-\u024f\u0370-\u052f])"
    return f"{before}{re.escape(word)}{after}"


class FastTextStage(Stage):
    name = "fasttext"

    def __init__(self, tally: str, samples: int, stage: asked.FastText):
        super().__init__(tally, samples)
        self.path, self.label, self.threshold = stage.path, f"__label__{stage.label}", stage.threshold
        if self.label not in _fasttext(stage.path).labels:
            known = ", ".join(label.removeprefix("__label__") for label in _fasttext(stage.path).labels[:20])
            raise ConfigError(f"label of fasttext is {stage.label!r}, but {stage.path} gives {known}.")

    def judge(self, document):
        # As in datatrove: a line feed would end the text for fastText.
        labels, scores = _fasttext(self.path).predict(document.text.replace("\n", " "), k=-1)
        score = dict(zip(labels, map(float, scores), strict=True)).get(self.label, 0.0)
        document.metadata[f"fasttext_{self.label.removeprefix('__label__')}"] = round(score, 6)
        return None if score >= self.threshold else ("below_threshold", f"{score:.3f}")


@functools.cache
def _fasttext(path: str):
    if not Path(path).is_file():
        raise DataError(f"{path} (path of fasttext) is no file; nothing is downloaded, so put the model there.")
    try:
        from fasttext.FastText import _FastText
    except ImportError:
        raise ConfigError("The stage fasttext needs the package fasttext: pip install fasttext-numpy2-wheel.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _FastText(path)
    except ValueError as error:
        raise DataError(f"{path} (path of fasttext) is no model of fastText: {error}.") from error


class PiiStage(Stage):
    name = "pii"

    def __init__(self, tally: str, samples: int, stage: asked.Pii):
        super().__init__(tally, samples)
        self.kinds = stage.kinds

    def judge(self, document):
        text = document.text
        found = pii.find(text, self.kinds)
        if found:
            document.text = pii.replace(text, found)
            for kind in sorted({span.kind for span in found}):
                excerpts = [_around(text, span) for span in found if span.kind == kind]
                self.tally.changes_in(document.id, kind, excerpts)
        return None


def _around(text: str, span: pii.Span) -> str:
    before, after = text[max(0, span.start - CONTEXT) : span.start], text[span.stop : span.stop + CONTEXT]
    return f"{before}⟦{text[span.start : span.stop]}⟧{after}"


STAGES: dict[type, Callable[[Any, str, int], Stage]] = {
    asked.Extract: lambda stage, tally, samples: ExtractStage(tally, samples, stage),
    asked.Language: lambda stage, tally, samples: LanguageStage(tally, samples, stage),
    asked.GopherQuality: _filter(_gopher_quality),
    asked.GopherRepetition: _filter(_gopher_repetition),
    asked.C4Quality: _filter(_c4_quality),
    asked.FineWebQuality: _filter(_fineweb_quality),
    asked.BadWords: lambda stage, tally, samples: BadWordsStage(tally, samples, stage),
    asked.FastText: lambda stage, tally, samples: FastTextStage(tally, samples, stage),
    asked.Pii: lambda stage, tally, samples: PiiStage(tally, samples, stage),
}
