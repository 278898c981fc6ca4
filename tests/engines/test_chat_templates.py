"""Chats are rendered as transformers renders them, and the same tokens have a loss as by its {% generation %} marks."""

from typing import Any

import hugging_face as hf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl import tiny
from refimpl.loading.tokenizer_file import load_tokenizer
from refimpl.training.chat import ChatTemplate
from refimpl.training.data import Encoder, from_messages

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
# In the manner of ChatML, Llama 3 and Mistral; each marks as transformers wants it what an answer adds to its header.
TEMPLATES = {
    "chatml": """{%- for message in messages %}
    {{- '<s>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content + '</s>\\n' }}{% endgeneration %}
    {%- else %}{{- message.content + '</s>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<s>assistant\\n' }}{% endif %}""",
    "llama3": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- "[system]\\n" + system_message + eos_token }}
{%- endif %}
{% for message in messages %}
    {{- '[' + message['role'] + ']\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] | trim + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]\\n\\n' }}{%- endif %}""",
    "mistral": """{{ bos_token }}{% for message in messages %}
{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
{% elif message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{% elif not loop.first %}{{ raise_exception('system comes first') }}{% else %}{{ message.content | tojson }}{% endif %}
{% endfor %}""",
}
WORDS = st.lists(
    st.sampled_from(["Well", " met", "hé", "<b>", "\n", " traveller ", "{{ x }}", '"']), min_size=1, max_size=5
)


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, str]]:
    """Perhaps a system message, then questions and answers in turn; the last may have no answer."""
    system = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    count = draw(st.integers(1, 3))
    turns = [{"role": role, "content": draw(WORDS)} for _ in range(count) for role in ("user", "assistant")]
    messages = [*system, *turns[: len(turns) - (count > 1 and draw(st.booleans()))]]
    return [{**message, "content": "".join(message["content"])} for message in messages]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return hf.transformers.PreTrainedTokenizerFast(tokenizer_file=str(tiny.base_path() / "tokenizer.json"), **SPECIAL)


@pytest.mark.parametrize("name", TEMPLATES)
@given(chats())
def test_the_same_text_the_same_tokens_and_the_same_loss_mask(
    name: str, tokenizer: Any, messages: list[dict[str, str]]
) -> None:
    template = ChatTemplate(TEMPLATES[name], SPECIAL)
    encoder = Encoder(load_tokenizer(tiny.base_path()), (1,), 999, template=template)
    expected = tokenizer.apply_chat_template(
        messages,
        chat_template=TEMPLATES[name],
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenize=True,
    )
    text = tokenizer.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False)
    assert template.render(messages)[0] == text
    example = from_messages(messages, encoder)
    assert list(example.token_ids) == list(expected["input_ids"])
    assert [int(loss) for loss in example.loss_mask] == list(expected["assistant_masks"])
    assert 0 < sum(example.loss_mask) < len(example.loss_mask)
