import pytest

from ift_jax.config import build_run_config
from ift_jax.errors import InputError
from ift_jax.peft.config import PeftConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "lorra"}, r"config\.peft\.method: expected one of none, lora.*'lorra'"),
        ({"rank": 0}, r"config\.peft\.rank: expected a whole number of 1 or more, got 0"),
        ({"rank": "8"}, r"config\.peft\.rank: expected a whole number"),
        ({"alpha": "8"}, r"config\.peft\.alpha: expected a positive number"),
        ({"targets": "q_proj"}, r"config\.peft\.targets: expected a tuple of names, got 'q_proj'"),
        ({"token_rows": "ab"}, r"config\.peft\.token_rows: expected a tuple of tokens"),
        ({"layers": 1}, r"config\.peft\.layers: expected a tuple of numbers"),
        ({"alpha": 0.0}, r"config\.peft\.alpha: expected a positive number"),
        ({"alpha": float("inf")}, r"config\.peft\.alpha"),
        ({"b_lr_ratio": -1.0}, r"config\.peft\.b_lr_ratio"),
        ({"dropout": 1.0}, r"config\.peft\.dropout: expected 0 or more and less than 1"),
        ({"layers": (1, 1)}, r"config\.peft\.layers: expected different numbers"),
        ({"layers": (-1,)}, r"config\.peft\.layers"),
        ({"init": "zero"}, r"config\.peft\.init: expected one of b_zero"),
        ({"rank_scaling": "log"}, r"config\.peft\.rank_scaling"),
    ],
)
def test_wrong_values_name_the_field(fields, message):
    with pytest.raises(InputError, match=message):
        PeftConfig(**{"method": "lora", **fields})


def test_lists_are_tuples():
    listed = PeftConfig(method="lora", targets=["q_proj"], layers=[0])
    assert listed == PeftConfig(method="lora", targets=("q_proj",), layers=(0,))
    assert hash(listed)


def test_a_field_that_the_method_does_not_read_is_refused():
    with pytest.raises(InputError, match=r"config\.peft\.rank=8 has no effect with method='none'"):
        build_run_config({"peft": {"rank": 8}})


def test_scaling_divides_by_the_rank_or_its_root():
    assert PeftConfig(method="lora", rank=16, alpha=32.0).scaling == 2.0
    assert PeftConfig(method="lora", rank=16, alpha=32.0, rank_scaling="sqrt").scaling == 8.0
