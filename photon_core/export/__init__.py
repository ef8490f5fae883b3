"""Between our models and Hugging Face's GPT-2: folders to take away, checkpoints to start from, text."""
