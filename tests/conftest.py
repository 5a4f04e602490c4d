"""Eight simulated devices, strict dtype promotion, and tiny models for all tests."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import warnings
from pathlib import Path

import jax
import pytest

from ift_jax.compilation import enable_compilation_cache

jax.config.update("jax_numpy_dtype_promotion", "strict")
enable_compilation_cache()

ROOT = Path(__file__).resolve().parents[1]

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def own_warnings_are_errors():
    """A warning raised in ift_jax itself fails the test; those of libraries do not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"ift_jax(\.|$)")
        yield


@pytest.fixture(autouse=True, scope="module")
def few_compiled_programs():
    """Frees compiled programs before Linux refuses them memory maps (65,530 a process).

    XLA then ends the process with a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()


def make_tokenizer():
    """A byte-level tokenizer without merges: every byte is a token, plus two special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(specials + alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny_llama(folder: Path, **changes) -> Path:
    """A random Llama of transformers with its tokenizer, as a Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 5000.0,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1,
        "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Folder of a tied three-layer Llama with grouped-query attention."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny_llama") / "model")


@pytest.fixture(scope="session")
def chat():
    """The chat format of a tokenizer whose tokens are bytes."""
    from ift_jax.data.chat import Chat

    return Chat.of(make_tokenizer())


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The GGUF file of SmolLM2-135M-Instruct."""
    from ift_jax.errors import InputError
    from ift_jax.hf.gguf import installed_smollm2

    try:
        return installed_smollm2()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets."""
    folder = Path(os.environ.get("IFT_JAX_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; set IFT_JAX_DATA")
    return folder
