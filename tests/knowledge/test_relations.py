"""Templates: the shipped ones are complete, and wrong ones are named with file, relation and sentence."""

import pytest

from prealign_ds.knowledge.relations import SHIPPED, load_templates

LANGUAGES = ["en", "de", "ru", "zh", "ar"]
GOOD = {"en": 'P1:\n  - "{subject} is in {object}."\n', "de": 'P1:\n  - "{subject} ist in {object}."\n'}


def write(folder, **files):
    for language, text in (GOOD | files).items():
        (folder / f"{language}.yaml").write_text(text)
    return folder


def test_the_shipped_templates():
    loaded = load_templates(SHIPPED, LANGUAGES)
    relations = set(loaded["en"])
    assert len(relations) >= 25 and all(set(templates) == relations for templates in loaded.values())
    for templates in loaded.values():
        sentences = [sentence for group in templates.values() for sentence in group]
        assert all(len(group) >= 3 for group in templates.values()) and len(set(sentences)) == len(sentences)
        assert all(sentence.endswith((".", "。")) for sentence in sentences)


def test_own_templates(tmp_path):
    assert load_templates(write(tmp_path), ["de", "en", "de"])["de"] == {"P1": ["{subject} ist in {object}."]}


@pytest.mark.parametrize(
    ("sentence", "slots"),
    [
        ("{subject} is there.", "['{subject}']"),
        ("Here is {object}.", "['{object}']"),
        ("{subject} is {subject} of {object}.", "['{object}', '{subject}', '{subject}']"),
        ("{subject} is {object} of {place}.", "['{object}', '{place}', '{subject}']"),
        ("{subject} is {object!r}.", "['{object!r}', '{subject}']"),
        ("{subject} is } {object}.", "['{object}', '{subject}', '}']"),
    ],
)
def test_slots_that_are_not_subject_and_object_once(tmp_path, sentence, slots):
    with pytest.raises(ValueError) as error:
        load_templates(write(tmp_path, en=f'P1:\n  - "{{subject}} is {{object}}."\n  - "{sentence}"\n'), ["en", "de"])
    assert f"en.yaml: P1, sentence 2 ('{sentence}'): has the slots {slots}" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("P1: [", "en.yaml: not valid YAML"),
        ("P1: sentence", "en.yaml: write it as a mapping"),
        ("- a", "en.yaml: write it as a mapping"),
        ("P1: []", "en.yaml: write it as a mapping"),
        ('P2: ["{subject} {object}"]', "en.yaml: no sentences for P1; add them"),
    ],
)
def test_files_that_are_no_templates(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_templates(write(tmp_path, en=text), ["en", "de"])


def test_a_language_without_templates_and_all_problems_at_once(tmp_path):
    with pytest.raises(ValueError) as error:
        load_templates(write(tmp_path, de="P1: 3"), ["en", "de", "fr"])
    assert "fr.yaml: no such file; write one, or use the languages that are there: ['de', 'en']" in str(error.value)
    assert "de.yaml: write it" in str(error.value)
