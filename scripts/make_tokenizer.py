"""Makes a tokenizer out of public text: bytes merged into pieces (BPE), <s> and </s> around a row, <pad> to fill it.

    python scripts/make_tokenizer.py data/models/dialogue --vocabulary 4096 data/film_dialogue/movie_dialog.txt
    python scripts/make_tokenizer.py data/models/dialogue_lower --vocabulary 2048 --lower FILE ...

The vocabulary tells what the text holds: make it out of public text alone. One made of private rows would be a release
that nothing accounts for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SPECIAL = ["<pad>", "<s>", "</s>"]


def main(arguments: list[str]) -> int:
    """Writes FOLDER/tokenizer.json. Returns the exit code; a refusal is one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="made where it is not there")
    parser.add_argument("files", type=Path, nargs="+", help="public text, UTF-8, a piece a line")
    parser.add_argument("--vocabulary", type=int, default=4096, help="number of ids, at least 260")
    parser.add_argument("--lower", action="store_true", help="texts are brought to lower case first, here and later")
    given = parser.parse_args(arguments)
    lacking = [str(file) for file in given.files if not file.is_file()]
    if lacking or given.vocabulary < 260:
        problem = f"{lacking[0]}: no such file" if lacking else f"--vocabulary {given.vocabulary}: at least 260"
        print(f"dptrain: error: {problem}", file=sys.stderr)
        return 2
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    if given.lower:
        made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=given.vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train([str(file) for file in given.files], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(mark, made.token_to_id(mark)) for mark in ("<s>", "</s>")]
    )
    given.folder.mkdir(parents=True, exist_ok=True)
    made.save(str(given.folder / "tokenizer.json"))
    print(f"{given.folder / 'tokenizer.json'}: {made.get_vocab_size()} ids out of {len(given.files)} file(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
