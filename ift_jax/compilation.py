"""JAX's persistent compilation cache: a program compiled once is not compiled again."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/ift_jax/xla."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(Path(home) / "ift_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
