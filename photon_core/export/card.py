"""The model card of an export: the model's training data and scores, from the manifests alone."""

from photon_core.evidence.metrics import show
from photon_core.model.shapes import parameter_count
from schemas.federation import Federation
from schemas.manifests import RoundManifest, StartRef

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [federated-learning, photon]
---

# {run}, round {round}

A decoder-only transformer of {parameters:,} parameters, pre-trained by {sites} sites that did not share their
text: in each round the sites trained the global model for up to {steps} local steps and sent only the change.
It has the architecture of GPT-2: {n_layers} blocks, width {d_model}, {n_heads} heads, {vocab_size:,} tokens,
{max_seq_len:,} positions.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
text = model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=50)
print(tokenizer.decode(text[0]))
```

## Data

{tokens:,} tokens in {rounds} rounds. Text never left its site; the streams are named as in the federation file.

| site | streams | rounds | tokens trained | share of the tokens |
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
| run | `{run}` |
| model | `sha256 {model_sha256}` |
| federation file | `sha256 {federation_sha256}` |
| theta of round 0 | {start} |
| committed | {created} |
| versions | {versions} |
"""


def model_card(federation: Federation, rounds: list[RoundManifest]) -> str:
    """README.md of an export.

    Args:
        federation: federation file, for names and shapes.
        rounds: manifests of the rounds behind the exported model, from round 0.
    """
    last = rounds[-1]
    return CARD.format(
        **federation.model.model_dump(),
        run=last.run,
        round=last.round,
        parameters=parameter_count(federation.model),
        sites=len({site for manifest in rounds for site in manifest.updates}),
        steps=max((update.steps for m in rounds for update in m.updates.values()), default=0),
        rounds=last.place,
        tokens=last.total_tokens,
        data=_data(federation, rounds),
        results=_results(last),
        curve=_curve(rounds),
        model_sha256=last.model_sha256,
        federation_sha256=last.federation_sha256,
        start=_start(rounds[0].start),
        created=last.created,
        versions=", ".join(f"{name} {version}" for name, version in sorted(last.versions.items())),
    )


def _start(start: StartRef | None) -> str:
    """The origin of round 0's model, without the folders of its owner."""
    if start is None:
        return "a function of the seed"
    hashes = ", ".join(f"{name} `{sha256}`" for name, sha256 in sorted(start.sha256.items()))
    return f"the {start.kind} `{start.source.rstrip('/').rpartition('/')[2]}`: {hashes}"


def _data(federation: Federation, rounds: list[RoundManifest]) -> str:
    """A row for each site that ever contributed. The streams of a site that the file no longer has are unknown."""
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


def _results(last: RoundManifest) -> str:
    rows = [
        f"| {site} | {show('perplexity', scores['perplexity'])} | {scores['tokens']:,.0f} |"
        for site, scores in sorted(last.evaluations.items())
    ]
    if "perplexity" in last.metrics:
        tokens = sum(scores["tokens"] for scores in last.evaluations.values())
        rows.append(f"| all | {show('perplexity', last.metrics['perplexity'])} | {tokens:,.0f} |")
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
