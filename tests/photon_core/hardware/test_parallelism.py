"""How a site's devices train together: by the memory of a device, and by the link between its nodes."""

from typing import Any

import pytest

from photon_core.errors import FederationError
from photon_core.hardware.parallelism import (
    check_infra,
    check_processors,
    choose_infra,
    job_infra,
    waiting_share,
)
from photon_core.run.members import member
from schemas.federation import Federation
from schemas.view import view_of
from tests.federations import sample, site

H100: dict[str, Any] = {"devices": 8, "tflops": 989, "memory_gb": 80}
MUON = {"name": "muon", "matrix_lr": 0.01}


def federation(preset: str = "1.3B", hardware: dict[str, Any] | None = None, **local: Any) -> Federation:
    data = {
        "run": "r",
        "recipe": None,
        "store": "s",
        "tokenizer": "bytes",
        "model": {"preset": preset},
        "rounds": {"count": 10},
        "local": {"steps": 100, "batch_size": 256, "precision": "amp_bf16", "micro_batch": "auto", **local},
        "sites": [{"name": "a", "hardware": hardware, "streams": [{"name": "s", "source": "s.txt"}]}],
    }
    return Federation.model_validate(data)


@pytest.mark.parametrize(
    ("preset", "kind"),
    # 16 bytes a parameter of the published counts: 2, 5.7, 21.1, 42.4 and 106.5 GB, against 72 of 80
    [("125M", "ddp"), ("350M", "ddp"), ("1.3B", "ddp"), ("3B", "ddp"), ("7B", "fsdp")],
)
def test_published_shapes_on_eight_devices_of_80_gb(preset: str, kind: str) -> None:
    infra = choose_infra(view_of(federation(preset, H100), "a"))
    assert (infra.kind, infra.ranks, infra.nodes) == (kind, 8, 1)
    assert "of a device's 80 GB, of which 72.0 are used" in infra.reason


def test_smaller_devices_need_fsdp_sooner() -> None:
    assert choose_infra(view_of(federation("1.3B", {**H100, "memory_gb": 24}), "a")).kind == "fsdp"
    assert choose_infra(view_of(federation("350M", {**H100, "memory_gb": 24}), "a")).kind == "ddp"


@pytest.mark.parametrize(("micro_batch", "kind"), [("auto", "ddp"), (1, "ddp"), (64, "fsdp"), (None, "fsdp")])
def test_the_micro_batch_that_will_train_decides(micro_batch: Any, kind: str) -> None:
    """3B with a batch of 64: 8 sequences a device at once are too much for the whole model beside them."""
    assert choose_infra(view_of(federation("3B", H100, batch_size=64, micro_batch=micro_batch), "a")).kind == kind


@pytest.mark.parametrize(
    ("proximal", "needed"),
    # 23,040 parameters at 20 bytes, at 24 beside FedProx's theta; the first of 8 devices trains 2 of 15 sequences
    # of 64 tokens: 2 x 64 x (2,072 of the block + 280 of the head + 3,084 of the logits)
    [(None, 23_040 * 20 + 695_808), (0.1, 23_040 * 24 + 695_808)],
)
def test_the_largest_share_of_an_uneven_batch_and_fedprox_count(proximal: float | None, needed: int) -> None:
    model = {"n_layers": 1, "d_model": 32, "n_heads": 2, "vocab_size": 257, "max_seq_len": 64}
    local = {"steps": 1, "batch_size": 15, "proximal": proximal, "optimizer": {"lr": 1e-3}}
    for factor, kind in ((1.001, "ddp"), (0.999, "fsdp")):
        memory_gb = factor * needed / 0.9 / 1e9
        sites = [site("a", hardware={"devices": 8, "tflops": 1, "memory_gb": memory_gb})]
        assert choose_infra(view_of(sample(model=model, local=local, sites=sites, recipe=None), "a")).kind == kind


def test_a_site_with_one_device_or_none_declared_trains_on_it() -> None:
    assert choose_infra(view_of(federation(), "a")).kind == "none"
    assert choose_infra(view_of(federation("7B", {**H100, "devices": 1}), "a")).kind == "none"


def test_what_is_not_known_is_said() -> None:
    infra = choose_infra(view_of(federation("7B", {"devices": 2, "tflops": 100}), "a"))
    assert infra.kind == "ddp" and "memory_gb is not given" in infra.reason
    assert choose_infra(view_of(federation("7B", H100, device="cpu", precision="fp32"), "a")).kind == "ddp"


def test_slow_links_make_a_federation_and_fast_ones_one_job() -> None:
    """Photon's own numbers: 7B at 10 Gbit/s, 97.2 h of exchange for 50.7 h of computation (arXiv 2411.02908)."""
    nodes = {**H100, "nodes": 4, "utilisation": 0.5}
    slow, fast = ({**nodes, "interconnect": speed} for speed in (10, 400))
    infra = choose_infra(view_of(federation("7B", slow), "a"))
    assert (infra.kind, infra.ranks, infra.nodes) == ("federation", 8, 4)
    assert infra.reason.startswith("at 10 Gbit/s the nodes would wait")
    infra = choose_infra(view_of(federation("7B", fast), "a"))
    assert (infra.kind, infra.ranks, infra.nodes) == ("fsdp", 32, 1)
    assert job_infra(view_of(federation("7B", slow), "a")).kind == "fsdp"
    assert choose_infra(view_of(federation("7B", slow), "a").node(1)).ranks == 8


def test_waiting_by_hand() -> None:
    """An exchange of 97.2 hours for 50.7 of computation waits 63.4, which is more than half of the time."""
    fed = federation("125M", {"nodes": 2, "devices": 1, "tflops": 100, "utilisation": 1.0, "interconnect": 1})
    hardware = fed.sites[0].hardware
    assert hardware is not None
    from photon_core.model.cost import flops_per_token
    from photon_core.model.shapes import parameter_count

    compute = 256 * 2048 * flops_per_token(fed.model) / 2 / 1e14
    exchange = 4 * parameter_count(fed.model) * 8 / 1e9  # 2 (K - 1) / K is 1 for two nodes
    waiting = exchange - 2 / 3 * compute
    assert waiting_share(view_of(fed, "a"), hardware) == pytest.approx(waiting / (compute + waiting))
    assert (97.2 - 2 / 3 * 50.7) / (97.2 + 1 / 3 * 50.7) > 0.5
    assert waiting_share(view_of(fed, "a"), hardware.model_copy(update={"interconnect": 1e6})) == 0


@pytest.mark.parametrize(
    ("parallel", "ranks", "nodes"), [("none", 1, 1), ("ddp", 16, 1), ("fsdp", 16, 1), ("federation", 8, 2)]
)
def test_the_file_overrides_the_choice(parallel: str, ranks: int, nodes: int) -> None:
    infra = choose_infra(view_of(federation("7B", {**H100, "nodes": 2, "parallel": parallel}), "a"))
    assert (infra.kind, infra.ranks, infra.nodes) == (parallel, ranks, nodes)
    assert infra.reason == f"hardware.parallel is {parallel}" and str(infra).endswith(f": {infra.reason}")


@pytest.mark.parametrize(
    ("local", "message"),
    [
        ({"optimizer": MUON}, r"trains with FSDP.*Muon needs whole matrices.*write local.optimizer.name: adamw"),
        ({"proximal": 0.1}, r"trains with FSDP.*does not support local.proximal; drop it"),
        ({"compile": True}, r"trains with FSDP.*cannot be compiled; drop local.compile"),
        ({"batch_size": 4}, r"on 8 devices, but local.batch_size is 4.*at least one sequence a device"),
    ],
)
def test_what_cannot_train_so_is_refused_before_any_work(local: dict[str, Any], message: str) -> None:
    with pytest.raises(FederationError, match=message):
        check_infra(view_of(federation("7B", H100, **local), "a"))


def test_fsdp_is_refused_on_the_cpu_and_ddp_takes_muon() -> None:
    with pytest.raises(FederationError, match=r"needs GPUs, but local.device is cpu"):
        check_infra(view_of(federation("7B", {**H100, "parallel": "fsdp"}, device="cpu", precision="fp32"), "a"))
    assert check_infra(view_of(federation("125M", H100, optimizer=MUON, proximal=0.1), "a")).kind == "ddp"
    apart = {**H100, "nodes": 2, "parallel": "federation"}
    with pytest.raises(FederationError, match="Muon needs whole matrices"):
        check_infra(view_of(federation("7B", apart, optimizer=MUON), "a"))


def test_fsdp_is_refused_where_no_gpu_can_be_used_and_ddp_is_not() -> None:
    check_processors(view_of(federation("125M", H100), "a"))
    nodes = {**H100, "nodes": 2, "parallel": "federation"}
    for hardware in (H100, nodes):
        with pytest.raises(FederationError, match=r"trains with FSDP .* no usable GPU; .*parallel: ddp"):
            check_processors(view_of(federation("7B", hardware), "a"))


def test_a_site_may_claim_the_tokens_of_its_own_nodes() -> None:
    fed = federation("125M", {**H100, "nodes": 3, "parallel": "federation"})
    assert member(fed, "a").most().tokens == 3 * 100 * 256 * 2048
    assert (
        member(federation("125M", {**H100, "nodes": 3, "parallel": "ddp"}), "a").most().tokens == 100 * 256 * 2048
    )
