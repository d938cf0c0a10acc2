"""Every decoding option with its help text.

The fields double as command line flags, which is why types are written as `Optional[str]`, every boolean defaults
to False, and annotations are not postponed: fairseq's flag generator reads them.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Optional

from criterions.losses import parse_constraint_range
from utils.errors import UserError
from utils.files import parse_json
from utils.options import option

LARGEST_LENPEN = 100  # 1024 ** 100 is still a number
# JSON values a field of each type takes, the one to name in messages last; a bool is an int in Python too.
JSON_TYPES: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    Optional[str]: (type(None), str),
}


@dataclass
class GenerationConfig:
    """Options of `models.generation.generate`; wrong combinations raise UserError."""

    beam: int = option(5, "beam width K, also the number of hypotheses (of samples with --sampling) per input")
    max_len_a: float = option(0.0, "at most max_len_a * source text length + max_len_b tokens before end of sentence")
    max_len_b: int = option(200, "see --max-len-a")
    min_len: int = option(1, "at least this many tokens before end of sentence")
    unnormalized: bool = option(False, "compare hypotheses by the sum of their log-probabilities, not by a mean")
    lenpen: float = option(1.0, "length penalty: scores are divided by length ** lenpen; above 1 favors long ones")
    unkpen: float = option(0.0, "subtracted from the log-probability of the unknown token")
    temperature: float = option(1.0, "logits are divided by this; above 1 flattens the distribution")
    no_repeat_ngram_size: int = option(0, "no n-gram of this size occurs twice in an output (0: allowed)")
    match_source_len: bool = option(False, "outputs are exactly as long as the source text")
    sampling: bool = option(False, "draw tokens instead of searching for the most likely ones")
    sampling_topk: int = option(-1, "with --sampling: draw among the k most likely tokens (-1: all)")
    sampling_topp: float = option(-1.0, "with --sampling: draw among the most likely tokens of total probability p")
    diverse_beam_groups: int = option(-1, "diverse beam search with this many groups of beams (-1: off)")
    diverse_beam_strength: float = option(0.5, "penalty on tokens that an earlier group chose at the same step")
    diversity_rate: float = option(-1.0, "diverse siblings: penalty per rank among one beam's successors (-1: off)")
    retain_dropout: bool = option(False, "keep dropout active while generating")
    constraint_range: Optional[str] = option(
        None, 'only token ids start..end-1 (and the four special ones) are generated, as "start,end"'
    )
    gen_code: bool = option(False, "generate image codes: their position embeddings, and no special token inside")
    zero_shot: bool = option(False, "forbid tokens after the softmax, so that scores stay those of the full one")

    def __post_init__(self) -> None:
        """Refuses wrong values and combinations, naming the flag."""
        if self.beam < 1:
            raise UserError(f"--beam {self.beam}: choose at least 1.")
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), float) and not math.isfinite(value):
                raise UserError(f"--{field.name.replace('_', '-')} {value}: it must be a finite number.")
        if not self.temperature > 0:
            raise UserError(f"--temperature {self.temperature}: it must be above 0.")
        if abs(self.lenpen) > LARGEST_LENPEN:
            raise UserError(f"--lenpen {self.lenpen}: choose a number from -{LARGEST_LENPEN} to {LARGEST_LENPEN}.")
        self._check_strategy()
        _ = self.token_range

    def _check_strategy(self) -> None:
        if self.sampling_topp > 1:
            raise UserError(f"--sampling-topp {self.sampling_topp}: choose a probability of at most 1.")
        for flag, value in (("--sampling-topk", self.sampling_topk), ("--sampling-topp", self.sampling_topp)):
            if value > 0 and not self.sampling:
                raise UserError(f"{flag} {value} has no effect on beam search: add --sampling or leave it out.")
        strategies = {
            "--sampling": self.sampling,
            "--diverse-beam-groups": self.diverse_beam_groups > 0,
            "--match-source-len": self.match_source_len,
            "--diversity-rate": self.diversity_rate > 0,
        }
        if len(chosen := [flag for flag, active in strategies.items() if active]) > 1:
            raise UserError(f"{' and '.join(chosen)} cannot be combined: choose one.")
        if self.diverse_beam_groups > 0 and self.beam % self.diverse_beam_groups:
            raise UserError(f"--diverse-beam-groups {self.diverse_beam_groups} must divide --beam {self.beam}.")

    @property
    def token_range(self) -> tuple[int, int] | None:
        """`constraint_range` as (first id, last id + 1)."""
        if self.constraint_range is None:
            return None
        try:
            return parse_constraint_range(self.constraint_range)
        except ValueError as error:
            raise UserError(str(error)) from error

    @classmethod
    def from_json(cls, text: str, flag: str = "--eval-args", **fixed: Any) -> "GenerationConfig":
        """Options from the JSON object that a flag such as --eval-args holds.

        Args:
            text: the flag's value, e.g. '{"beam": 5, "max_len_b": 16}'. flag: its name, for messages.
            fixed: options the caller sets whatever the JSON says.

        Raises:
            UserError: malformed JSON, an unknown option, a value of the wrong type or a wrong combination.
        """
        try:
            given = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{flag} {text!r} is not JSON ({error}): write e.g. '{{\"beam\": 5}}'.") from error
        if not isinstance(given, dict):
            raise UserError(f"{flag} {text!r}: write a JSON object, e.g. '{{\"beam\": 5}}'.")
        types = {option.name: option.type for option in fields(cls)}
        for name, value in given.items():
            if name not in types:
                raise UserError(f"{flag}: there is no decoding option {name!r}; choose among {', '.join(types)}.")
            accepted = JSON_TYPES[types[name]]
            if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
                raise UserError(f"{flag}: {name} cannot be {value!r}, give it a value of type {accepted[-1].__name__}.")
        try:
            return cls(**{**given, **fixed})
        except UserError as error:
            raise UserError(f"{flag}: {error}") from error
