"""Text from a round's model. The module imports torch and transformers, but not Composer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from photon_core.errors import FederationError
from photon_core.export.export import open_committed
from photon_core.export.weights import read_tensor
from photon_core.model.gpt2 import gpt2_config, gpt2_places
from photon_core.run.run import Run
from photon_core.tensors.reader import TensorReader
from schemas.federation import Federation
from schemas.manifests import RoundManifest


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


def generate(
    federation: Federation, t: int | None, prompt: str, decoding: Decoding, say: Callable[[str], None]
) -> str:
    """Continue a prompt with the model of round t (the last round if None), up to end-of-text.

    Args:
        federation: federation file.
        t: number of the round.
        prompt: text to continue.
        decoding: settings for drawing.
        say: callback with each new piece of text, without the prompt.

    Returns:
        the new text.

    Raises:
        FederationError: an argument is out of range.
        PhotonError: the round is not committed.
    """
    room, tokens, temperature = federation.model.max_seq_len, decoding.tokens, decoding.temperature
    if tokens >= room:
        raise FederationError(f"--tokens {tokens}: the model has {room} positions; write at most {room - 1}")
    run, manifest, tokenizer = open_committed(federation, t)
    import torch

    ids = [int(i) for i in tokenizer.encode_batch([prompt])[0]][-(room - tokens) :] or [tokenizer.eot]
    model = _load(run, manifest, federation, tokenizer.eot)
    torch.manual_seed(decoding.seed)
    drawing: dict[str, Any] = {
        "do_sample": True,
        "temperature": temperature,
        "top_k": decoding.top_k,
        "top_p": 1.0,
    }
    spoken = _Spoken(lambda added: tokenizer.decode(i for i in added if i != tokenizer.eot), say)
    given = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            streamer=spoken,
            pad_token_id=tokenizer.eot,
            **(drawing if temperature else {"do_sample": False}),
        )
    return spoken.text


def _load(run: Run, manifest: RoundManifest, federation: Federation, end_of_text: int) -> Any:
    """The round's model as GPT-2 of transformers, on the GPU if the machine has one."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()
    disable_progress_bar()
    places, state = gpt2_places(federation.model), {}
    with TensorReader(run.store, run.files_dir(manifest.round), manifest.model) as reader:
        for name in reader.tensors:
            array = read_tensor(reader, name)
            state[places[name].name] = torch.from_numpy(array.T if places[name].transposed else array)
        reader.verify()
    state["lm_head.weight"] = state["transformer.wte.weight"]
    config = GPT2Config(**gpt2_config(federation.model, end_of_text))
    model = GPT2LMHeadModel.from_pretrained(None, config=config, state_dict=state)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


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
