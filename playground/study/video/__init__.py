"""The paper's Table 4 in miniature: a Video-LLaVA made of the playground's parts, asked about clips."""
