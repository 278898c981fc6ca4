"""A model and adapters of it as GGUF with a vocabulary, for llama-server: PYTHON job_gguf.py BASE OUT ADAPTER...

llama-server writes down what every token says, so that the model needs a text for each. They are plain ASCII: a reply
whose text is not whole UTF-8 loses its probabilities.
"""

import json
import sys
from pathlib import Path

import gguf

sys.path.insert(0, str(Path(__file__).parents[2] / "refimpl" / "engines" / "workers"))
import gguf_files


class WithTexts(gguf.GGUFWriter):
    """Gives the tokens of a model that has none texts: t0_, t1_, ..."""

    def add_tokenizer_model(self, model: str) -> None:
        assert model == "no_vocab"
        super().add_tokenizer_model("llama")
        count = self.kv_data[0]["llama.vocab_size"].value
        self.add_token_list([f"t{i}_" for i in range(count)])
        self.add_token_scores([0.0] * count)
        self.add_token_types([gguf.TokenType.NORMAL] * count)
        self.add_bos_token_id(0)
        self.add_eos_token_id(1)


def main(base: str, out: str, *folders: str) -> None:
    gguf_files.gguf.GGUFWriter = WithTexts
    gguf_files.write_base(Path(base), Path(out) / "base.gguf")
    for folder in folders:
        gguf_files.write_adapter(Path(folder), Path(base), Path(out) / f"{Path(folder).name}.gguf")
    print(json.dumps({"base": base, "adapters": list(folders)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
