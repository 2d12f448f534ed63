"""Train the small byte-level BPE tokenizer that is shipped with the sample.

What enters: the message texts of `records.jsonl` in this folder.
What leaves: `tokenizer/` in this folder, a fast tokenizer that `AutoTokenizer.from_pretrained` loads: 4096 tokens, the
Llama 3 pre-tokenizer split, all 256 bytes (so every text round-trips), `<|bos|>` in front of each text and nothing
behind it, and a chat template whose `{% generation %}` markers surround what the assistant says.
What comes next: `annotate run --data sample` uses it, so that the first run needs no download.

How to run, after a change of `records.jsonl`:

    python -m annotate.sample.build_tokenizer

The same records and the same `tokenizers` version give the same bytes.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
VOCAB_SIZE = 4096
MODEL_MAX_LENGTH = 4096  # tokens; also the default of `--max-length`
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIAL_TOKENS = [BOS, EOS, PAD, "<|system|>", "<|user|>", "<|assistant|>"]  # ids 0 to 5

# The pattern of Llama 3: contractions, letters with one character before them, up to three digits, punctuation, spaces.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Each turn is <|role|>, a newline, the content and <|eos|>. The assistant's content and its <|eos|> are generated.
CHAT_TEMPLATE = r"""
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception("Expected the role system, user or assistant, found " + message['role'] + ".") }}
    {%- endif %}
    {{- '<|' + message['role'] + '|>\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] + eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\n' }}
{%- endif %}
""".strip()


def read_texts(records_path: Path) -> list[str]:
    """Return the content of every message, in file order."""
    with records_path.open(encoding="utf-8") as lines:
        return [message["content"] for line in lines for message in json.loads(line)["messages"]]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train byte-level BPE on the texts; the special tokens get the first ids, the 256 bytes the next."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        # Sorted, because alphabet() comes from a set and has no fixed order.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def build_tokenizer(records_path: Path, output_dir: Path) -> PreTrainedTokenizerFast:
    """Train on the records, save the tokenizer into `output_dir`, and return it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(read_texts(records_path)),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(output_dir)
    return tokenizer


def main() -> None:
    """Rebuild the shipped tokenizer."""
    tokenizer = build_tokenizer(HERE / "records.jsonl", HERE / "tokenizer")
    print(f"{len(tokenizer)} tokens in {HERE / 'tokenizer'}")


if __name__ == "__main__":
    main()
