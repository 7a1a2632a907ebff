import json

import pytest

from prealign_ds.alignment.sources import read_pairs
from prealign_ds.languages import check_language, foreign_to, two_letters

CEDICT = """# CC-CEDICT
鋼琴 钢琴 [gang1 qin2] /piano/CL:架[jia4],臺|台[tai2]/
彈 弹 [tan2] /to pluck (a string)/to play (a string instrument); to spring or leap/
河岸 河岸 [he2 an4] /a riverside/riverbank (see also 岸[an4])/
王 王 [Wang2] /surname Wang/
臺 台 [tai2] /variant of 檯/the platform/
"""
TEI = """<?xml version="1.0" encoding="UTF-8"?>
<TEI xmlns="http://www.tei-c.org/ns/1.0"><text><body>
<entry><form><orth>piano</orth><pron>x</pron></form><sense n="1">
<cit type="trans" xml:lang="de"><quote>Klavier</quote><quote>Flügel</quote></cit>
<cit type="example"><quote>no translation</quote></cit></sense>
<sense><cit type="translation"><quote xml:lang="deu">Pia<hi>no</hi></quote></cit></sense></entry>
<entry><form><orth>color</orth><orth>colour</orth></form>
<sense><cit type="trans"><quote>Farbe</quote></cit></sense></entry>
</body></text></TEI>
"""


def plain(path, *arguments):
    return [pair[:3] for pair in read_pairs(path, *arguments)]


def test_cedict_is_turned_around(tmp_path):
    (tmp_path / "cedict_ts.u8").write_text(CEDICT)
    found = plain(tmp_path / "cedict_ts.u8", "zh")
    assert found == [
        ("piano", "zh", "钢琴"),
        ("pluck", "zh", "弹"),
        ("play", "zh", "弹"),
        ("spring or leap", "zh", "弹"),
        ("riverside", "zh", "河岸"),
        ("platform", "zh", "台"),
    ]
    assert plain(tmp_path / "cedict_ts.u8", "zh-Hant")[0] == ("piano", "zh-Hant", "鋼琴")
    assert plain(tmp_path / "cedict_ts.u8") == found
    (tmp_path / "bad.u8").write_text("钢琴 piano\n")
    with pytest.raises(ValueError, match=r"bad.u8:1: expected `TRADITIONAL SIMPLIFIED"):
        plain(tmp_path / "bad.u8", "zh")


def test_wiktionarys_extracts(tmp_path):
    entries = [
        {"word": "piano", "lang": "English", "translations": [{"code": "de", "word": "Klavier"}, {"code": "de"}]},
        {"word": "bank", "lang": "English", "senses": [{"translations": [{"lang_code": "cmn", "word": "银行"}]}, {}]},
        {"word": "rare", "lang": "English"},
    ]
    path = tmp_path / "kaikki.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert plain(path) == [("piano", "de", "Klavier"), ("bank", "zh", "银行")]
    assert plain(path, "zh") == [("bank", "zh", "银行")]
    path.write_text('{"word": "piano", "lang": "English", "translations": ["Klavier"]}\n')
    with pytest.raises(ValueError, match=r"kaikki.jsonl:1: translations: expected a list of objects"):
        plain(path)


def test_panlex_names_languages_by_variety(tmp_path):
    (tmp_path / "p.tsv").write_text("eng-000\tpiano\tdeu-000\tKlavier\t9\neng-000\tpiano\tcmn-000\t钢琴\t7\n")
    assert plain(tmp_path / "p.tsv") == [("piano", "de", "Klavier"), ("piano", "zh", "钢琴")]


def test_tei_of_freedict(tmp_path):
    (tmp_path / "eng-deu.tei").write_text(TEI)
    found = [("piano", "de", t) for t in ("Klavier", "Flügel", "Piano")]
    assert plain(tmp_path / "eng-deu.tei", "de") == [*found, ("color", "de", "Farbe"), ("colour", "de", "Farbe")]
    with pytest.raises(ValueError, match=r"eng-deu.tei:2: the line does not name its language"):
        plain(tmp_path / "eng-deu.tei")


@pytest.mark.parametrize(
    ("text", "message"),
    [(TEI[:-40], r"not whole XML after entry 1"), ("<TEI></TEI>", r"no entries of TEI")],
)
def test_tei_that_is_broken(tmp_path, text, message):
    (tmp_path / "a.tei").write_text(text)
    with pytest.raises(ValueError, match=message):
        plain(tmp_path / "a.tei", "de")


def test_tei_entities_are_not_fetched(tmp_path):
    (tmp_path / "secret").write_text("secret")
    entity = f'<!DOCTYPE TEI [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'
    (tmp_path / "a.tei").write_text(TEI.replace("<TEI", entity + "<TEI", 1).replace("Farbe", "&x;"))
    with pytest.raises(ValueError, match="undefined entity"):
        plain(tmp_path / "a.tei", "de")


def test_language_codes():
    assert [check_language(code) for code in ("de", "zh-Hans", "pt_BR", "gsw", "clone")]
    for code in ("xx", "deutsch", "", "DE", None, 3):
        with pytest.raises(ValueError, match="language"):
            check_language(code)
    assert two_letters("deu") == "de" and two_letters("gsw") == "gsw" and two_letters("de") == "de"


@pytest.mark.parametrize(
    ("language", "text", "foreign"),
    [
        *[("ru", "ДНК-тест", False), ("ru", "DNA-тест", False), ("ru", "DNA", True), ("ru", "слово钢", True)],
        *[("zh", "钢琴", False), ("zh", "DNA检测", False), ("zh", "пиано", True), ("zh-Hant", "鋼琴", False)],
        *[("ar", "بيانو", False), ("ar", "piano", True), ("de", "Flügel 3", False), ("de", "слово", True)],
        *[("de", "123", False), ("ja", "ピアノ", False), ("ru", "и", False)],
        *[
            ("zh", "关", False),
            ("ar", "متعلق بـ", False),
            ("de", "A", False),
            ("de", "/bˈɛz/", False),
            ("ru", "A", True),
        ],
    ],
)
def test_scripts(language, text, foreign):
    assert bool(foreign_to(language).search(text)) is foreign
    assert foreign_to("gsw") is None
