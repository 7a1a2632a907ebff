"""A small plan of facts."""

from prealign_ds.config import KnowledgeSettings
from prealign_ds.knowledge.directions import directions_of
from prealign_ds.knowledge.plan import KnowledgePlan


def make_plan(tokenizer, languages=("en", "clone"), length=96, samples=400, seed=7, known=frozenset(), **changes):
    values = {"facts": 4, "frequencies": [1, 4], "period_tokens": length * samples} | changes
    settings = KnowledgeSettings(**values)
    directions = directions_of(settings.directions, "en", languages)
    return KnowledgePlan(settings, directions, "en", length, tokenizer, seed, known)


def texts_of(plan, fact, language, name=0):
    """Every sentence of a fact in a language, as tokens."""
    sentences = [
        plan._fill(sentence, fact.subject, fact.objects[name], language)
        for sentence in plan._sentences(fact.relation, language)
    ]
    return [tuple(row.tolist()) for row in plan._tokens(sentences, language)]
