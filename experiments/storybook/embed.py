"""Makes a trained model the embedded one: its weights in bfloat16, and its tokenizer.

    python experiments/storybook/embed.py RUN/model

Writes config.json, model.safetensors and the tokenizer's files into resources/models/storybook.
"""

import sys
from pathlib import Path

import transformer_lab as lab
from transformer_lab import checkpoints
from transformer_lab.model.parameters import flatten, nest, shapes

EMBEDDED = Path(__file__).resolve().parents[2] / "resources" / "models" / "storybook"


def main() -> None:
    (folder,) = sys.argv[1:]
    model = lab.load_model(folder)
    wanted = shapes(model.config)
    arrays = {name: model.backend.recover(name, array) for name, array in flatten(model.params) if name in wanted}
    checkpoints.save_folder(EMBEDDED, model.config, nest(arrays), dtype="bfloat16")
    assert model.tokenizer is not None
    model.tokenizer.save(EMBEDDED)
    print(f"{model.parameters_count:,} parameters, {sum(p.stat().st_size for p in EMBEDDED.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
