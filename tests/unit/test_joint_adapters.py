"""How pretrained networks are tuned: what moves, what stays to the bit, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmray.encoders.joint_config import DECODERS_TAKE_PREFIX
from mmray.models.joint import checkpoint
from mmray.models.joint.adapters import blocks
from mmray.models.joint.batch import JointBatch, Tokens
from mmray.models.joint.config import JointConfig
from mmray.models.joint.learning import parameter_groups
from mmray.models.joint.model import JointModel
from tests import tinyjoint, tinymodels
from tests.tinyjoint import CAPTION, CONV

torch.set_num_threads(1)
ADAPTED = {"lora": "lora_", "adalora": "lora_", "ia3": "ia3_l", "prefix": "prompt_encoder"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tinymodels.build("bert", tmp_path_factory.mktemp("bert")))


def words(rows: int = 6, seed: int = 0) -> JointBatch:
    """Pictures for a small tower, and texts of as many tokens for a tiny BERT."""
    batch = tinyjoint.batch(rows=rows, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 3000, (rows, 7), generator=rng)
    inputs = {**batch.inputs, "text": Tokens(ids, torch.ones_like(ids))}
    return JointBatch(inputs, batch.present, text_ids=batch.text_ids, text_mask=batch.text_mask)


def tuned(bert: str, **tower: Any) -> JointModel:
    text = {"kind": "hf", "model": bert, **tower}
    model = tinyjoint.build({"image": CONV, "text": text})
    for part in model.modules():  # a tiny BERT's own dropout
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return model


def state(model: JointModel) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in model.state_dict().items()}


def moved(before: dict[str, torch.Tensor], model: JointModel) -> set[str]:
    """Values of the text network that aren't what they were, to the bit."""
    after = model.state_dict()
    return {
        name
        for name, value in before.items()
        if name.startswith("towers.text.network") and not torch.equal(value, after[name])
    }


def test_frozen_stays_to_the_bit(bert: str) -> None:
    model = tuned(bert)
    model.train()
    assert not model.towers["text"].network.training
    before = state(model)
    tinyjoint.learn(model, words(), 3)
    assert moved(before, model) == set()
    after = model.state_dict()
    assert not torch.equal(
        before["towers.text.projection.weight"], after["towers.text.projection.weight"]
    )


def test_full_moves_all(bert: str) -> None:
    model = tuned(bert, train="full")
    before = state(model)
    tinyjoint.learn(model, words(), 3)
    still = {name for name in before if name.startswith("towers.text.network")} - moved(
        before, model
    )
    assert all("position" in name or "token_type" in name for name in still), still


@pytest.mark.parametrize("count", [1, 2])
def test_last_n_moves_n_blocks(bert: str, count: int) -> None:
    model = tuned(bert, train="last_n", blocks=count)
    before = state(model)
    tinyjoint.learn(model, words(), 3)
    places = {name.split("encoder.layer.")[1][0] for name in moved(before, model)}
    assert places == {str(2 - back) for back in range(1, count + 1)}
    assert len(blocks(model.towers["text"].network)) == 2


@pytest.mark.parametrize("train", list(ADAPTED))
def test_adapters_alone_move(bert: str, train: str) -> None:
    """Fresh ones change nothing (a prefix does); training moves them, and them alone."""
    torch.manual_seed(0)
    frozen, model = tuned(bert), tuned(bert, train=train, rank=None if train == "ia3" else 2)
    batch = words()
    same = torch.equal(model(batch).vectors["text"], frozen(batch).vectors["text"])
    assert same == (train != "prefix")
    before = state(model)
    first = tinyjoint.learn(model, batch, 1)
    last = tinyjoint.learn(model, batch, 10)
    assert last < first
    names = moved(before, model)
    assert names
    assert all(ADAPTED[train] in name or "ranknum" in name for name in names), names
    trained = [
        name
        for name, weight in model.towers["text"].network.named_parameters()
        if weight.requires_grad
    ]
    assert all(ADAPTED[train] in name for name in trained)


@pytest.mark.parametrize("train", list(ADAPTED))
def test_adapters_are_kept_or_merged(bert: str, train: str, tmp_path: Path) -> None:
    model = tuned(bert, train=train)
    tinyjoint.learn(model, words(), 4, 1e-2)
    model.eval()
    batch = words(seed=1)
    with torch.no_grad():
        wanted = model.encode(batch).vectors["text"]
        checkpoint.save(model, tmp_path / "kept")
        kept = checkpoint.load(tmp_path / "kept")
        assert torch.equal(kept.encode(batch).vectors["text"], wanted)
        assert [each.requires_grad for each in kept.parameters()] == [
            each.requires_grad for each in model.parameters()
        ]
        kept.merge_adapters()
        names = kept.state_dict()
        assert any("prompt_encoder" in name for name in names) == (train == "prefix")
        assert not any("lora_" in name or "ia3" in name for name in names)
        assert torch.allclose(kept.encode(batch).vectors["text"], wanted, atol=1e-5)
        checkpoint.save(kept, tmp_path / "merged")
        again = checkpoint.load(tmp_path / "merged")
        assert torch.allclose(again.encode(batch).vectors["text"], wanted, atol=1e-5)


@pytest.mark.parametrize("cut", [20, 35])
def test_adalora_gives_ranks_up_and_goes_on(bert: str, cut: int) -> None:
    """Its budget falls to the rank that was asked for, and stays; a copy with its state, from the
    midst of either, goes the same way."""
    steps = 40
    model = tuned(bert, train="adalora", rank=2)

    def ranks(found: JointModel) -> int:
        energies = [each for name, each in found.named_parameters() if "lora_E" in name]
        return sum(int((each != 0).sum()) for each in energies)

    def run(found: JointModel, start: int, stop: int) -> None:
        optimizer = torch.optim.SGD(parameter_groups(found, 0.1, 0.1, 0.0))
        for step in range(start, stop):
            optimizer.zero_grad()
            out = found(words(seed=step))
            assert float(out.losses["orthogonality"]) > 0
            out.loss.backward()
            optimizer.step()
            found.after_step(step, steps)

    layers = sum("lora_E" in name for name, _ in model.named_parameters())
    run(model, 0, cut)
    halfway = state(model)
    kept = [tuning.state() for tuning in model.tunings()]
    run(model, cut, steps)
    assert 0 < ranks(model) <= 2 * layers
    other = tuned(bert, train="adalora", rank=2)
    other.load_state_dict(halfway)
    for tuning, memory in zip(other.tunings(), kept, strict=True):
        tuning.load_state(memory)
    run(other, cut, steps)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def language_model(folder: Path) -> str:
    """A tiny GPT-2, whose output layer is its table of words."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=260,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", sorted(DECODERS_TAKE_PREFIX))
def test_a_decoder_takes_a_prefix(family: str, tmp_path: Path) -> None:
    """It alone is learned; a caption's loss is the same alone as beside longer ones; it is kept."""
    decoder = {"kind": "hf", "model": tiny_decoder(family, tmp_path / "lm"), "train": "prefix"}
    heads = {"caption": {**CAPTION, "decoder": {**decoder, "rank": 3}}}
    found = tinyjoint.settled({"image": CONV}, heads)
    model = checkpoint.create(JointConfig(**found.config), found.sources, 0).train()
    network = model.heads["caption"].decoder
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained
    assert all("prompt_encoder" in name for name in trained)
    batch = tinyjoint.batch(("image",), 4)
    assert batch.text_mask is not None
    batch.text_mask[1, 2:] = 0
    batch.text_mask[3, 4:] = 0
    before = state(model)
    first = tinyjoint.learn(model, batch, 1)
    assert tinyjoint.learn(model, batch, 10, 2e-2) < first
    assert not any(
        torch.equal(before[f"heads.caption.decoder.{name}"], weight)
        for name, weight in network.named_parameters()
        if name in trained
    )
    model.eval()
    with torch.no_grad():
        alone = [float(model(batch.part(row, row + 1)).loss) for row in range(4)]
        tokens = batch.text_mask.sum(1).tolist()
        wanted = sum(loss * count for loss, count in zip(alone, tokens, strict=True)) / sum(tokens)
        assert float(model(batch).loss) == pytest.approx(wanted, rel=1e-4)
        checkpoint.save(model, tmp_path / "saved")
        loaded = checkpoint.load(tmp_path / "saved")
        assert torch.equal(loaded(batch).loss, model(batch).loss)
    assert loaded.write(batch) == model.write(batch)


def tiny_decoder(family: str, folder: Path) -> str:
    """A tiny language model with fewer heads for keys than for queries, where a family has that."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if family == "gpt2":
        return language_model(folder)
    torch.manual_seed(5)
    auto: Any = AutoConfig
    known = auto.for_model(family)
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 32, "num_key_value_heads": 2, "head_dim": 8}
    config = auto.for_model(
        family,
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        **{name: value for name, value in sizes.items() if getattr(known, name, None)},
    )
    causal: Any = AutoModelForCausalLM
    causal.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("train", ["frozen", "full", "last_n", "lora", "prefix"])
def test_a_language_model_writes(train: str, tmp_path: Path) -> None:
    """Fed the fused vector as a prefix it learns captions; weights that are one are saved once."""
    decoder = {"kind": "hf", "model": language_model(tmp_path / "lm"), "train": train}
    heads = {"caption": {**CAPTION, "decoder": decoder}}
    found = tinyjoint.settled({"image": CONV}, heads)
    model = checkpoint.create(JointConfig(**found.config), found.sources, 0).train()
    batch = tinyjoint.batch(("image",), 4)
    before = state(model)
    first = tinyjoint.learn(model, batch, 1)
    last = tinyjoint.learn(model, batch, 60, 2e-2 if train != "full" else 3e-3)
    assert last < (0.6 * first if train == "full" else first - 0.1)
    changed = {
        name
        for name, value in before.items()
        if "caption.decoder" in name and not torch.equal(value, model.state_dict()[name])
    }
    assert bool(changed) == (train != "frozen")
    model.eval()
    wrote = model.write(batch)
    checkpoint.save(model, tmp_path / "saved")
    loaded = checkpoint.load(tmp_path / "saved")
    assert loaded.write(batch) == wrote
    with torch.no_grad():
        assert torch.equal(loaded(batch).loss, model(batch).loss)
