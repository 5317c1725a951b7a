"""What llama.cpp makes of texts: of each token but the first, how likely it is after those before it.

Arguments: the model's file, the file of texts (a text is a paragraph). Prints a list as JSON.
"""

import json
import sys

import llama_cpp
import numpy as np

model, texts = sys.argv[1:]
llama = llama_cpp.Llama(model, n_ctx=2048, n_batch=2048, logits_all=True, n_threads=1, verbose=False)
results = []
for text in open(texts, encoding="utf-8").read().strip().split("\n\n"):
    tokens = llama.tokenize(text.encode(), add_bos=False, special=True)
    llama.reset()
    llama.eval(tokens)
    scores = llama.scores[: len(tokens) - 1].astype(np.float64)
    largest = scores.max(axis=1, keepdims=True)
    total = largest[:, 0] + np.log(np.exp(scores - largest).sum(axis=1))
    found = scores[np.arange(len(tokens) - 1), tokens[1:]] - total
    results.append({"text": text, "tokens": tokens, "log_probabilities": found.tolist()})
print(json.dumps(results))
