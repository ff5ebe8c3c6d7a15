"""Students: tokenised training sets and LoRA adapters, one partition per recipe."""
