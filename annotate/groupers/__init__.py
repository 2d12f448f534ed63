"""The registry of groupers: one line each; classes are imported when they are asked for (models are heavy)."""

from importlib import import_module

from annotate.groupers.base import Grouper
from common.errors import UserError
from common.hints import did_you_mean

REGISTRY = {
    "tfidf": "annotate.groupers.tfidf:Tfidf",
    "frequency": "annotate.groupers.frequency:Frequency",
    "random": "annotate.groupers.random:Random",
    "rho1": "annotate.groupers.rho1.grouper:Rho1",
    "entropy": "annotate.groupers.entropy:Entropy",
    "sifd": "annotate.groupers.sifd:SelectiveIfd",
    "llmlingua2": "annotate.groupers.llmlingua2.grouper:Llmlingua2",
}


def grouper_class(name: str) -> type[Grouper]:
    """Return the class of a registered grouper.

    Raises:
        UserError: no grouper has this name.
    """
    if name not in REGISTRY:
        raise UserError(f"--grouper {name}: expected one of {', '.join(REGISTRY)}.{did_you_mean(name, REGISTRY)}")
    module, attribute = REGISTRY[name].split(":")
    return getattr(import_module(module), attribute)
