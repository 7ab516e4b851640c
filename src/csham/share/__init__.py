"""A trained network as a folder for others, such as the Hugging Face Hub takes."""
