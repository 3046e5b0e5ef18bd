"""From LLaVA's conversation files to batches: token ids, labels, query mask and pixels."""
