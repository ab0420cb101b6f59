"""What tells how a model is spread, in one process; groups of processes are tried in tests/parallel."""

from __future__ import annotations

import paperhooks
import pytest
import torch
from paperhooks import Traits, UnsupportedModel, hookimpl
from paperhooks.models import ModelView, spread_of
from paperhooks.models.engines import dealt_sequence
from paperhooks.testing import tiny_llama
from torch import nn

IDS = torch.tensor([[3, 4, 5]])


class Look:
    """Looks at the hidden states."""

    traits = Traits()

    @hookimpl
    def post_layer(self, site, call, hidden_states):
        return None


def test_a_plain_model_is_plain() -> None:
    model = tiny_llama()
    found = ModelView.from_model(model).spread
    assert (found.kinds, found.tensor_mesh, found.group, found.in_step) == ((), None, (), False)
    assert (found.replica, found.replicas, found.leader, found.tensor_parallel) == (0, 1, True, 1)
    assert found.heads(0, ModelView.from_model(model)) == (4, 4)
    assert found.unit(model.lm_head) is None
    assert str(found) == "plain"


def test_a_view_looks_again_after_offloading() -> None:
    from accelerate import cpu_offload

    model = tiny_llama()
    view = ModelView.from_model(model)
    assert view.spread is view.spread
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert view.spread.kinds == ("offload",)


def test_what_a_method_has_not_declared_is_refused_when_attaching_and_in_the_first_call() -> None:
    from accelerate import cpu_offload

    words = r"look has not declared 'offload', and LlamaForCausalLM is offloaded by accelerate\. Detach it"
    model = tiny_llama()
    with paperhooks.attach(model, Look()) as session:
        assert "spread: plain; declared for these methods: plain models only" in session.describe()
        model(IDS)
        cpu_offload(model, execution_device=torch.device("cpu"))
        with pytest.raises(UnsupportedModel, match=words):
            model(IDS)
    with pytest.raises(UnsupportedModel, match=words):
        paperhooks.attach(model, Look())
    model(IDS)


def test_what_is_declared_is_shown() -> None:
    class Both(Look):
        traits = Traits(parallel=("offload", "ddp"))

    with paperhooks.attach(tiny_llama(), Both()) as session:
        assert "spread: plain; declared for these methods: ddp, offload" in session.describe()
        session.view.model(IDS)


def test_ways_that_nobody_has_run_are_refused() -> None:
    model = tiny_llama()
    model.lm_head.weight.ds_id = 3  # as DeepSpeed marks what it has partitioned
    with pytest.raises(UnsupportedModel, match="DeepSpeed ZeRO-3"):
        spread_of(model)

    class PipelineIdentityLayer(nn.Identity):
        """What transformers puts in place of another stage's layers."""

    model = tiny_llama()
    model.model.layers[3] = PipelineIdentityLayer()
    for ask in (spread_of, lambda model: paperhooks.attach(model, Look())):
        with pytest.raises(UnsupportedModel, match="stage of a pipeline"):
            ask(model)


@pytest.mark.parametrize("name", ["cp_size", "sp_size"])
def test_a_dealt_sequence_is_read_off_accelerates_config(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator, parallelism_config
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        model = tiny_llama()
        Accelerator(cpu=True)
        assert not dealt_sequence(model)
        config = parallelism_config.ParallelismConfig()
        monkeypatch.setattr(config, name, 2)
        monkeypatch.setitem(AcceleratorState._shared_state, "parallelism_config", config)
        assert spread_of(model).kinds == ("cp",)
        with pytest.raises(UnsupportedModel, match=r"'cp'.*takes attention masks away"):
            paperhooks.attach(model, Look())
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_the_list_of_ways_is_closed() -> None:
    assert Traits(parallel=["ddp", "tp"]).parallel == ("ddp", "tp")
    with pytest.raises(ValueError, match=r"unknown entries \['accelerate'\]; allowed are \['ddp', 'fsdp2', 'tp', "):
        Traits(parallel=("accelerate",))
    with pytest.raises(ValueError, match=r"Traits.shared_work"):
        Traits(shared_work="yes")
