"""``SoftpromptLM``: a prompt or a bare base as a model of lm_eval; knows texts and requests, not tasks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm  # type: ignore[import-untyped]

from softprompt.base.model import Base
from softprompt.errors import BaseModelError, ConfigError, DataError
from softprompt.generation.offline import generate
from softprompt.generation.request import GenerateRequest
from softprompt.generation.sampler import Sampling
from softprompt.harness.opening import Subject, opened, parts
from softprompt.harness.scoring import Query, log_likelihoods
from softprompt.harness.writing import sampling_of

__all__ = ["Seam", "SoftpromptLM"]

Seam = Literal["apart", "joined"]
"""How context and continuation become tokens: each by itself, or as one text that is split afterwards."""

DEFAULT_MAX_LENGTH = 2048
"""Positions of a base that does not say how many it has; lm_eval assumes the same."""

ROWS = 128
"""The most answers written at once, where batch_size leaves it open."""

_log = logging.getLogger(__name__)

Ids = tuple[int, ...]


@register_model("softprompt")
class SoftpromptLM(TemplateLM):  # type: ignore[misc]
    """One front on one base, answering the three kinds of request lm_eval makes.

    What was learnt stands before the text that the task writes; the prompt's own template takes no part.
    Every row, and every window of a long text, is read behind the whole front. Results do not depend on
    batches.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        seam: Seam = "apart",
        max_length: int | None = None,
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Take a prompt, a base with a prefix of it, or a bare base.

        Args:
            subject: ``Prompt``, ``(base, prefix)`` or ``Base``.
            seam: "apart" is softprompt's rule, so that a task in a prompt's own words scores as ``eval``
                does; "joined" is lm_eval's rule for Hugging Face models.
            max_length: positions to use, the front's included; those of the base if None.
            batch_size: rows answered together at most; "auto" leaves that to their memory, which is bounded
                anyway. Scoring is always bounded by tokens alone.
            max_batch_size: the same as ``batch_size``, where that is "auto".
            seed: of drawn answers.

        Raises:
            ConfigError: an argument is wrong.
            WrongBaseError: a prefix of another base.
            BaseModelError: the front leaves no room for text.
        """
        super().__init__()
        self.base, self.prefix, self._about = parts(subject)
        if seam not in get_args(Seam):
            raise ConfigError(f"seam must be one of {', '.join(get_args(Seam))}, got {seam!r}.")
        self.seam, self.seed = seam, seed
        self._rows = _row_limit(batch_size, max_batch_size)
        self.max_length = _positions(self.base, max_length)
        self.batch_size = self._rows or "auto"
        if self._room < 1:
            raise BaseModelError(
                f"The front takes {self.prefix.length} of the {self.max_length} positions of "
                f"{self.base.name}, which leaves none for text; use a shorter front or a base with more "
                "positions."
            )

    # -- made from what lm_eval's command line gives ---------------------------------------------

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> SoftpromptLM:
        """A model from ``prompt=NAME,library=DIR,base=MODEL``; see ``create_from_arg_obj``."""
        pairs = [part.partition("=") for part in arg_string.split(",") if part.strip()]
        wrong = next((name for name, equals, _ in pairs if not equals), None)
        if wrong is not None:
            raise ConfigError(f"The model argument {wrong!r} has no value; write {wrong}=VALUE.")
        return cls.create_from_arg_obj({name.strip(): value for name, _, value in pairs}, additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> SoftpromptLM:
        """A model from named arguments, as texts or values.

        ``prompt`` (a name or a folder), ``library``, ``base`` (the prompt's own by default), ``revision``,
        ``dtype``, ``device``, ``quantisation`` and ``trust_remote_code`` say what to load; ``seam``,
        ``max_length``, ``batch_size``, ``max_batch_size`` and ``seed`` are those of the class.

        Raises:
            SoftpromptError: an argument is unknown or wrong, or something cannot be loaded.
        """
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        subject, rest = opened({**given, **arg_dict})
        return cls(subject, **rest)

    # -- requests --------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): its log-probability, and whether greedy would write it."""
        pairs = [request.args for request in requests]
        found = self._score([self._query(context, text) for context, text in pairs], disable_tqdm)
        for pair, answer in zip(pairs, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """For each text: its log-probability, in windows with as much context as fits behind the front."""
        texts = [request.args for request in requests]
        windows = [self._windows(tuple(self.tok_encode(text))) for (text,) in texts]
        parts_of = self._score([query for some in windows for query in some], disable_tqdm)
        found, start = [], 0
        for text, some in zip(texts, windows, strict=True):
            found.append(float(sum(log for log, _ in parts_of[start : start + len(some)])))
            start += len(some)
            self.cache_hook.add_partial("loglikelihood_rolling", text, found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """For each (context, options): what follows, up to a stop string or the longest answer."""
        pairs = [request.args for request in requests]
        samplings = [sampling_of(options, self.seed) for _, options in pairs]
        texts = self._contexts([context for context, _ in pairs], samplings)
        asked = [
            GenerateRequest(model=self.base, prefix=self.prefix, ids=ids, sampling=sampling, row=row)
            for row, (ids, sampling) in enumerate(zip(texts, samplings, strict=True))
        ]
        with _bar(len(pairs), "Answering", disable_tqdm) as bar:
            answers = generate(asked, rows=self._rows or ROWS, on_done=bar.update)
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("generate_until", pair, answer)
        return answers

    # -- text to tokens --------------------------------------------------------------------------

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Token ids of a text. A start token, where the base has one, belongs to the front."""
        if options or add_special_tokens:
            raise ConfigError("softprompt adds no special tokens to a task's text and cuts it by itself.")
        return self.base.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, by the seam rule chosen; lm_eval's own is inherited."""
        if self.seam == "joined":
            joined: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return joined
        return self.tok_encode(context), self.tok_encode(continuation)

    def _query(self, context: str, continuation: str) -> Query:
        if context:
            before, after = (tuple(ids) for ids in self._encode_pair(context, continuation))
        else:
            before, after = (), tuple(self.tok_encode(continuation))
        if not after:
            raise DataError(
                f"The continuation {continuation!r} of {context[-40:]!r} has no tokens of its own; give "
                "every choice a text, and one that begins a word where seam is joined."
            )
        return self._behind(before, after)

    def _behind(self, context: Ids, target: Ids) -> Query:
        """A query with something to expect its first token from: the context, the front or a start token."""
        if context or self.prefix.hidden is not None:
            return Query(context, target)
        start = self._start
        if target[0] == start and len(target) > 1:
            # A text that brings its own start token is not given a second one; lm_eval does the same.
            return Query(target[:1], target[1:])
        return Query((start,), target)

    def _windows(self, ids: Ids) -> list[Query]:
        """Every token once, behind as many others as fit; the cutting is lm_eval's."""
        cut = get_rolling_token_windows(list(ids), prefix_token=-1, max_seq_len=self._room, context_len=1)
        queries = []
        for pair in cut:
            context, target = (tuple(part) for part in make_disjoint_window(pair))
            queries.append(self._behind((), target) if context == (-1,) else Query(context, target))
        return queries

    def _contexts(self, contexts: Sequence[str], samplings: Sequence[Sampling]) -> list[Ids]:
        """The tokens of every context, cut at their beginning to what leaves room for the answer."""
        found, cut, least = list[Ids](), 0, self._room
        for context, sampling in zip(contexts, samplings, strict=True):
            room = self._room - sampling.max_new_tokens
            if room < 1:
                raise ConfigError(
                    f"Answers of up to {sampling.max_new_tokens} tokens leave no room for text among the "
                    f"{self._room} positions behind the front; lower max_gen_toks."
                )
            ids = tuple(self.tok_encode(context))
            if not ids and self.prefix.hidden is None:
                ids = (self._start,)
            cut, least = cut + (len(ids) > room), min(least, room)
            found.append(ids[-room:])
        _tell_cut(cut, len(contexts), least)
        return found

    def _score(self, queries: Sequence[Query], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        room = self._room
        longest = max((len(query.target) for query in queries), default=0)
        if longest > room:
            raise BaseModelError(
                f"A continuation has {longest} tokens, but {self.base.name} has {room} positions behind the "
                "front; shorten it or use a base with more positions."
            )
        _tell_cut(sum(len(query.read) > room for query in queries), len(queries), room)
        # One token more than is read: the last one is only predicted.
        kept = [Query((q.context + q.target)[-room - 1 : -len(q.target)], q.target) for q in queries]
        with _bar(len(queries), "Scoring", disable_tqdm) as bar:
            return log_likelihoods(self.base, self.prefix, kept, bar.update)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **options: Any) -> list[tuple[float, bool]]:
        """lm_eval's inner form of the same: ((context, continuation), context ids, continuation ids)."""
        queries = [self._behind(tuple(context), tuple(target)) for _, context, target in requests]
        return self._score(queries, bool(options.get("disable_tqdm", False)))

    # -- facts -----------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        return self.base.tokenizer

    @property
    def eot_token_id(self) -> int | None:
        return self.base.end_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context where the front expects nothing by itself."""
        return self._start

    @property
    def device(self) -> Any:
        return self.base.device

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm_eval's cache of requests."""
        return f"{self.base.name}-{self.base.fingerprint[7:19]}".replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes beside the results, so that a score says what it is a score of."""
        return {
            "softprompt": self._about,
            "base": self.base.name,
            "base_fingerprint": self.base.fingerprint,
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "front_positions": self.prefix.length,
            "front_digest": self.prefix.digest,
            "seam": self.seam,
            "max_length": self.max_length,
        }

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Messages in the base's chat template, open for the answer or at the end of the last message."""
        if not self.tokenizer.chat_template:
            raise BaseModelError(f"{self.base.name} has no chat template; leave apply_chat_template off.")
        text = str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )
        first = (self.tokenizer.bos_token_id,)
        # The front has the start token already.
        return text.removeprefix(self.tokenizer.bos_token) if self.base.start_ids[:1] == first else text

    @property
    def _room(self) -> int:
        """Positions behind the front."""
        return self.max_length - self.prefix.length

    @property
    def _start(self) -> int:
        ids = (self.tokenizer.bos_token_id, self.base.end_id)
        start = next((token for token in ids if token is not None), None)
        if start is None:
            raise BaseModelError(
                f"{self.base.name} has no token to begin an empty context with; give the task a context."
            )
        return int(start)


def _row_limit(batch_size: int | str | None, most: int | None) -> int | None:
    """The most rows together; None where only tokens are counted."""
    wanted = most if batch_size is None or str(batch_size).partition(":")[0] == "auto" else batch_size
    if wanted is None:
        return None
    if not str(wanted).isdigit() or int(wanted) < 1:
        raise ConfigError(f"batch_size must be auto or at least 1, got {wanted!r}.")
    return int(wanted)


def _positions(base: Base, wanted: int | None) -> int:
    most = base.max_positions
    if wanted is None:
        return most or DEFAULT_MAX_LENGTH
    if not 1 <= wanted <= (most or wanted):
        raise ConfigError(f"max_length must be from 1 to the {most} positions of {base.name}, got {wanted}.")
    return wanted


def _tell_cut(cut: int, rows: int, room: int) -> None:
    if cut:
        _log.warning(
            "%d of %d texts are longer than the %d positions there are for them and lost their beginning.",
            cut,
            rows,
            room,
        )


def _bar(total: int, what: str, disable: bool) -> Any:
    """A progress bar where stderr is a terminal."""
    return tqdm(total=total, desc=what, disable=disable or None)
