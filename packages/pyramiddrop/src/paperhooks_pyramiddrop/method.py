"""PyramidDrop (arXiv 2410.17247): drop visual tokens stage by stage, ranked by the last instruction token.

At the entry of every drop layer the visual tokens still alive are scored; the best of them go on, with all text
(:mod:`paperhooks_pyramiddrop.algorithm`). Nothing is dropped in decoding: a new token meets shorter caches in deeper
layers. Cutting masks, rotary tables, caches and labels is the core's ``inputs.select``.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from paperhooks import Call, LayerInputs, ModelView, Site, Traits, UnsupportedModel, hookimpl
from paperhooks.io import choice, flag, function_or_choice, number, number_list, optional, refused, whole, whole_list
from paperhooks.models import attention_parts
from paperhooks.tokens import compact
from torch import Tensor

from paperhooks_pyramiddrop.algorithm import choose
from paperhooks_pyramiddrop.drops import Drop, recorded
from paperhooks_pyramiddrop.forward_plan import Alive, ForwardPlan, Query, make_plan
from paperhooks_pyramiddrop.policies import Policy, Ranking, key_norm, last_token, policy_of, ranked, states_of
from paperhooks_pyramiddrop.positions import check_positions, renumbered
from paperhooks_pyramiddrop.schedule import Schedule, checked_stages, explicit_schedule

__all__ = ["PaperPyramidDrop", "PyramidDrop", "RandomDrop"]


@dataclass(eq=False)
class PyramidDrop:
    """Drop redundant image tokens at the end of every stage of the decoder.

    stages
        ``{8: 0.5, 16: 0.25}``: at the entry of layer 8 keep 50 % of the original visual tokens, at 16 keep 25 %. Or a
        number of stages, split evenly over the decoder with keep ratios ``ratio``, ``ratio**2``, ... (paper: 4 stages,
        0.5, which is 8/16/24 on 32 layers).
    ratio
        The paper's lambda, used where ``stages`` does not give ratios.
    layers, ratios
        Explicit drop layers in place of the even split, with ``ratio``'s powers or with keep ratios of their own.

    Beyond the paper:

    positions
        ``"preserve"``: kept tokens keep their rotary positions, which equals masking the dropped ones. ``"renumber"``:
        positions are counted anew without gaps, as in the official code; excludes other methods that set positions.
    query
        Which rows rank: ``"auto"`` (the ends of all instructions where labels or a ``target_mask`` are given, else the
        last token, both the paper's), ``"last"``, or a function of the :class:`~paperhooks.Call` that returns bool
        [B, T]. They are looked up anew in what survives at every stage: in place of a dropped row ranks the nearest one
        before it.
    rank
        ``"last_token"`` (the paper's), ``"random"``, ``"mean_text"``, ``"key_norm"``, or a function of a
        :class:`~paperhooks_pyramiddrop.Ranking`.
    scope
        ``"sample"`` (the paper's): all visual tokens of a sample compete; ``"segment"``: every contiguous run keeps its
        share.
    min_visual_tokens
        Lower bound for what a stage keeps (of a segment, with ``scope="segment"``).
    protect_queries
        Never drop a row that ranks, or that predicts a labelled token. False is the official code's way.
    restore_outputs
        Give logits their full length back (dropped rows are zeros). False: in training with labels the loss is computed
        on the kept tokens only, which saves memory, as in the official code.
    visual_token_ids
        Token ids that stand for image features, for a model whose config does not name them.
    seed
        Seeds the ``random`` policy; successive forwards draw on.
    record
        A list that every drop is appended to as a :class:`Drop`, for figures and analysis.

    Numbers of numpy and torch are taken for what they are worth.

    :raises ValueError: an option that cannot be meant; names it, its value and what is expected.
    """

    stages: Mapping[int, float] | int = 4
    ratio: float = 0.5
    layers: Sequence[int] | None = None
    ratios: Sequence[float] | None = None
    positions: Literal["preserve", "renumber"] = "preserve"
    query: Query = "auto"
    rank: str | Policy = "last_token"
    scope: Literal["sample", "segment"] = "sample"
    min_visual_tokens: int = 0
    protect_queries: bool = True
    restore_outputs: bool = True
    visual_token_ids: Sequence[int] | None = None
    seed: int = 0
    record: list[Drop] | None = field(default=None, compare=False)

    traits: ClassVar[Traits] = Traits(
        layers="attention",
        writes=frozenset({"tokens"}),
        beams=True,
        assisted=True,
        training=True,
        devices=("cpu", "cuda", "emulated"),
        dtypes=("float32", "bfloat16", "float16"),
        parallel=("ddp", "fsdp2", "tp", "offload"),
    )

    def __post_init__(self) -> None:
        self.ratio = number("ratio", self.ratio, low=0, high=1)
        self.positions = choice("positions", self.positions, ("preserve", "renumber"))
        self.query = function_or_choice("query", self.query, ("auto", "last"))
        self.scope = choice("scope", self.scope, ("sample", "segment"))
        self.min_visual_tokens = whole("min_visual_tokens", self.min_visual_tokens, at_least=0)
        for name in ("protect_queries", "restore_outputs"):
            setattr(self, name, flag(name, getattr(self, name)))
        self.visual_token_ids = optional(whole_list, "visual_token_ids", self.visual_token_ids, at_least=0)
        self.seed = whole("seed", self.seed, at_least=-(2**63), at_most=2**64 - 1)  # what torch's generators take
        if self.record is not None and not hasattr(self.record, "append"):
            raise refused("record", self.record, "a list that drops are appended to, or None")
        self.stages = checked_stages(self.stages)
        self.layers = optional(whole_list, "layers", self.layers, at_least=1)
        self.ratios = optional(number_list, "ratios", self.ratios, low=0, high=1)
        self._explicit = explicit_schedule(self.stages, self.ratio, self.layers, self.ratios)
        self._schedules: dict[int, Schedule] = {}  # by depth: one method may serve models of several depths
        if self.positions == "renumber":  # then it excludes other methods that set positions
            self.__dict__["traits"] = _RENUMBERING
        self._policy = policy_of(self.rank)
        self._generator = torch.Generator().manual_seed(self.seed)
        self._warned: set[str] = set()

    # -- attaching -------------------------------------------------------------------------------------------------

    @hookimpl
    def setup(self, view: ModelView) -> None:
        """Fix the schedule for this decoder's depth and check that its layers can be ranked and shortened."""
        schedule = self.schedule_for(len(view.layers))
        first = schedule.layers[0]
        kinds = view.layer_types
        odd = [i for i in range(first, len(kinds)) if not view.full_attention(i) and kinds[i] != "skipped"]
        if odd:
            raise UnsupportedModel(
                f"pyramiddrop needs full attention in every layer from the first drop ({first}) on; layer {odd[0]} of "
                f"this {view.family} is {view.layer_types[odd[0]]!r}, whose cache cannot hold a selection of tokens"
            )
        deepstack = getattr(getattr(view.config, "vision_config", None), "deepstack_visual_indexes", None) or ()
        if first < len(deepstack):
            raise UnsupportedModel(
                f"{view.family} adds image features to its first {len(deepstack)} layers; the first drop must be at "
                f"layer {len(deepstack)} or later, not {first}"
            )
        if hasattr(view.config, "vision_config") and not view.image_token_ids and self.visual_token_ids is None:
            raise UnsupportedModel(
                f"the config of this {view.family} names no image token; pass visual_token_ids=[...] to PyramidDrop"
            )
        if self.positions == "renumber":
            check_positions(view)
        if self._policy is last_token or self._policy is key_norm:
            for layer in schedule.layers:
                attention_parts(view, layer)
        if not self.restore_outputs:
            view.use_compact_loss()

    def schedule_for(self, n_layers: int) -> Schedule:
        """The schedule on a decoder of ``n_layers`` layers.

        :raises ValueError: a drop falls outside it.
        """
        found = self._schedules.get(n_layers)
        if found is None:
            stages = 0 if isinstance(self.stages, Mapping) else self.stages
            found = self._explicit or Schedule.even(n_layers, stages, self.ratio)
            found.check(n_layers)
            self._schedules[n_layers] = found
        return found

    def selects_layer(self, site: Site) -> bool:
        """The drop layers; with renumbered positions every layer from the first one on."""
        schedule = self.schedule_for(site.n_layers)
        if self.positions == "renumber":
            return site.index >= schedule.layers[0]
        return site.index in schedule.layers

    # -- going on where a run stopped ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the generator that random policies draw from; a checkpoint of a training run keeps it."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Draw on from what :meth:`state_dict` gave."""
        self._generator.set_state(state["generator"].cpu())

    # -- every forward ---------------------------------------------------------------------------------------------

    @hookimpl
    def pre_attention(self, site: Site, call: Call, inputs: LayerInputs) -> LayerInputs | None:
        """Section 3.2: at a drop layer rank the visual tokens alive and go on with the best."""
        layers = self.schedule_for(site.n_layers).layers
        now = self._placed(site, call, inputs)
        if call.query_length > 1 and site.index in layers:
            plan = self._plan(call, inputs)
            dropped = self._drop(site, call, plan, now, layers.index(site.index)) if plan else None
            if dropped is not None:
                return self._placed(site, call, dropped)
        return now if self.positions == "renumber" else None

    def _placed(self, site: Site, call: Call, inputs: LayerInputs) -> LayerInputs:
        """With the positions that the tokens alive have in this layer."""
        if self.positions == "preserve":
            return inputs
        return renumbered(site, call, inputs, self.schedule_for(site.n_layers).layers[0], call.state(self))

    def _plan(self, call: Call, inputs: LayerInputs) -> ForwardPlan | None:
        """Counts and query rows of this forward, read from the device once; None when it holds nothing to drop."""
        state = call.state(self)
        if "plan" not in state:
            visual = self._visual(call)
            if visual is None:
                self._warn_blind(call)
            else:
                state["plan"] = plan = make_plan(call, inputs, visual, self.query, self.scope, self.protect_queries)
                self._warn_exposed(call, plan)
        found: ForwardPlan | None = state.get("plan")
        return found

    def _visual(self, call: Call) -> Tensor | None:
        if self.visual_token_ids is None or call.input_ids is None or call.visual_mask is not None:
            return call.image_mask
        ids = torch.tensor(self.visual_token_ids).to(call.input_ids.device, non_blocking=True)
        return torch.isin(call.input_ids, ids)

    def _drop(self, site: Site, call: Call, plan: ForwardPlan, inputs: LayerInputs, stage: int) -> LayerInputs | None:
        state = call.state(self)
        state["alone"] = state.get("alone", True) and inputs.track is state.get("track")
        now = plan.alive(inputs.track, inputs.hidden_states, alone=state["alone"])
        counts = plan.keep_counts(self.schedule_for(site.n_layers).ratios[stage], self.min_visual_tokens, now.census)
        if counts == now.census.segments:
            return None
        scores = ranked(self._policy, self._ranking(site, inputs, now)).to(now.real.device)
        limits = torch.tensor(counts).to(now.real.device, non_blocking=True)
        keep = choose(scores, now.segments, now.protected, limits) & now.real
        alive = now.census.alive_counts(counts)
        index, valid = compact(keep, max(1, *alive), plan.align)
        if self.record is not None:
            self.record.append(recorded(site.index, keep, scores, now.segments > 0, now.index, plan.length))
        full = min(alive) == index.shape[1]  # every row fills every slot
        dropped = inputs.select(index, None if full else valid)
        state["track"] = dropped.track
        return dropped

    def _ranking(self, site: Site, inputs: LayerInputs, now: Alive) -> Ranking:
        return Ranking(
            view=site.view,
            layer=site.index,
            hidden_states=states_of(site, inputs.hidden_states),
            position_embeddings=inputs.position_embeddings,
            query_rows=now.query_rows,
            query_valid=now.query_valid,
            real=now.real,
            visual=now.segments > 0,
            generator=self._generator,
        )

    def _warn_blind(self, call: Call) -> None:
        if call.view.image_token_ids:
            self._warn(
                "blind",
                "called with inputs_embeds and no input_ids, so it is not known which tokens are visual and nothing is "
                "dropped; pass visual_mask (bool [B, T]) to the model call",
            )

    def _warn_exposed(self, call: Call, plan: ForwardPlan | None) -> None:
        """Outputs of dropped rows are zeros, which nobody may take for a prediction."""
        realigned = call.labels is not None and not self.restore_outputs
        if plan is not None and plan.exposed and not realigned:
            self._warn(
                "exposed",
                "an image stands right before the end of the prompt or before a label, and protect_queries=False lets "
                "the row that predicts the next token be dropped: its logits are zeros then. Use protect_queries=True, "
                "or in training restore_outputs=False, which leaves dropped rows out of the loss",
            )

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"pyramiddrop: {message}", stacklevel=2)


_RENUMBERING = dataclasses.replace(PyramidDrop.traits, writes=frozenset({"tokens", "positions"}))


@dataclass(eq=False)
class PaperPyramidDrop(PyramidDrop):
    """The preset of the official code: positions are renumbered after every drop."""

    positions: Literal["preserve", "renumber"] = "renumber"

    traits: ClassVar[Traits] = _RENUMBERING


@dataclass(eq=False)
class RandomDrop(PyramidDrop):
    """The control: the same schedule, but which visual tokens stay is drawn at random."""

    rank: str | Policy = "random"
