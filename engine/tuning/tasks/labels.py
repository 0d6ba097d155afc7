"""How likely each label is, for texts by the hundred.

A prompt is computed once, and what all prompts begin with once for all. Labels are a tree of tokens that is walked
level by level; a branch is not followed once its beginning alone is too unlikely, since no label is likelier than what
it begins with. A model that has learned its labels follows a few tokens, where scoring all of 77 labels takes hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from engine.tuning.tasks.encoding import Tokens, like_lengths
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.model import AdapterModel

Scores = NDArray[np.float64]
# Nats below the likeliest beginning from which a branch is left: for probabilities (one in a thousand), and for the
# likeliest label alone.
PROBABILITY_FLOOR, BEST_FLOOR = 6.9, 4.0
# What the best label may be less likely than the likeliest beginning before all labels are scored.
_MARGIN = 3.0
MAX_BATCH_TOKENS, MAX_BATCH = 4096, 32
# Tokens whose keys and values branches may have at each level: 380 MB for 46 KB a token.
MAX_STATE_TOKENS = 8192


def label_texts(names: Sequence[str]) -> tuple[str, ...]:
    """What the model writes for each label: its name with spaces for `_`, where labels stay distinct; else the name."""
    texts = tuple(" ".join(name.replace("_", " ").split()) for name in names)
    return texts if len(set(texts)) == len(texts) and all(texts) else tuple(names)


def label_scores(
    model: AdapterModel,
    prompts: Sequence[Tokens],
    labels: Sequence[Tokens],
    targets: Sequence[int],
    *,
    floor: float = PROBABILITY_FLOOR,
) -> Scores:
    """[N, L] log-probability of each label's tokens (the end among them) after each prompt, in nats.

    Exact for the target of each prompt and for labels within `floor` of the best one. Of others it is an estimate, an
    even share of what their beginning has, which lies below that; an infinite floor makes all of them exact.
    """
    if math.isinf(floor):
        return _every_score(model, prompts, labels)
    found = _search(model, prompts, labels, targets, floor + _MARGIN)
    unsure = np.flatnonzero((found.bounds > found.best()[:, None] - floor).any(axis=1)).tolist()
    if unsure:
        found.scores[unsure] = _every_score(model, [prompts[row] for row in unsure], labels)
    return found.scores


def best_labels(
    model: AdapterModel, prompts: Sequence[Tokens], labels: Sequence[Tokens], *, floor: float = BEST_FLOOR
) -> list[int]:
    """The position of the most likely label of each prompt, for a fraction of the work of `label_scores`.

    A branch that begins more than `floor` nats less likely than the best one is not followed, even where all labels
    of the others turn out less likely. A model that knows the labels has none of those; an infinite floor is exact.
    """
    return [int(place) for place in _search(model, prompts, labels, None, floor).exact().argmax(axis=1)]


def _every_score(model: AdapterModel, prompts: Sequence[Tokens], labels: Sequence[Tokens]) -> Scores:
    """[N, L]; where all labels are asked for, packing them beats following a tree."""
    scores = np.empty((len(prompts), len(labels)))
    for row, prompt in enumerate(prompts):
        examples = [EncodedExample((*prompt, *label), len(prompt)) for label in labels]
        scores[row] = [-loss for loss in model.example_losses(examples)]
    return scores


@dataclass(slots=True)
class _Found:
    """`scores` [N, L]; `bounds` [N, L] are what labels that were left can have at most, -inf for exact ones."""

    scores: Scores
    bounds: Scores

    def exact(self) -> Scores:
        """The scores, -inf where they are estimates."""
        return np.where(np.isneginf(self.bounds), self.scores, -np.inf)

    def exact_of(self, row: int) -> Scores:
        """[L] those of one prompt."""
        return np.where(np.isneginf(self.bounds[row]), self.scores[row], -np.inf)

    def best(self) -> Scores:
        """[N] the best exact score."""
        return np.asarray(self.exact().max(axis=1))


@dataclass(slots=True)
class _Node:
    """What may follow, the labels that end here, and all those at or below."""

    children: dict[int, _Node] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)


def _tree(labels: Sequence[Tokens]) -> _Node:
    root = _Node()
    for place, label in enumerate(labels):
        node = root
        for token in label:
            node = node.children.setdefault(token, _Node())
            node.below.append(place)
        node.ends.append(place)
    return root


@torch.no_grad()
def _search(
    model: AdapterModel,
    prompts: Sequence[Tokens],
    labels: Sequence[Tokens],
    targets: Sequence[int] | None,
    floor: float,
) -> _Found:
    shape = (len(prompts), len(labels))
    found = _Found(np.full(shape, -np.inf), np.full(shape, -np.inf))
    root = _tree(labels)
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    shared = next((place for place in range(most) if first[place] != last[place]), most)
    with model.generating() as peft:
        causal_lm = peft.get_base_model()
        for batch in like_lengths(prompts, most=MAX_BATCH, most_tokens=MAX_BATCH_TOKENS):
            branches = _Branches(causal_lm, [prompts[row] for row in batch], shared, model.device)
            _walk(branches, [_Branch(row, root, 0.0) for row in batch], targets, floor, found)
    return found


@dataclass(frozen=True, slots=True)
class _Branch:
    """A place in the tree for one prompt, and its log-probability. `parent` and `token` are how it was come by."""

    row: int
    node: _Node
    logprob: float
    parent: int = 0
    token: int = 0


def _walk(
    branches: _Branches, active: Sequence[_Branch], targets: Sequence[int] | None, floor: float, found: _Found
) -> None:
    """Follow the tree from the `active` branches, level by level."""
    following = []
    top = {branch.row: float(found.exact_of(branch.row).max()) for branch in active}
    for place, branch in enumerate(active):
        tokens = list(branch.node.children)
        for token, value in zip(tokens, branches.logprobs(place, tokens), strict=True):
            child = _Branch(branch.row, branch.node.children[token], branch.logprob + value, place, token)
            found.scores[child.row, child.node.ends] = child.logprob
            top[child.row] = max(top[child.row], child.logprob)
            if child.node.children:
                following.append(child)
    kept = []
    for child in following:
        if child.logprob >= top[child.row] - floor or (targets is not None and targets[child.row] in child.node.below):
            kept.append(child)
        else:
            found.scores[child.row, child.node.below] = child.logprob - math.log(len(child.node.below))
            found.bounds[child.row, child.node.below] = child.logprob
    # A model that knows nothing follows every branch, each with keys and values of the whole prompt.
    at_once = max(1, MAX_STATE_TOKENS // branches.num_tokens)
    for begin in range(0, len(kept), at_once):
        part = kept[begin : begin + at_once]
        after = branches.after([child.parent for child in part], [child.token for child in part])
        _walk(after, part, targets, floor, found)


class _Branches:
    """The model's state after each branch that is followed."""

    def __init__(self, causal_lm: Any, prompts: Sequence[Tokens], shared: int, device: str) -> None:
        self._model, self._device = causal_lm, device
        cache = None
        if shared:
            ids = self._tensor([prompts[0][:shared]])
            cache = causal_lm.model(input_ids=ids, use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(prompts))
        longest = max(map(len, prompts))
        # Padded on the left of what is each one's own, so that all of them go on at the same place.
        pads = [longest - len(prompt) for prompt in prompts]
        own = self._tensor([(*[prompt[-1]] * pad, *prompt[shared:]) for pad, prompt in zip(pads, prompts, strict=True)])
        self._mask = self._tensor([[*[1] * shared, *[0] * pad, *[1] * (longest - shared - pad)] for pad in pads])
        self._lengths = self._tensor([len(prompt) for prompt in prompts])
        places = torch.arange(shared, longest, device=device)[None] - self._tensor(pads)[:, None]
        self._cache: Any = cache
        self._forward(own, places.clamp(min=0))

    def logprobs(self, branch: int, tokens: Sequence[int]) -> list[float]:
        """How likely each of `tokens` comes next."""
        return [float(value) for value in (self._logits[branch, list(tokens)].double() - self._total[branch])]

    @property
    def num_tokens(self) -> int:
        """Places of keys and values that each branch takes."""
        return self._mask.shape[1]

    def after(self, parents: Sequence[int], tokens: Sequence[int]) -> _Branches:
        """The branches that go on with a token each after `parents`; these stay as they are."""
        chosen = self._tensor(parents)
        new = copy(self)
        # Choosing replaces a layer's tensors, so layers of its own are all that the new state needs.
        new._cache = copy(self._cache)
        new._cache.layers = [copy(layer) for layer in self._cache.layers]
        new._cache.batch_select_indices(chosen)
        new._lengths = self._lengths[chosen] + 1
        new._mask = torch.cat((self._mask[chosen], self._mask.new_ones(len(parents), 1)), dim=1)
        new._forward(self._tensor(tokens)[:, None], new._lengths[:, None] - 1)
        return new

    def _forward(self, ids: Tensor, places: Tensor) -> None:
        out = self._model.model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=places,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = out.past_key_values
        head = self._model.lm_head
        logits = linear(out.last_hidden_state[:, -1], head.weight, head.bias).float()
        # [A, V] and [A]; a label's tokens are a few of the vocabulary, so no other ones are divided by the total.
        self._logits, self._total = logits.cpu(), logits.logsumexp(-1).double().cpu()

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
