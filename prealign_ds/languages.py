"""What is known of languages: their codes, and the scripts that they are written in."""

from __future__ import annotations

from functools import cache
from typing import Any

import regex

_CODE = regex.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*|clone")
_ISO_639_1 = frozenset(
    """aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
    en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu
    ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na
    nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn
    so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za
    zh zu""".split()
)
_TWO_LETTERS = {
    three: two
    for line in """afr:af amh:am ara:ar arb:ar aze:az bel:be ben:bn bul:bg cat:ca ces:cs cmn:zh cym:cy dan:da deu:de
    ell:el eng:en epo:eo est:et eus:eu fas:fa pes:fa fin:fi fra:fr gle:ga glg:gl guj:gu hau:ha heb:he
    hin:hi hrv:hr hun:hu hye:hy ind:id isl:is ita:it jpn:ja kan:kn kat:ka kaz:kk khm:km kor:ko lat:la
    lao:lo lav:lv lvs:lv lit:lt mal:ml mar:mr mkd:mk mon:mn msa:ms mya:my nld:nl nob:nb nno:nn nor:no
    pan:pa pol:pl por:pt ron:ro rus:ru sin:si slk:sk slv:sl spa:es sqi:sq srp:sr swa:sw swe:sv swh:sw
    tam:ta tel:te tgl:tl tha:th tur:tr ukr:uk urd:ur uzb:uz vie:vi zho:zh""".splitlines()
    for three, two in (pair.split(":") for pair in line.split())
}
_SCRIPTS = {
    r"\p{Cyrillic}": "be bg kk ky mk mn ru tg tt uk",
    r"\p{Arabic}": "ar fa ps sd ug ur",
    r"\p{Han}": "zh",
    r"\p{Han}\p{Hiragana}\p{Katakana}ー": "ja",
    r"\p{Hangul}\p{Han}": "ko",
    r"\p{Greek}": "el",
    r"\p{Hebrew}": "he yi",
    r"\p{Devanagari}": "hi mr ne sa",
    r"\p{Bengali}": "as bn",
    r"\p{Thai}": "th",
    r"\p{Georgian}": "ka",
    r"\p{Armenian}": "hy",
    r"\p{Tamil}": "ta",
    r"\p{Telugu}": "te",
    r"\p{Ethiopic}": "am ti",
    r"\p{Khmer}": "km",
    r"\p{Myanmar}": "my",
    r"\p{Latin}": "af ca cs cy da de en eo es et eu fi fo fr fy ga gd gl hr hu id is it la lb lt lv mt nb nl nn no pl "
    "pt ro sk sl sq sv sw tl tr vi",
}
_LETTERS_OF = {language: letters for letters, languages in _SCRIPTS.items() for language in languages.split()}
UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "dz"})
"""Languages that are written without spaces between words."""


@cache
def check_language(language: Any) -> str:
    """``language`` if it is a code: of ISO 639-1, or three letters, perhaps with a region or script, or ``clone``.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(language, str) and _CODE.fullmatch(language):
        main = base_of(language)
        if len(main) > 2 or main in _ISO_639_1:
            return language
        raise ValueError(f"language {language!r}: no such code in ISO 639-1; give one such as de, zh or zh-Hans")
    raise ValueError(f"language {language!r}: give a code such as de, zh or zh-Hans")


def base_of(language: str) -> str:
    """The code without region and script: ``zh`` of ``zh-Hans``."""
    return regex.split("[-_]", language)[0]


def two_letters(code: str) -> str:
    """The two-letter code of a language where it has one: ``de`` of ``deu``; others as they are."""
    return _TWO_LETTERS.get(code, code)


def letters_of(language: str) -> str | None:
    """The letters of a language's script, as the inside of a character class; None where it is not known."""
    return _LETTERS_OF.get(base_of(language))


@cache
def foreign_to(language: str) -> regex.Pattern[str] | None:
    """A pattern that finds what no text in a language has: only letters of another script, or one of a third script.

    Latin letters may stand among others (DNA-тест), but not alone. None where the script is not known, or several are
    usual.
    """
    letters = letters_of(language)
    if letters is None:
        return None
    # Letters of no script in particular, such as the bar that lengthens Arabic words, are of all.
    others = rf"[\p{{L}}--[{letters}\p{{Latin}}\p{{Common}}\p{{Inherited}}]]"
    return regex.compile(rf"(?V1){others}|^(?=.*\p{{L}})[^{letters}]*$")
