"""Text from a model. The module imports torch and transformers, but not Composer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from photon_core.errors import FederationError
from photon_core.export.model import NodeModel
from photon_core.model.gpt2 import gpt2_config, gpt2_places
from schemas.sections.model import Model


@dataclass(frozen=True)
class Decoding:
    """Settings for drawing text from a model.

    Args:
        tokens: maximum number of new tokens.
        temperature: divisor of the logits; 0 always takes the likeliest token.
        top_k: number of likeliest tokens to draw from; 0 for all.
        seed: random seed; equal arguments give equal text on one machine.
    """

    tokens: int
    temperature: float
    top_k: int
    seed: int


def check_tokens(model: Model, tokens: int) -> None:
    """Refuse more new tokens than the model has room for beside a prompt.

    Raises:
        FederationError: naming the limit.
    """
    room = model.max_seq_len
    if tokens >= room:
        raise FederationError(f"--tokens {tokens}: the model has {room} positions; write at most {room - 1}")


def generate(model: NodeModel, prompt: str, decoding: Decoding, say: Callable[[str], None]) -> str:
    """Continue a prompt with a model, up to end-of-text.

    Args:
        model: the model.
        prompt: text to continue.
        decoding: settings for drawing, whose `tokens` `check_tokens` admits.
        say: callback with each new piece of text, without the prompt.

    Returns:
        the new text.

    Raises:
        CorruptFile: the model's files do not match their manifest.
    """
    room, tokens, temperature = model.node.federation.model.max_seq_len, decoding.tokens, decoding.temperature
    import torch

    tokenizer = model.tokenizer
    ids = [int(i) for i in tokenizer.encode_batch([prompt])[0]][-(room - tokens) :] or [tokenizer.eot]
    network = _load(model)
    torch.manual_seed(decoding.seed)
    drawing: dict[str, Any] = {
        "do_sample": True,
        "temperature": temperature,
        "top_k": decoding.top_k,
        "top_p": 1.0,
    }
    spoken = _Spoken(lambda added: tokenizer.decode(i for i in added if i != tokenizer.eot), say)
    given = torch.tensor([ids], device=network.device)
    with torch.inference_mode():
        network.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            streamer=spoken,
            pad_token_id=tokenizer.eot,
            **(drawing if temperature else {"do_sample": False}),
        )
    return spoken.text


def _load(model: NodeModel) -> Any:
    """The model as GPT-2 of transformers, on the GPU if the machine has one."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()
    disable_progress_bar()
    shapes = model.node.federation.model
    places, state = gpt2_places(shapes), {}
    with model.source.open() as found:
        for name in found.tensors:
            array = found.array(name)
            state[places[name].name] = torch.from_numpy(array.T if places[name].transposed else array)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    config = GPT2Config(**gpt2_config(shapes, model.tokenizer.eot))
    network = GPT2LMHeadModel.from_pretrained(None, config=config, state_dict=state)
    return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()


class _Spoken:
    """A streamer of transformers that forwards tokens as text, once their last character is complete."""

    def __init__(self, decode: Callable[[list[int]], str], say: Callable[[str], None]) -> None:
        self._decode, self._say = decode, say
        self._ids: list[int] = []
        self._prompt_seen = False
        self.text = ""

    def put(self, value: Any) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += value.reshape(-1).tolist()
        self._speak(whole=False)

    def end(self) -> None:
        self._speak(whole=True)

    def _speak(self, whole: bool) -> None:
        text = self._decode(self._ids)
        if whole or not text.endswith("\ufffd"):
            self._say(text[len(self.text) :])
            self.text = text
