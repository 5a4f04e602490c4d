"""The config's section `data`."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ift_jax.data.formats import FORMATS, TRAIN_TURNS
from ift_jax.data.mixture import MixtureConfig
from ift_jax.errors import InputError

SPLITS = ("train", "validation", "test")
REPEATS = ("exact", "loose", "keep")
TEMPLATE_MODES = ("strict", "compatible")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: where its records are, and how they become prompts and completions.

    Attributes:
        name: as it stands in cards and results.
        source: a path, a glob, "embedded:reviews", "hub:owner/name", or several of these.
        file_format: of files whose extension does not say it: one of
            `ift_jax.data.sources.FILE_FORMATS`.
        encoding: of text files.
        columns: names for files without a header; of "parallel" files a name for each.
        delimiter: between cells, if not the comma of csv and the tab of tsv.
        quoted: whether csv and tsv cells may stand in double quotes.
        records_at: where records stand inside JSON, such as "data.*.paragraphs.*.qas".
        line_pattern: a regular expression that matches a whole line of text; its named groups
            become the columns.
        subset, split: of a hub source.
        rename: columns under the names that templates or the format know, each "old=new", such as
            ("text=reviews", "label=sentiment"). All other fields go by the new names.
        format: what a record is: "columns" (labelled columns, for templates),
            "prompt_completion", "messages", "sharegpt", "alpaca", "superni" or "text"; "" is
            columns where templates are given, and else told from the first record.
        train_turns: of a conversation, "all" assistant turns, the "last" one, or "all_text":
            turns of every role. What follows the assistant's last turn is left out in each.
        templates: a file of the promptsource format, or the name of one that ships with
            ift_jax ("reviews", "sentiment", "topic", ...; see ift_jax/templates).
        template_names: those of the file to use; () uses all.
        template_column: of records that were rendered elsewhere, such as P3's, the column
            that names an example's template; "" takes the format for all. Scores are read and
            exemplars are chosen by it.
        template_choice: with several, "one" per record, drawn by seed, or "all".
        template_mode: "strict" rejects records for which a template prints a None or reads a
            column that the record lacks, and answers that are none of the choices. "compatible"
            takes all of that as promptsource gives it, values cut to 2,048 characters included;
            without exactly one prompt and one completion a record is rejected in both.
        split_by: columns whose text decides a record's split, so that equal text never
            stands in two; () takes the columns that the prompts read, those of inverted
            templates (original_task: false) left out.
        group_by: columns whose values keep records together: all of a group (a product, a
            person, a document) go to one split, and train gives up groups and text that another
            holds. A record without a value is a group by itself.
        validation_source, test_source: the set's own splits, read as `source` is; "" takes
            fractions of `source`. Text of test is dropped from validation, and text of
            either from training, in all tasks.
        validation_split, test_split: the same for a hub source, by the names of its splits.
        validation_fraction, test_fraction: of the source's records, before subsets are taken;
            of no effect for a split that has a source of its own.
        repeats: "exact" drops records whose texts are those of an earlier record, character by
            character; "loose" also those that differ in case and spacing only; "keep" none.
        near_duplicates: records are dropped whose prompts show what shares this much of its word
            3-grams with another's (Jaccard index, such as 0.8); 0 keeps them. What columns, or
            turns, of two have in common as a whole does not count. Of two in different
            splits that of test stays, then that of validation; a source of its own for a split
            loses none to itself.
        train_size, validation_size, test_size: records to keep of each split; 0 keeps all.
        balance_by: a column whose values get equal counts in every subset; "" for none. Records
            without a value are rejected.
        balance_fill: a value that runs out of records leaves its turns to the others, instead of
            being an error.
        stratify_by: a column whose values keep their shares in every subset.
        train_shots: numbers of solved examples of the same template that stand before a
            training example, as in a few-shot prompt; each example draws one of them.
        weight: how much of the task is trained, see `MixtureConfig`; 0 only evaluates it.
        replay: one of the sets that `data.mixture.replay_share` mixes in.
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
    rename: tuple[str, ...] = ()
    format: str = ""
    train_turns: Literal["all", "last", "all_text"] = "all"
    templates: str = ""
    template_names: tuple[str, ...] = ()
    template_column: str = ""
    template_choice: Literal["one", "all"] = "one"
    template_mode: Literal["strict", "compatible"] = "strict"
    split_by: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    validation_source: str | tuple[str, ...] = ""
    test_source: str | tuple[str, ...] = ""
    validation_split: str = ""
    test_split: str = ""
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    repeats: Literal["exact", "loose", "keep"] = "exact"
    near_duplicates: float = 0.0
    train_size: int = 0
    validation_size: int = 0
    test_size: int = 0
    balance_by: str = ""
    balance_fill: bool = False
    stratify_by: str = ""
    train_shots: tuple[int, ...] = (0,)
    weight: float = 1.0
    replay: bool = False
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.template_choice not in ("one", "all"):
            raise InputError(
                f"config.data.tasks: {self.name}.template_choice: expected one or all, "
                f"got {self.template_choice!r}"
            )
        for option, value, known in (
            ("format", self.format, ("", *FORMATS)),
            ("train_turns", self.train_turns, TRAIN_TURNS),
            ("template_mode", self.template_mode, TEMPLATE_MODES),
            ("repeats", self.repeats, REPEATS),
        ):
            if value not in known:
                raise InputError(
                    f"config.data.tasks: {self.name}.{option}: expected one of "
                    f"{', '.join(map(repr, known))}, got {value!r}"
                )
        if self.template_mode == "compatible" and not self.templates:
            raise InputError(
                f"config.data.tasks: {self.name}.template_mode: is for templates, and none are set"
            )
        pairs = [tuple(pair.split("=")) for pair in self.rename]
        names = [name for pair in pairs for name in pair]
        if any(len(pair) != 2 for pair in pairs) or "" in names or len({*names}) < len(names):
            raise InputError(
                f"config.data.tasks: {self.name}.rename: expected pairs such as 'text=reviews' of "
                f"names that differ, got {self.rename}"
            )
        for split in SPLITS:
            if getattr(self, f"{split}_size") < 0:
                raise InputError(f"config.data.tasks: {self.name}.{split}_size is negative")
        fractions = (self.validation_fraction, self.test_fraction)
        if min(fractions) < 0 or sum(fractions) > 1:
            raise InputError(
                f"config.data.tasks: {self.name}: validation_fraction and test_fraction must "
                f"not be negative and leave something to train on, got {fractions}"
            )
        if not 0 <= self.near_duplicates <= 1:
            raise InputError(
                f"config.data.tasks: {self.name}.near_duplicates: expected 0 to 1, "
                f"got {self.near_duplicates}"
            )
        if not self.train_shots or min(self.train_shots) < 0:
            raise InputError(
                f"config.data.tasks: {self.name}.train_shots: expected at least one number, "
                f"none negative, got {self.train_shots}"
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InputError(
                f"config.data.tasks: {self.name}.weight: must not be negative, got {self.weight}"
            )
        if self.balance_by and self.stratify_by:
            raise InputError(
                f"config.data.tasks: {self.name}: balance_by and stratify_by exclude each other"
            )
        if self.balance_fill and not self.balance_by:
            raise InputError(
                f"config.data.tasks: {self.name}.balance_fill: is for balance_by, which is not set"
            )
        if self.subset_by and not any(self.size(split) for split in SPLITS):
            raise InputError(
                f"config.data.tasks: {self.name}: balance_by and stratify_by compose subsets; set "
                "train_size, validation_size or test_size"
            )

    @property
    def renamed(self) -> dict[str, str]:
        """A source's column -> the name it goes by."""
        return dict(pair.split("=") for pair in self.rename)

    @property
    def subset_by(self) -> str:
        """The column whose values decide how subsets are composed."""
        return self.balance_by or self.stratify_by

    def has_own(self, split: str) -> bool:
        """Whether a split has a source of its own."""
        return split != "train" and bool(
            getattr(self, f"{split}_source") or getattr(self, f"{split}_split")
        )

    @property
    def fractions(self) -> dict[str, float]:
        """Share of each split among the records of `source`."""
        held_out = {
            "validation": 0.0 if self.has_own("validation") else self.validation_fraction,
            "test": 0.0 if self.has_own("test") else self.test_fraction,
        }
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
    """The config's section `data`.

    Attributes:
        tasks: what to train on and to score.
        path: source of the first task, in place of its own.
        max_length: tokens of an example at most.
        row_length: tokens of a packed row; 0 takes max_length less the shared prefix, or
            four times the longest example if that is less, and up to a quarter less than either
            where that fills rows better. Without packing, 0 takes the longest example.
        share_prefix: what all examples begin with stands beside the rows and is computed once a
            batch instead of once an example; results are the same.
        on_too_long: what happens to a longer one: "drop" rejects it, "truncate" cuts the middle
            of its prompt, never its completion, "error" stops.
        pack: several examples share a row; False gives each its own.
        packing: "best_fit" puts each example, longest first, into the row that it fills best;
            "first_fit" takes them in their order and the first row with room.
        mixture: how much of each task an epoch holds.
        decontaminate: tasks of this config of whose validation and test texts and answers no run of
            words may stand in anything that is trained, be it asked or answered; records that
            hold one are dropped. What is equal as a whole is dropped without being named here.
        decontaminate_ngram, decontaminate_overlap: words that a shared run needs, and the share
            of the evaluation text's runs that must be shared (0: one is enough).
        prepared: a folder that `ift data --output` wrote from this config; training then reads
            its shards instead of the tasks' sources.
        max_rejected: the share of a task's records that may be rejected.
        seed: of subsets, template choice and order.
    """

    tasks: tuple[TaskConfig, ...] = ()
    path: str = ""
    prepared: str = ""
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    decontaminate: tuple[str, ...] = ()
    decontaminate_ngram: int = 13
    decontaminate_overlap: float = 0.0
    max_length: int = 512
    row_length: int = 0
    share_prefix: bool = True
    on_too_long: Literal["drop", "truncate", "error"] = "drop"
    pack: bool = True
    packing: Literal["best_fit", "first_fit"] = "best_fit"
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
        if self.packing not in ("best_fit", "first_fit"):
            raise InputError(
                f"config.data.packing: expected best_fit or first_fit, got {self.packing!r}"
            )
        if unknown := set(self.decontaminate) - {task.name for task in self.tasks}:
            raise InputError(
                f"config.data.decontaminate: no task {min(unknown)!r}; there are "
                f"{', '.join(task.name for task in self.tasks) or 'none'}"
            )
        if self.decontaminate_ngram < 1 or not 0 <= self.decontaminate_overlap <= 1:
            raise InputError(
                "config.data: decontaminate_ngram must be 1 or more and decontaminate_overlap "
                f"0 to 1, got {self.decontaminate_ngram} and {self.decontaminate_overlap}"
            )
        if not 0 <= self.max_rejected <= 1:
            raise InputError(f"config.data.max_rejected: expected 0 to 1, got {self.max_rejected}")
