"""The frozen base: text in, prefixes, losses and next-token logits out.

It knows one transformers model and its tokenizer and never changes a byte of them. It does not
know tasks, methods, training or artifacts. Notation: B rows, T text tokens, P positions of a
prefix, N bins of W slots, L layers, K key/value heads, D head width, E embedding width, V words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softprompt.base.attention import told
from softprompt.base.cache import Recorder, behind, cache_argument
from softprompt.base.head import Head, backbone
from softprompt.base.layout import Layout, Mask, Windows
from softprompt.base.packing import Group, Pack, TokenRow, multiple_of, pack
from softprompt.base.reach import Reach
from softprompt.base.recompute import recomputed
from softprompt.base.targets import TopTokens
from softprompt.errors import BaseModelError, WrongBaseError
from softprompt.prefix import Front, Prefix

__all__ = ["Base", "Batch", "TokenLosses", "ends", "scorable"]

Place = tuple[int, int]
"""A row of a batch and a token of it; token -1 is the end of the front."""


class Batch(NamedTuple):
    """Rows, and what stands in front of every one of them."""

    rows: Sequence[TokenRow]
    front: Front

    @property
    def positions(self) -> int:
        """How many positions a pass over it reads."""
        front = 0 if isinstance(self.front, Prefix) else len(self.front)
        return front + sum(len(row.ids) for row in self.rows)


@dataclass(frozen=True)
class TokenLosses:
    """Negative log-likelihoods of the scored tokens of a batch, row after row.

    Attributes:
        nll: ``[M]`` nats, fp32; of a row with a teacher the divergence from what that expected.
        counts: how many of the M belong to each row.
    """

    nll: Tensor
    counts: tuple[int, ...]

    def per_row(self) -> Tensor:
        """``[B]`` the summed loss of each row."""
        return torch.stack([part.sum() for part in self.nll.split(list(self.counts))])


@dataclass(frozen=True, eq=False)
class Base:
    """One frozen causal language model, ready to be read from behind any prefix.

    Made by ``softprompt.load_base``. Safe to use from several threads at once: every call's
    state lives in its arguments.

    Attributes:
        model: the transformers model, in eval mode, no parameter requiring a gradient.
        tokenizer: its tokenizer.
        name: what the user asked for (bundled name, folder, hub id or ``.gguf`` file).
        fingerprint: hash of weights and tokenizer; artifacts are bound to it.
        layout: how this architecture can hold several rows at once.
    """

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str
    layout: Layout

    def __repr__(self) -> str:
        return f"<Base {self.name}: {self.config.model_type}, {str(self.dtype)[6:]} on {self.device}>"

    # -- facts ---------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return torch.device(self.embedding.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.embedding.weight.dtype
        return dtype

    @property
    def embedding(self) -> Any:
        """The input embedding module, weight ``[V, E]``."""
        return self.model.get_input_embeddings()

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def text_config(self) -> Any:
        """What the configuration says of the language model: a part of it where the model also sees."""
        return self.config.get_text_config()

    @property
    def width(self) -> int:
        """E, what one virtual token of a soft prompt holds."""
        return int(self.embedding.weight.shape[1])

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the model was built for, if it says; see ``Reach``."""
        return Reach.of(self.config).most

    @cached_property
    def head(self) -> Head:
        """What turns hidden states into logits."""
        return Head.of(self.model)

    # -- text ----------------------------------------------------------------------------------

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What the tokenizer sets before any text (a BOS token, or nothing)."""
        return tuple(self.tokenizer("", add_special_tokens=True)["input_ids"])

    @property
    def end_id(self) -> int | None:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id  # type: ignore[no-any-return]

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer: of a text, or of a turn, as the model names them beside it."""
        settings = getattr(self.model, "generation_config", None)
        named = getattr(settings, "eos_token_id", None)
        found = [self.end_id, *(named if isinstance(named, list | tuple) else [named])]
        return frozenset(token for token in found if token is not None)

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, nothing added; special tokens written out are recognised."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def opening(self, text: str = "") -> list[int]:
        """Token ids of a text that begins: behind what the tokenizer sets first, where it is not spelt."""
        start, ids = list(self.start_ids), self.encode(text)
        return ids if ids[: len(start)] == start else start + ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def chat_template(self, tools: bool = False) -> str:
        """The template of chats, that for chats with tools where there are two; empty where there is none."""
        templates = self.tokenizer.chat_template or ""
        if isinstance(templates, dict):
            return str(templates.get("tool_use" if tools else "default") or templates.get("default") or "")
        return str(templates)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> str:
        """Messages in this base's chat template, up to where the assistant's answer begins.

        ``how``: further arguments of ``apply_chat_template``, such as ``tools``.
        """
        if not self.tokenizer.chat_template:
            raise BaseModelError(f"{self.name} has no chat template; turn data.chat off.")
        how = {"add_generation_prompt": True, **how}
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **how))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Embeddings ``[T, E]`` of token ids, as the model's first layer receives them."""
        with torch.no_grad():
            return self.embedding(torch.tensor(ids, dtype=torch.long, device=self.device))  # type: ignore[no-any-return]

    # -- prefixes ------------------------------------------------------------------------------

    def prefill(self, front: Front) -> Prefix:
        """Read a front once: embeddings ``[P, E]`` -> its prefix, with gradient if they have one."""
        if isinstance(front, Prefix):
            return self.accept(front)
        if len(front) == 0:
            return self._nothing()
        self._check_reach(len(front))
        recorder = Recorder()
        out = self.run(inputs_embeds=front[None].to(self.dtype), cache=recorder)
        if not (recorder.pairs or recorder.states):
            raise BaseModelError(f"{self.name} keeps neither keys and values nor a state for what comes next")
        layers = tuple(sorted(recorder.pairs))
        keys, values = (tuple(recorder.pairs[layer][side][0] for layer in layers) for side in (0, 1))
        states = {key: t[0] for key, t in recorder.states.items()}
        return Prefix(keys, values, out[0, -1], self.fingerprint, layers, states, len(front))

    def prefill_text(self, text: str) -> Prefix:
        """The prefix of a plain text, behind whatever the tokenizer sets first."""
        with torch.no_grad():
            return self.prefill(self.embed(self.opening(text)))

    def accept(self, prefix: Prefix) -> Prefix:
        """The prefix itself, or ``WrongBaseError`` if another base made it."""
        if prefix.base != self.fingerprint:
            raise WrongBaseError(
                f"This prefix was made by base {prefix.base[:19]}, but {self.name} is "
                f"{self.fingerprint[:19]}; load the base it belongs to."
            )
        return prefix

    def _nothing(self) -> Prefix:
        """A prefix of no positions, in the shapes of this model."""
        with torch.no_grad():
            one = self.prefill(self.embed([0]))
        keys, values = (tuple(t[:, :0] for t in side) for side in (one.keys, one.values))
        states = {key: torch.zeros_like(t) for key, t in one.states.items()}
        return replace(one, keys=keys, values=values, hidden=None, states=states, read=0)

    # -- reading rows --------------------------------------------------------------------------

    def nll(self, rows: Sequence[TokenRow], front: Front) -> TokenLosses:
        """Losses of the scored tokens of every row behind one front, exact whatever the batch.

        A row's very first token is scored from what the front alone expects; where nothing
        stands in front, or a trained KV prefix does, there is no such expectation and that
        token is left out.
        """
        (losses,) = self.nll_many([Batch(rows, front)])
        return losses

    def nll_many(self, batches: Sequence[Batch], *, recompute: bool = False) -> list[TokenLosses]:
        """``nll`` of several batches, each behind a front of its own, in one pass.

        Fronts may differ in length and kind, and no batch touches another: a NaN in one stays out of the
        losses and gradients of the rest. ``recompute``: layers are computed again for gradients.
        """
        scored = [scorable(batch) for batch in batches]
        wanted = [[(n, t - 1) for n, row in enumerate(rows) for t in row.targets] for rows in scored]
        hidden, flat = self.hidden(batches, wanted, recompute), [row for rows in scored for row in rows]
        targets = torch.tensor([row.ids[t] for row in flat for t in row.targets], dtype=torch.long)
        if any(row.teacher is not None for row in flat):
            pairs = zip(flat, targets.split([row.scored for row in flat]), strict=True)
            top = TopTokens.joined([row.teacher or TopTokens.certain(ids) for row, ids in pairs])
            nll = self.head.divergence(hidden, top.to(self.device))
        else:
            nll = self.head.nll(hidden, targets.to(self.device))
        parts = nll.split([len(places) for places in wanted])
        counts = [tuple(row.scored for row in rows) for rows in scored]
        return [TokenLosses(*found) for found in zip(parts, counts, strict=True)]

    def next_logits(self, rows: Sequence[TokenRow], front: Front) -> Tensor:
        """fp32 logits ``[B, V]`` of the token that follows each row."""
        (logits,) = self.next_logits_many([Batch(rows, front)])
        return logits

    def next_logits_many(self, batches: Sequence[Batch]) -> list[Tensor]:
        """``next_logits`` of several batches, each behind a front of its own, in one pass."""
        logits = self.head.logits(self.hidden(batches, [ends(batch) for batch in batches]))
        return list(logits.split([len(batch.rows) for batch in batches]))

    def read(self, rows: Sequence[TokenRow], prefix: Prefix) -> Iterator[Prefix]:
        """Read rows to go on from them: each with the prefix before it, as a longer prefix."""
        self.accept(prefix)
        # A state is that of the last slot, so a row must end there; keys and values are found anywhere.
        for part in [[row] for row in rows] if prefix.states else [rows]:
            yield from self._longer(Batch(part, prefix), prefix)

    def _longer(self, batch: Batch, prefix: Prefix) -> Iterator[Prefix]:
        packed = self._pack([batch])
        cache = behind(packed, [prefix], record=True)
        hidden = self._run_pack(packed, packed.ids, cache)
        lasts = _gather(hidden, packed, [prefix], [ends(batch)])
        states = {key: t[0] for key, t in cache.states.items()}
        for row, start, last in zip(batch.rows, packed.starts[0], lasts, strict=True):
            if not row.ids:
                yield prefix
                continue
            number, offset = divmod(start, packed.width)
            sides = []
            for side, before in enumerate((prefix.keys, prefix.values)):
                added = (cache.pairs[layer][side] for layer in prefix.places)
                own = (t[number, :, offset : offset + len(row.ids)] for t in added)
                sides.append(tuple(torch.cat(pair, 1) for pair in zip(before, own, strict=True)))
            length = prefix.length + len(row.ids)
            yield replace(prefix, keys=sides[0], values=sides[1], hidden=last, states=states, read=length)

    def hidden(
        self, batches: Sequence[Batch], wanted: Sequence[Sequence[Place]], again: bool = False
    ) -> Tensor:
        """Hidden states ``[M, E]`` at the (row, token) wanted of each batch; token -1 ends its front."""
        if not self.layout.inline:
            batches = [Batch(rows, self.prefill(front)) for rows, front in batches]
            if len(batches) > 1:
                pairs = zip(batches, wanted, strict=True)
                return torch.cat([self.hidden([batch], [places], again) for batch, places in pairs])
        fronts = [front for _, front in batches]
        finished = [self.accept(front) if isinstance(front, Prefix) else None for front in fronts]
        # Where one token alone is read, a state may be written to in place, through which no gradient passes.
        keeps_states = any(prefix is not None and prefix.states for prefix in finished)
        packed = self._pack(batches, narrowest=2 if keeps_states else 1, multiple=multiple_of(self.dtype))
        # Only passes that record nothing are repeated: their caches are the same a second time.
        with recomputed(self.model, again):
            hidden = self._run_pack(packed, self._inputs(packed, fronts), behind(packed, finished))
        return _gather(hidden, packed, finished, wanted)

    def _pack(self, batches: Sequence[Batch], narrowest: int = 1, multiple: int = 1) -> Pack:
        groups = [
            Group(rows, front.length) if isinstance(front, Prefix) else Group(rows, len(front), inline=True)
            for rows, front in batches
        ]
        self._check_reach(max(group.longest for group in groups))
        # A slot's linear layers cost about as much as 2 x E keys of its attention, as measured on a CPU.
        slot_cost = 2 * self.width if self.layout.inline else 0
        packed = pack(
            groups,
            slot_cost=slot_cost,
            narrowest=narrowest,
            multiple=multiple,
            repeats=self.layout.repeats,
            most_keys=self.max_positions,
        )
        return packed.to(self.device)

    def _check_reach(self, positions: int) -> None:
        """Refuse what would change how everything else in its pass is read."""
        reach = Reach.of(self.config)
        if reach.firm and reach.most is not None and positions > reach.most:
            raise BaseModelError(
                f"A row needs {positions} positions, but {self.name} holds {reach.most}, beyond which rows "
                "would no longer be read each by itself; shorten the text."
            )

    def _inputs(self, packed: Pack, fronts: Sequence[Front]) -> Tensor:
        """Ids [N, W], or embeddings [N, W, E] with the fronts that are read in this pass in their slots."""
        pairs = zip(packed.heads, fronts, strict=True)
        inline = [(head, front) for head, front in pairs if isinstance(front, Tensor) and len(front)]
        if not inline:
            return packed.ids
        embedded: Tensor = self.embedding(packed.ids)
        slots = torch.cat([torch.arange(head, head + len(front)) for head, front in inline])
        vectors = torch.cat([front for _, front in inline]).to(self.dtype)
        return embedded.flatten(0, 1).index_copy(0, slots.to(self.device), vectors).view_as(embedded)

    def _run_pack(self, packed: Pack, inputs: Tensor, cache: Any) -> Tensor:
        """Hidden states [N, W, E] of a pack given as ids [N, W] or embeddings [N, W, E]."""
        where = self.layout.reading(packed, Windows.of(self.config), self.dtype)
        name = "input_ids" if inputs.dim() == 2 else "inputs_embeds"
        return self.run(**{name: inputs}, cache=cache, **where)

    def run(self, *, cache: Any, mask: Mask = None, **inputs: Any) -> Tensor:
        """One pass through the layers, without the head: hidden states ``[N, W, E]``.

        mask: who sees what ``[N, 1, W, C]``, where the model takes no such mask as an argument.
        """
        if isinstance(mask, dict):
            raise BaseModelError("it has layers of several kinds, which cannot be told one mask")
        layers = backbone(self.model)
        with told(mask):
            found = layers(**inputs, **cache_argument(layers, cache), use_cache=True)
        hidden: Tensor = found.last_hidden_state
        return hidden.to(self.dtype)  # some models add up in fp32, and round before their head


def _expects(front: Front) -> bool:
    """Whether the front by itself predicts a next token."""
    return front.hidden is not None if isinstance(front, Prefix) else len(front) > 0


def scorable(batch: Batch) -> list[TokenRow]:
    """The rows of a batch, a first token unscored where nothing in front expects it; see ``Base.nll``."""
    first = 0 if _expects(batch.front) else 1
    return [row.scored_behind(first) for row in batch.rows]


def ends(batch: Batch) -> list[Place]:
    """The last token of every row, or the end of the front where a row has none."""
    if not (_expects(batch.front) or all(row.ids for row in batch.rows)):
        raise BaseModelError("A row has no text to go on from, nor a front; give it at least one token.")
    return [(number, len(row.ids) - 1) for number, row in enumerate(batch.rows)]


def _gather(
    hidden: Tensor, packed: Pack, finished: Sequence[Prefix | None], wanted: Sequence[Sequence[Place]]
) -> Tensor:
    """Pick [M, E] out of hidden [N, W, E] and, for the end of a finished prefix, out of the prefix."""
    flat, index = [hidden.flatten(0, 1)], list[int]()
    groups = zip(finished, packed.heads, packed.lengths, packed.starts, wanted, strict=True)
    for prefix, head, length, starts, places in groups:
        end = head + length - 1
        if prefix is not None and prefix.hidden is not None:
            end = hidden.shape[0] * hidden.shape[1] + len(flat) - 1
            flat.append(prefix.hidden[None])
        index += [starts[row] + token if token >= 0 else end for row, token in places]
    every = torch.cat(flat) if len(flat) > 1 else flat[0]
    # Selected, not indexed: where many rows ask for the end of one front, gradients add up in one order.
    return every.index_select(0, torch.tensor(index, dtype=torch.long, device=every.device))
