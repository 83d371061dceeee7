"""Low-rank and rescaling changes that rows carry into the base's own pass, each row its own or none.

It knows products and which token carries what; it does not know who learnt a change or in which format it is
kept. All changes at work lie beside each other in one table a layer, so a pass costs two products a layer
however many there are; what a token does not carry is masked out between the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from softprompt.base.copies import linear_layers, twin, with_parameters
from softprompt.base.model import Base

__all__ = ["LayerChange", "LowRank", "Riders", "folded", "plain_weight", "ridden"]


@dataclass(frozen=True, eq=False)
class LayerChange:
    """What one linear layer gives beside its own product: ``scale * (Wx + up @ down @ x) + bias``.

    Attributes:
        down: ``[r, in]``; r may be 0.
        up: ``[out, r]``, every factor of the method in it.
        scale: ``[out]``, or None for 1.
        of_bias: whether the bias is multiplied by ``scale`` too.
    """

    down: Tensor
    up: Tensor
    scale: Tensor | None = None
    of_bias: bool = False


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of a base's linear layers, by their full names."""

    layers: Mapping[str, LayerChange]

    @property
    def nbytes(self) -> int:
        tensors = [t for c in self.layers.values() for t in (c.down, c.up, c.scale) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def rank(self) -> int:
        """The greatest r of a layer."""
        return max((len(change.down) for change in self.layers.values()), default=0)


def folded(base: Base, change: LowRank) -> Base:
    """A copy of the base, whose weights are plain numbers, with a change in them: a model like any other."""
    tensors = {}
    for name, one in change.layers.items():
        layer = base.model.get_submodule(name)
        weight, bias = plain_weight(layer), getattr(layer, "bias", None)
        assert weight is not None
        made = weight.float() + one.up.float() @ one.down.float()  # [out, in]
        if one.scale is not None:
            made *= one.scale.float()[:, None]
        tensors[f"{name}.weight"] = made if weight is layer.weight else made.T.contiguous()
        if one.scale is not None and one.of_bias and bias is not None:
            tensors[f"{name}.bias"] = bias.float() * one.scale.float()
    return with_parameters(base, tensors)


def plain_weight(layer: nn.Module) -> Tensor | None:
    """[out, in], or None where it is not kept as plain numbers; GPT-2 and embeddings store it transposed."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if not weight.is_floating_point() or type(weight) not in (Tensor, nn.Parameter):
        return None
    return weight if isinstance(layer, nn.Linear) else weight.T


def ridden(base: Base) -> Base:
    """A copy of the base, the same model to everyone, whose linear layers heed what rows carry."""
    model = twin(base)
    for name in linear_layers(base):
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Ridden(name, model.get_submodule(name)))
    return replace(base, model=model)


class Ridden(nn.Module):
    """A linear layer that adds to every token's product what that token carries in the current pass."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.name, self.inner = name, inner

    @property
    def weight(self) -> Tensor:
        return self.inner.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out]."""
        out: Tensor = self.inner(x)
        seated = _SEATED.get()
        return out if seated is None else seated.add(self.name, x, out, self.inner)


@dataclass(frozen=True)
class _Seated:
    """Who sits where in one pass.

    Attributes:
        tables: a layer's changes, by its name.
        tokens: ``[M]`` the tokens that carry something, counted through the pass; None for all of them.
        seats: ``[M]`` the place in the tables of what each of them carries.
    """

    tables: Mapping[str, _Table]
    tokens: Tensor | None
    seats: Tensor

    def add(self, name: str, x: Tensor, out: Tensor, layer: nn.Module) -> Tensor:
        """Out [..., out] with the changes of layer ``name`` added, given its input [..., in]."""
        table = self.tables.get(name)
        if table is None:
            return out
        flat, y = x.flatten(0, -2), out.flatten(0, -2)
        some, own = (flat, y) if self.tokens is None else (flat[self.tokens], y[self.tokens])
        inside = some.to(table.down.dtype) @ table.down.T  # [M, S*r]
        inside.masked_fill_(table.owners[None, :] != self.seats[:, None], 0)
        own = own + (inside @ table.up).to(own.dtype)
        if table.scales is not None:
            own = _rescaled(own, table.scales[self.seats], table.of_bias[self.seats][:, None], layer)
        y = own if self.tokens is None else y.index_copy(0, self.tokens, own)
        return y.view(out.shape)


@dataclass(frozen=True)
class _Apart:
    """The same for a pass in which no token may change another's bits: a change at a time, over all tokens.

    Attributes:
        carried: every change at work once, and which tokens ``[N]`` carry it.
    """

    carried: Sequence[tuple[LowRank, Tensor]]

    def add(self, name: str, x: Tensor, out: Tensor, layer: nn.Module) -> Tensor:
        flat, y = x.flatten(0, -2), out.flatten(0, -2)
        for change, tokens in self.carried:
            mine = change.layers.get(name)
            if mine is None:
                continue
            own = y + (flat.to(mine.down.dtype) @ mine.down.T @ mine.up.T).to(y.dtype)
            if mine.scale is not None:
                of_bias = torch.tensor(mine.of_bias, device=own.device)
                own = _rescaled(own, mine.scale, of_bias, layer)
            y = torch.where(tokens[:, None], own, y)
        return y.view(out.shape)


def _rescaled(own: Tensor, scales: Tensor, of_bias: Tensor, layer: nn.Module) -> Tensor:
    """Own [M, out] times scales, the bias only where ``of_bias`` says so; both broadcast to [M, out]."""
    bias = getattr(layer, "bias", None)
    if bias is None:
        return own * scales
    rescaled: Tensor = (own - bias) * scales + torch.where(of_bias, bias * scales, bias)
    return rescaled


_SEATED: ContextVar[_Seated | _Apart | None] = ContextVar("seated", default=None)
"""What the tokens of the pass now running in this thread carry; not kept on any module."""


class _Table:
    """The changes of one layer beside each other: S seats of r rows."""

    def __init__(self, like: LayerChange, seats: int, rank: int) -> None:
        self.rank = rank
        self.down = like.down.new_zeros(seats * rank, like.down.shape[1])  # [S*r, in]
        self.up = like.up.new_zeros(seats * rank, like.up.shape[0])  # [S*r, out]
        self.owners = torch.arange(seats, device=like.down.device).repeat_interleave(rank)  # [S*r]
        self.scales: Tensor | None = None  # [S, out]
        self.of_bias = torch.zeros(seats, dtype=torch.bool, device=like.down.device)  # [S]

    def set(self, seat: int, change: LayerChange | None) -> None:
        """Let a seat hold a change, or nothing."""
        rows = slice(seat * self.rank, (seat + 1) * self.rank)
        self.down[rows], self.up[rows] = 0, 0
        self.of_bias[seat] = change is not None and change.of_bias
        if self.scales is not None:
            self.scales[seat] = 1
        if change is None:
            return
        r = len(change.down)
        self.down[rows][:r], self.up[rows][:r] = change.down, change.up.T
        if change.scale is not None:
            if self.scales is None:
                self.scales = self.up.new_ones(len(self.of_bias), self.up.shape[1])
            self.scales[seat] = change.scale


class Riders:
    """The changes at work in a base that was made by ``ridden``; for one thread at a time.

    A change that comes in takes the seat of one that is not at work, so its neighbours' need not be
    laid again; until then it stays, in case it comes back. ``batch_invariant`` lays no table: each change is
    multiplied by itself, so that what a token gets is the same, bit for bit, whatever its neighbours carry.
    """

    def __init__(self, *, batch_invariant: bool = False) -> None:
        self._batch_invariant = batch_invariant
        self._seats: list[LowRank | None] = []
        self._tables: dict[str, _Table] = {}
        self._rank = 0

    @contextmanager
    def seated(self, carried: Sequence[LowRank | None]) -> Iterator[None]:
        """Within it every pass is taken to be over these tokens, each with what it carries."""
        some = {id(change): change for change in carried if change is not None}
        if not some:
            yield
            return
        if self._batch_invariant:
            found = _SEATED.set(_Apart([(change, _carrying(change, carried)) for change in some.values()]))
        else:
            found = _SEATED.set(self._seated(some, carried))
        try:
            yield
        finally:
            _SEATED.reset(found)

    def _seated(self, some: Mapping[int, LowRank], carried: Sequence[LowRank | None]) -> _Seated:
        self._seat(list(some.values()))
        place = {id(change): seat for seat, change in enumerate(self._seats)}
        device = next(iter(self._tables.values())).down.device
        which = [number for number, change in enumerate(carried) if change is not None]
        seats = torch.tensor([place[id(carried[number])] for number in which], device=device)
        tokens = None if len(which) == len(carried) else torch.tensor(which, device=device)
        return _Seated(self._tables, tokens, seats)

    def _seat(self, wanted: list[LowRank]) -> None:
        held = {id(change) for change in self._seats}
        new = [change for change in wanted if id(change) not in held]
        if not new:
            return
        keep = {id(change) for change in wanted}
        free = [seat for seat, change in enumerate(self._seats) if change is None or id(change) not in keep]
        rank = max(change.rank for change in new)
        if len(free) < len(new) or rank > self._rank:
            self._lay(wanted, max(rank, self._rank))
            return
        for seat, change in zip(free, new, strict=False):
            self._set(seat, change)

    def _lay(self, wanted: list[LowRank], rank: int) -> None:
        """Make the tables anew, with seats for these and as many again as a power of two allows."""
        count = 1 << (len(wanted) - 1).bit_length()
        self._rank, self._seats, self._tables = rank, [None] * count, {}
        for seat, change in enumerate(wanted):
            self._set(seat, change)

    def _set(self, seat: int, change: LowRank | None) -> None:
        self._seats[seat] = change
        layers = change.layers if change is not None else {}
        for name, layer in layers.items():
            if name not in self._tables:
                self._tables[name] = _Table(layer, len(self._seats), self._rank)
        for name, table in self._tables.items():
            table.set(seat, layers.get(name))


def _carrying(change: LowRank, carried: Sequence[LowRank | None]) -> Tensor:
    """Which tokens [N] of a pass carry a change."""
    device = next(iter(change.layers.values())).down.device if change.layers else None
    return torch.tensor([one is change for one in carried], device=device)
