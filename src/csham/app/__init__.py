"""A page in the browser to ask a trained network: drop an image, see the answer and the attention."""
