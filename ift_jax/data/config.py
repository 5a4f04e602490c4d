"""The config's section `data`."""

from dataclasses import dataclass
from typing import Literal

from ift_jax.data.formats import FORMATS, TRAIN_TURNS
from ift_jax.errors import InputError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: where its records are, and how they become prompts and completions.

    Attributes:
        name: as it stands in cards and results.
        source: a path, a glob, "embedded:reviews", or several of these.
        file_format, encoding, columns, delimiter, quoted, records_at, line_pattern, subset,
        split: how to read it; see `ift_jax.data.sources.read_records`.
        format: what a record is: "columns" (labelled columns, for templates),
            "prompt_completion", "messages", "sharegpt", "alpaca", "superni" or "text"; "" is
            columns where templates are given, and else told from the first record.
        train_turns: of a conversation, "all" assistant turns, the "last" one, or "all_text".
        templates: a file of the promptsource format, or the name of one that ships with
            ift_jax ("reviews", "sentiment", "topic", ...; see ift_jax/templates).
        template_names: those of the file to use; () uses all.
        template_choice: with several, "one" per record, drawn by seed, or "all".
        split_by: columns whose text decides a record's split, so that equal text never
            stands in two; () takes the columns that the prompts read.
        validation_fraction, test_fraction: of the records, before subsets are taken.
        train_size, validation_size, test_size: records to keep of each split; 0 keeps all.
        balance_by: a column whose values get equal counts in every subset; "" for none.
        metrics: names of `ift_jax.evaluation.metrics.METRICS`; () takes accuracy and exact_match
            where the template has answer choices, exact_match elsewhere.
    """

    name: str = ""
    source: str | tuple[str, ...] = ""
    file_format: str = ""
    encoding: str = "utf-8"
    columns: tuple[str, ...] = ()
    delimiter: str = ""
    quoted: bool = True
    records_at: str = ""
    line_pattern: str = ""
    subset: str = ""
    split: str = ""
    format: str = ""
    train_turns: Literal["all", "last", "all_text"] = "all"
    templates: str = ""
    template_names: tuple[str, ...] = ()
    template_choice: Literal["one", "all"] = "one"
    split_by: tuple[str, ...] = ()
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    train_size: int = 0
    validation_size: int = 0
    test_size: int = 0
    balance_by: str = ""
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.template_choice not in ("one", "all"):
            raise InputError(
                f"config.data.tasks: {self.name}.template_choice: expected one or all, "
                f"got {self.template_choice!r}"
            )
        for field, value, known in (
            ("format", self.format, ("", *FORMATS)),
            ("train_turns", self.train_turns, TRAIN_TURNS),
        ):
            if value not in known:
                raise InputError(
                    f"config.data.tasks: {self.name}.{field}: expected one of "
                    f"{', '.join(map(repr, known))}, got {value!r}"
                )
        for field in SPLITS:
            if getattr(self, f"{field}_size") < 0:
                raise InputError(f"config.data.tasks: {self.name}.{field}_size is negative")
        fractions = (self.validation_fraction, self.test_fraction)
        if min(fractions) < 0 or sum(fractions) > 1:
            raise InputError(
                f"config.data.tasks: {self.name}: validation_fraction and test_fraction must "
                f"not be negative and leave something to train on, got {fractions}"
            )

    @property
    def fractions(self) -> dict[str, float]:
        """Share of each split."""
        held_out = {"validation": self.validation_fraction, "test": self.test_fraction}
        return {"train": 1.0 - sum(held_out.values()), **held_out}

    def size(self, split: str) -> int:
        """Records to keep of a split; 0 for all."""
        return {
            "train": self.train_size,
            "validation": self.validation_size,
            "test": self.test_size,
        }[split]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Attributes:
    tasks: what to train on and to score.
    path: source of the first task, in place of its own.
    max_length: tokens of an example at most.
    row_length: tokens of a packed row; 0 takes max_length less the shared prefix, or
        four times the longest example if that is less.
    share_prefix: what all examples begin with stands beside the rows and is computed once a
        batch instead of once an example; results are the same.
    on_too_long: what happens to a longer one: "drop" rejects it, "truncate" cuts the middle
        of its prompt, never its completion, "error" stops.
    pack: several examples share a row; False gives each its own.
    max_rejected: the share of a task's records that may be rejected.
    seed: of subsets, template choice and order.
    """

    tasks: tuple[TaskConfig, ...] = ()
    path: str = ""
    max_length: int = 512
    row_length: int = 0
    share_prefix: bool = True
    on_too_long: Literal["drop", "truncate", "error"] = "drop"
    pack: bool = True
    max_rejected: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise InputError(f"config.data.max_length: expected 8 or more, got {self.max_length}")
        if self.row_length < 0:
            raise InputError(f"config.data.row_length: must not be negative, got {self.row_length}")
        if self.on_too_long not in ("drop", "truncate", "error"):
            raise InputError(
                "config.data.on_too_long: expected drop, truncate or error, "
                f"got {self.on_too_long!r}"
            )
        if not 0 <= self.max_rejected <= 1:
            raise InputError(f"config.data.max_rejected: expected 0 to 1, got {self.max_rejected}")
