"""The model card of an export: which node's model it is, its training data and its scores, from the manifests."""

from photon_core.evidence.metrics import show
from photon_core.export.model import NodeModel, Scores
from photon_core.model.key_layers import key_layers
from photon_core.model.shapes import parameter_count
from schemas.federation import Federation
from schemas.manifests import RoundManifest, StartRef

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [federated-learning, photon]
---

# {title}

A decoder-only transformer of {parameters:,} parameters, pre-trained by {sites} {members} that did not share their
text: in each round the {members} trained the global model for up to {steps} local steps and sent only the change.
It has the architecture of GPT-2: {n_layers} blocks, width {d_model}, {n_heads} heads, {vocab_size:,} tokens,
{max_seq_len:,} positions.

{whose}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
text = model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=50)
print(tokenizer.decode(text[0]))
```

## Data

{tokens:,} tokens in {rounds} rounds. Text never left its site; the streams are named as in the federation file.
{elsewhere}
| {member} | streams | rounds | tokens trained | share of the tokens |
|---|---|--:|--:|--:|
{data}

## Results

Perplexity on text that each site holds out, per token of this model's tokenizer. It is comparable only between
models with the same tokenizer and the same held-out text.

| held-out text of | perplexity | tokens |
|---|--:|--:|
{results}

{curve}

## Limits

- This is a base model, which continues text. It was neither instructed nor aligned, and repeats what is wrong or
  hurtful in its data.
- Nothing here shows that training text cannot be extracted from the model.
- It cannot process sequences of more than {max_seq_len:,} tokens.
- The rights in the sites' text determine who may use the model. This card does not know them.

## Origin

| | |
|---|---|
| node | `{node}`, {kind} |
| state | {origin} |
| run | `{run}` |
| model | `sha256 {model_sha256}` |
| federation file | `sha256 {federation_sha256}` |
| theta of round 0 | {start} |
| committed | {created} |
| versions | {versions} |
"""
ELSEWHERE = "Other federations of the tree have trained the model, too; their data are not in the table.\n"


def model_card(model: NodeModel, rounds: list[RoundManifest]) -> str:
    """README.md of an export.

    Args:
        model: exported model.
        rounds: manifests of the trained rounds behind it, of the node's federation, from round 0.
    """
    last, federation, node = rounds[-1], model.node.federation, model.node
    members = "members" if federation.federations else "sites"
    in_tree = federation.parent is not None
    return CARD.format(
        **federation.model.model_dump(),
        title=f"{node.name}, round {last.round if model.state == 'committed' else model.round}",
        node=node.name,
        kind="a site" if node.view is not None else "a federation",
        origin=model.origin,
        whose=_whose(model),
        member=members[:-1],
        members=members,
        run=last.run,
        parameters=parameter_count(federation.model),
        sites=len({site for manifest in rounds for site in manifest.updates}),
        steps=max((update.steps for m in rounds for update in m.updates.values()), default=0),
        rounds=last.place,
        tokens=last.total_tokens,
        elsewhere=ELSEWHERE if in_tree else "",
        data=_data(federation, rounds),
        results=_results(model.scores),
        curve=_curve(rounds) if node.view is None else "",
        model_sha256=model.source.sha256,
        federation_sha256=last.federation_sha256,
        start=_start(rounds[0].start),
        created=last.created,
        versions=", ".join(f"{name} {version}" for name, version in sorted(last.versions.items())),
    )


def _whose(model: NodeModel) -> str:
    """Whose model it is, and in which state."""
    node, layers = model.node, list(key_layers(model.node.federation))
    kind = "the site" if node.view is not None else "the federation"
    text = f"It is the model of {kind} `{node.name}`, {model.origin}."
    if layers:
        names = ", ".join(layers)
        text += f" Its key layers ({names}) are that node's; all other parameters are shared by averaging."
    return text


def _start(start: StartRef | None) -> str:
    """The origin of round 0's model, without the folders of its owner."""
    if start is None:
        return "a function of the seed"
    hashes = ", ".join(f"{name} `{sha256}`" for name, sha256 in sorted(start.sha256.items()))
    return f"the {start.kind} `{start.source.rstrip('/').rpartition('/')[2]}`: {hashes}"


def _data(federation: Federation, rounds: list[RoundManifest]) -> str:
    """A row for each member that ever contributed. A federation, and a site that left the file, has no streams."""
    streams = {site.name: ", ".join(stream.name for stream in site.streams) for site in federation.sites}
    tokens: dict[str, list[int]] = {}
    for manifest in rounds:
        for site, update in manifest.updates.items():
            tokens.setdefault(site, []).append(update.tokens)
    total = sum(map(sum, tokens.values()))
    return "\n".join(
        f"| {site} | {streams.get(site, '-')} | {len(counts)} | {sum(counts):,} | {sum(counts) / total:.1%} |"
        for site, counts in sorted(tokens.items())
    )


def _results(scores: Scores) -> str:
    rows = [
        f"| {name} | {show('perplexity', each['perplexity'])} | {each['tokens']:,.0f} |" for name, each in scores
    ]
    return "\n".join(rows) or "| not evaluated | | |"


def _curve(rounds: list[RoundManifest]) -> str:
    """A table of the perplexity over the rounds, with about ten rows at most."""
    scored = [manifest for manifest in rounds if "perplexity" in manifest.metrics]
    if len(scored) < 2:
        return ""
    step = max(1, len(scored) // 10)
    shown = [*scored[:-1:step], scored[-1]]
    rows = [
        f"| {m.round} | {m.total_tokens:,} | {len(m.updates)} | {show('perplexity', m.metrics['perplexity'])} |"
        for m in shown
    ]
    return "\n".join(["| round | tokens | sites | perplexity |", "|--:|--:|--:|--:|", *rows])
