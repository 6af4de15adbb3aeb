"""Models as folders for the Hugging Face Hub: weights, configuration and model card."""
