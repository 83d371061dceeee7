"""The folder of artifacts: saved prompts with their cards, and PEFT's format in and out."""
