import pytest

from prealign_ds.corpus.fetch import fetch
from prealign_ds.corpus.own_language import own_paragraphs

GERMAN = "Aktualisieren Sie das System mit apt upgrade.\n\nRemoving and Installing at the Same Time\n\nDer Rechner"
RUSSIAN = "Обновите систему командой apt upgrade.\n\napt-get install foo bar\n\n12 34\n\nCleaning up"


def test_untranslated_paragraphs_are_left_out():
    assert own_paragraphs(GERMAN, "de") == "Aktualisieren Sie das System mit apt upgrade.\n\nDer Rechner"
    assert own_paragraphs("A\n\nB, C", "de") == "A\n\nB, C", "no word tells"
    assert own_paragraphs(RUSSIAN, "ru") == "Обновите систему командой apt upgrade."
    assert own_paragraphs("关键词 软件源\n\nkeywords", "zh-Hans") == "关键词 软件源"


@pytest.mark.parametrize("language", ["en", "gsw"])
def test_what_cannot_be_told_is_refused(language, tmp_path):
    with pytest.raises(ValueError, match=f"language {language}: .*take all"):
        fetch(tmp_path / "out", ["nothing.txt"], language, {"train": 1.0}, own_language=True)


def test_a_corpus_of_its_own_language_alone(tmp_path):
    (tmp_path / "a.md").write_text(GERMAN)
    (tmp_path / "b.md").write_text("Only English here.")
    files = [str(tmp_path / "a.md"), str(tmp_path / "b.md")]
    corpus = fetch(tmp_path / "own", files, "de", {"train": 1.0}, own_language=True)
    (document,) = corpus.documents("train")
    assert "Rechner" in document.text and "Installing" not in document.text
    assert fetch(tmp_path / "own", files, "de", {"train": 1.0}, own_language=True).path == corpus.path
    with pytest.raises(ValueError, match="holds text of another request"):
        fetch(tmp_path / "own", files, "de", {"train": 1.0})
