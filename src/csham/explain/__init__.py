"""Pictures and numbers of where and what a trained network attends to."""
