"""Makes a trained model an embedded one: its weights in bfloat16, and its tokenizer.

    python experiments/storybook/embed.py RUN/model NAME

Writes config.json, model.safetensors and the tokenizer's files into resources/models/NAME. A coefficient of the z-loss,
which is for training alone, is left out, since no published family has a field for it.
"""

import sys
from dataclasses import replace
from pathlib import Path

import transformer_lab as lab
from transformer_lab import checkpoints
from transformer_lab.model.parameters import flatten, nest, shapes

MODELS = Path(__file__).resolve().parents[2] / "resources" / "models"


def main() -> None:
    folder, name = sys.argv[1:]
    embedded = MODELS / name
    model = lab.load_model(folder)
    wanted = shapes(model.config)
    arrays = {path: model.backend.recover(path, array) for path, array in flatten(model.params) if path in wanted}
    blocks = [
        replace(block, ffn=replace(block.ffn, z_loss=0.0)) if hasattr(block.ffn, "z_loss") else block
        for block in model.config.blocks
    ]
    checkpoints.save_folder(embedded, replace(model.config, blocks=tuple(blocks)), nest(arrays), dtype="bfloat16")
    assert model.tokenizer is not None
    model.tokenizer.save(embedded)
    print(f"{model.parameters_count:,} parameters, {sum(p.stat().st_size for p in embedded.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
