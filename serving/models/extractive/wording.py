"""Hand-made word lists: what may stand for what without changing a fact, what says nothing.

Belongs here: data. Does not belong here: how it is applied (`paraphrasing`, `scoring`). Words that
name commands or concepts of a product (`run`, `serve`, `teacher`) have no synonyms on purpose.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SYNONYMS: dict[str, tuple[str, ...]] = {
    "adjust": ("change",),
    "allowed": ("permitted",),
    "begin": ("start",),
    "big": ("large",),
    "biggest": ("largest",),
    "choose": ("pick", "select"),
    "chosen": ("picked", "selected"),
    "contain": ("hold", "include"),
    "contains": ("holds", "includes"),
    "correct": ("right", "proper"),
    "create": ("make", "set up"),
    "created": ("made",),
    "decide": ("determine",),
    "decides": ("determines",),
    "delete": ("remove", "get rid of"),
    "deleted": ("removed",),
    "deletes": ("removes",),
    "display": ("show",),
    "edit": ("change",),
    "enable": ("turn on", "switch on"),
    "error": ("error message",),
    "find": ("locate",),
    "fix": ("repair", "resolve"),
    "folder": ("directory",),
    "happens": ("occurs",),
    "huge": ("very large",),
    "increase": ("raise",),
    "info": ("information",),
    "keep": ("retain",),
    "kept": ("retained",),
    "limit": ("cap",),
    "located": ("stored",),
    "lower": ("reduce",),
    "maximum": ("upper limit",),
    "means": ("stands for",),
    "needed": ("required",),
    "picked": ("chosen",),
    "prevent": ("avoid",),
    "quickly": ("fast",),
    "reject": ("turn down",),
    "rejected": ("turned down",),
    "remove": ("delete",),
    "returns": ("gives back",),
    "required": ("needed",),
    "save": ("store",),
    "saved": ("stored",),
    "select": ("choose",),
    "setting": ("option", "config setting"),
    "settings": ("options", "config settings"),
    "shows": ("displays",),
    "slow": ("sluggish",),
    "stored": ("kept", "saved"),
    "stop": ("halt",),
    "stops": ("halts",),
}

NEGATIONS = _words(
    "aren't ain't can't cannot couldn't didn't doesn't don't dont doesnt cant wont hasn't "
    "haven't isn't isnt neither never no nobody none nor not nothing without won't wouldn't "
    "shouldn't wasn't weren't"
)

ENGLISH = _words(
    "a an and any are as at be been but by can could did do does for from get had has have "
    "how i if in is it its list make many me much my no not of on one only or our please run "
    "set should so than that the their then there they this to use used was we what what's "
    "whats when where which while who why will with without would you your"
)
"""Words that tell English from other languages well enough to choose templates by."""

FOREIGN = _words(
    "bitte das der des die ein eine el es est estas fur ich il ist kann la las le les "
    "los mit nicht pas por puis pour quand que quel quelle sie sind sur tun una und une von "
    "warum wie wo como cual donde hacer hay il perche come dove wat hoe waar niet een "
    "het"
) - frozenset({"come", "die"})
"""Function words of other languages in plain letters, less the two that are English too."""

IMPERATIVES = _words(
    "ask compare configure delete describe enable explain find give list make open please "
    "print say set show solve start tell turn write"
)

FILLER = _words(
    "actually any anything does else exactly explain get gets give happens hello help hey hi "
    "just kind know like little look looking me mean means please possible question quick "
    "quickly really say show some somebody someone something tell thank thanks there thing "
    "things understand use used using want way what whats work works would"
)
"""Words of a question that say nothing about its subject."""

POLITE_WRAPPERS = (
    "Could you help me? {sentence}",
    "Quick question: {clause}",
    "Hi, {clause}",
    "Please tell me: {clause}",
    "I'm new here. {sentence}",
    "{sentence} Thanks!",
    "I have looked everywhere: {clause}",
    "One thing I'm wondering: {clause}",
    "For a colleague: {clause}",
    "Can somebody explain? {sentence}",
)

STATEMENT_WRAPPERS = (
    "What does this mean: {text}",
    "What should I do here: {text}",
    "Help with: {text}",
    "What can I do about this? {text}",
    "How should I read this: {text}",
    "Got this, what now? {text}",
    "Please explain: {text}",
    "{text} - what is going on here?",
)

KEYWORD_WRAPPERS = (
    "{text}?",
    "Please explain: {text}",
    "What do the docs say about {text}?",
    "Tell me about {text}.",
    "I am looking for: {text}",
    "Question about {text}",
    "{text}, please",
    "Where do I read about {text}?",
    "Short answer wanted: {text}",
    "Docs on {text}?",
)

NEUTRAL_WRAPPERS = ("Q: {text}", "? {text}", "{text} ...", "({text})", "{text} ?")
"""For languages the rules do not speak."""
