"""Instruction fine-tuning of language models in JAX/Flax.

The names below are imported when first used, so that `ift data` and the template
workers do not wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ift_jax.data.templates import load_templates as load_templates
    from ift_jax.language_model import LanguageModel as LanguageModel
    from ift_jax.pretrained import load_pretrained as load_pretrained
    from ift_jax.train.run import train as train

_HOMES = {
    "LanguageModel": "ift_jax.language_model",
    "load_pretrained": "ift_jax.pretrained",
    "load_templates": "ift_jax.data.templates",
    "train": "ift_jax.train.run",
}
__all__ = ["LanguageModel", "load_pretrained", "load_templates", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ift_jax' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
